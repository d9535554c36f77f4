"""Must show 1 and 11: real kernel logs run again, the kernel's decisions beside ours."""

from __future__ import annotations

import asyncio
import contextlib
import json
from importlib import resources
from pathlib import Path
from typing import Any, Final

import msgspec
import psutil
import pytest
import pytest_asyncio

from tests.integration.cli import Cli

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]

REPLAY_S: Final = 150.0
LOGS: Final = ("01.txt", "03.txt")
CUT: Final = "cut.txt"
PROCESSES: Final = 7  # nats-server and six services
VERDICTS: Final = {
    "kept", "added", "lost", "removed", "replaced", "rebound", "quarantined", "failed", "unknown",
}  # fmt: skip


class Ran(msgspec.Struct, frozen=True):
    """One replay: how it ended, and the processes that it had started."""

    log: Path
    code: int
    out: str
    err: str
    processes: frozenset[psutil.Process]

    @property
    def result(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.out)
        return document

    def facts(self, source: str) -> dict[str, int | None]:
        """Return what was injected, by where it is known from, with its line."""
        return {fact["what"]: fact["line"] for fact in self.result["facts"] if fact["from"] == source}


def packaged(name: str) -> list[str]:
    """Return the lines of a log that travels with the command."""
    return resources.files("services.console").joinpath("data", name).read_text(encoding="utf-8").splitlines()


def cut() -> list[str]:
    """Return the begin of log 03, with a line cut in its timestamp, and the last one in its address."""
    whole = packaged("03.txt")
    return [*whole[:6], whole[6][:6], whole[6][:33]]


async def run_replay(directory: Path, name: str) -> Ran:
    log = directory / name
    log.write_text("\n".join(cut() if name == CUT else packaged(name)))
    replaying = await Cli().start("replay", "--json", str(log))
    seen: set[psutil.Process] = set()
    communicating = asyncio.create_task(replaying.communicate())
    async with asyncio.timeout(REPLAY_S):
        while not communicating.done():
            with contextlib.suppress(psutil.NoSuchProcess):
                seen.update(psutil.Process(replaying.pid).children(recursive=True))
            await asyncio.wait({communicating}, timeout=0.2)
    out, err = communicating.result()
    assert replaying.returncode is not None
    return Ran(log, replaying.returncode, out.decode(), err.decode(), frozenset(seen))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def replays(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ran]:
    """Replay all logs at once: they are mostly waits, and no fleet may disturb another."""
    directory = tmp_path_factory.mktemp("replay")
    ran = await asyncio.gather(*(run_replay(directory, name) for name in (*LOGS, CUT)))
    return dict(zip((*LOGS, CUT), ran, strict=True))


@pytest.mark.parametrize("name", LOGS)
async def test_a_replay_ends_well_with_one_json_document_as_design_8_has_it(replays: dict[str, Ran], name: str) -> None:
    ran = replays[name]
    assert ran.code == 0, ran.err
    assert len(ran.out.splitlines()) == 1
    assert "Traceback" not in ran.err
    result = ran.result
    assert result.keys() == {"log", "devices", "facts", "leases"}
    assert result["log"] == str(ran.log)
    for device in result["devices"]:
        assert device.keys() == {"function", "kernel", "holdfast", "why"}
        assert {device["kernel"], device["holdfast"]} <= VERDICTS
        assert device["why"]
    lines = ran.log.read_text().splitlines()
    for fact in result["facts"]:
        assert fact.keys() == {"what", "from", "line"}
        assert fact["from"] in {"log", "inferred", "assumed"}
        assert fact["from"] != "log" or 1 <= fact["line"] <= len(lines), fact
    assert result["leases"]


@pytest.mark.parametrize("name", LOGS)
async def test_a_replay_leaves_nothing_running(replays: dict[str, Ran], name: str) -> None:
    processes = replays[name].processes
    assert len(processes) >= PROCESSES
    assert [process for process in processes if process.is_running()] == []


async def test_p3_scenario_38_log_03_is_kept_where_that_kernel_gave_up_after_4_s(replays: dict[str, Ran]) -> None:
    result = replays["03.txt"].result
    found = {one["function"]: (one["kernel"], one["holdfast"]) for one in result["devices"]}
    assert found == {"0004:01:00.0": ("lost", "kept"), "0004:01:00.1": ("lost", "kept")}
    assert all("generation 1 before and after" in one["why"] for one in result["devices"])
    (lease,) = result["leases"]
    assert (lease["port"], lease["rank"], lease["cause"]) == ("0004:00:00.0", "recovery", "dpc")
    assert set(lease["outcomes"].values()) == {"recovered"}


async def test_log_03_takes_two_callbacks_one_after_the_other_and_its_link_down_is_no_input(
    replays: dict[str, Ran],
) -> None:
    ran = replays["03.txt"]
    known = ran.facts("log")
    assert known["0004:01:00.0 mlx5_core: error_detected takes 2.365 s and votes need_reset"] == 15
    assert known["0004:01:00.1 mlx5_core: error_detected takes 2.431 s and votes need_reset"] == 28
    assert not any("link" in what.lower() for what in known), known
    assert [line for what, line in ran.facts("inferred").items() if "the kernel acts" in what] == [21]


async def test_log_03_says_that_link_return_and_slot_reset_votes_are_assumed(replays: dict[str, Ran]) -> None:
    assumed = replays["03.txt"].facts("assumed")
    for function in ("0004:01:00.0", "0004:01:00.1"):
        assert f"{function} mlx5_core: slot_reset votes recovered" in assumed
    assert any("link trains" in what for what in assumed)


async def test_p3_scenario_2_log_01_is_kept_where_that_kernel_recovered_and_then_removed(
    replays: dict[str, Ran],
) -> None:
    ran = replays["01.txt"]
    assert {(one["kernel"], one["holdfast"]) for one in ran.result["devices"]} == {("lost", "kept")}
    (line,) = [line for what, line in ran.facts("assumed").items() if "firmware first (EDR)" in what]
    assert line is not None
    assert "EDR event received" in ran.log.read_text().splitlines()[line - 1]


async def test_a_log_cut_in_the_middle_of_a_line_is_replayed_as_far_as_it_goes_and_that_is_said(
    replays: dict[str, Ran],
) -> None:
    ran = replays[CUT]
    assert ran.code == 0, ran.err
    assert "Traceback" not in ran.err
    assert f"{ran.log}: line 7 is skipped: it ends within its timestamp" in ran.err
    assert f"{ran.log}: line 8 is skipped: it ends within an address" in ran.err
    assert {device["holdfast"] for device in ran.result["devices"]} == {"kept"}
