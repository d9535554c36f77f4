"""Must show 15: the audit log read as it grows and as it stands, and one recovery of it drawn to scale."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest

from shared.protocol.facts import What
from tests.integration.campaign import some_of
from tests.integration.cli import COMMAND_S, Cli
from tests.integration.fleet import Bench
from tests.integration.promises import keeps

pytestmark = pytest.mark.asyncio(loop_scope="session")

PORT = "0000:00:01.0"
DRIVE = "0000:01:00.0"
SLOW_S = 1.0


async def recovered(bench: Bench) -> str:
    """Run one recovery with a slow driver; return its lease when every service has said what there is to say of it."""
    await bench.inject("driver", DRIVE, driver={"name": "nvme", "delay_s": {"error_detected": SLOW_S}})
    since = bench.mark()
    async with keeps(bench, PORT, resets=True):
        await bench.inject("dpc", PORT, reason="uncorrectable")
        started = await bench.wait_fact(What.RECOVERY_STARTED, PORT, since=since)
        await bench.closed(PORT, started.lease)
    for what in (What.LEASE_CLOSED, What.RECOVERY_CLOSED, What.DEVICE_KEPT):  # the last of fabric, coordinator, hotplug
        await bench.wait_fact(what, PORT, since=since, lease=started.lease)
    await bench.inject("driver", DRIVE, driver={"name": "nvme"})
    assert started.lease is not None
    return started.lease


class Watching:
    """A running `holdfast watch --json`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.lines: list[bytes] = []

    async def until(self, *wanted: What, lease: str) -> None:
        """Read until it has shown each of these facts of a lease, in whatever order."""
        assert self._process.stdout is not None
        missing = set(wanted)
        async with asyncio.timeout(COMMAND_S):
            while missing:
                line = await self._process.stdout.readline()
                assert line, "watch ended"
                self.lines.append(line)
                fact = json.loads(line)
                if fact["lease"] == lease:
                    missing.discard(What(fact["what"]))

    async def stop(self) -> None:
        self._process.terminate()
        await self._process.communicate()


async def watching(bench: Bench, *names: str) -> Watching:
    """Start to watch, and return when it has heard something: it says nothing before the first fact that it hears."""
    process = await Cli(bench).start("watch", *names, "--json")
    watcher = Watching(process)
    assert process.stdout is not None
    first = asyncio.create_task(process.stdout.readline())
    while not first.done():
        await bench.inject("error", PORT, names=["BadTLP"])
        await asyncio.wait({first}, timeout=0.5)
    watcher.lines.append(first.result())
    return watcher


@pytest.mark.parametrize("names", some_of([pytest.param((), id="all"), pytest.param((PORT,), id="port")], 1))
async def test_p10_history_is_what_watch_showed_line_for_line(bench: Bench, names: tuple[str, ...]) -> None:
    watcher = await watching(bench, *names)
    lease = await recovered(bench)
    await watcher.until(What.RECOVERY_CLOSED, What.LEASE_UNMASKED, lease=lease)
    await watcher.stop()
    code, history, err = await Cli(bench).run("history", *names, "--json")
    assert code == 0, err
    lines = history.encode().splitlines(keepends=True)
    first = lines.index(watcher.lines[0])
    assert lines[first : first + len(watcher.lines)] == watcher.lines
    facts = [json.loads(line) for line in watcher.lines]
    assert {What.LEASE_MASKED, What.LEASE_UNMASKED} <= {fact["what"] for fact in facts if fact["lease"] == lease}


async def test_a_history_of_one_lease_is_the_facts_of_that_lease_in_order(bench: Bench) -> None:
    lease = await recovered(bench)
    code, every, _ = await Cli(bench).run("history", "--json")
    assert code == 0
    code, own, _ = await Cli(bench).run("history", "--lease", lease, "--json")
    assert code == 0
    wanted = [line for line in every.splitlines() if json.loads(line)["lease"] == lease]
    assert own.splitlines() == wanted
    assert (await Cli(bench).run("history", "--lease", lease, "--limit", "3", "--json"))[1].splitlines() == wanted[-3:]


async def test_a_timeline_draws_one_recovery_with_its_waits_to_scale_and_writes_a_chrome_trace(
    bench: Bench, tmp_path: Path
) -> None:
    lease = await recovered(bench)
    trace = tmp_path / "trace.json"
    code, drawn, err = await Cli(bench).run("timeline", lease, "--trace", str(trace))
    assert code == 0, err
    assert lease in drawn
    rows = dict(re.findall(r"^(\S.*?)  +(━+)", drawn, re.MULTILINE))
    assert f"mask {PORT}" in rows, drawn
    events = check_trace(json.loads(trace.read_text()))
    bars = {event["name"]: event for event in events if event["ph"] == "X"}
    (slow,) = [bar for name, bar in bars.items() if name == f"{DRIVE} error_detected"]
    assert slow["dur"] >= SLOW_S * 1e6
    mask = next(bar for name, bar in bars.items() if name.startswith("mask"))
    assert mask["ts"] <= slow["ts"]
    assert mask["ts"] + mask["dur"] >= slow["ts"] + slow["dur"]
    lane = f"{DRIVE} error_detected"
    to_scale = len(rows[f"mask {PORT}"]) * slow["dur"] / mask["dur"]
    assert abs(len(rows[lane]) - to_scale) <= 2, drawn  # columns: each end is rounded
    shown = await Cli(bench).json("timeline", lease)
    assert shown["lease"] == lease
    assert len(shown["lanes"]) == len({event["tid"] for event in events if event["ph"] != "M"})


def check_trace(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Assert the JSON object form of the Trace Event Format: what chrome://tracing and Perfetto need of each event."""
    assert document["displayTimeUnit"] in {"ms", "ns"}
    events: list[dict[str, Any]] = document["traceEvents"]
    for event in events:
        assert event["ph"] in {"X", "i", "M"}, event
        assert isinstance(event["pid"], int)
        assert isinstance(event["name"], str)
        if event["ph"] == "M":
            assert event["args"]["name"] or event["name"] == "thread_sort_index"
            continue
        assert isinstance(event["tid"], int)
        assert event["ts"] >= 0
        assert event["ph"] == "i" or event["dur"] >= 0
        assert event["ph"] == "X" or event["s"] in {"t", "p", "g"}
    named = {event["tid"] for event in events if event["ph"] == "M" and event["name"] == "thread_name"}
    assert named >= {event["tid"] for event in events if event["ph"] != "M"}
    return events


async def test_a_timeline_of_an_unknown_lease_says_where_to_look(bench: Bench) -> None:
    code, out, err = await Cli(bench).run("timeline", "r-nobody")
    assert (code, out) == (5, "")
    assert "r-nobody" in err
    assert "holdfast history" in err
