"""Real kernel logs run again, that kernel's decisions beside ours: all six, each fact with where it is known from."""

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

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

REPLAY_S: Final = 150.0
AT_ONCE: Final = 2  # replays: each is seven processes that mostly wait
OPEN_ENDED: Final = "18.txt"  # whether the link returned is not in it
LOGS: Final = (OPEN_ENDED, "15.txt", "07.txt", "03.txt", "01.txt", "08.txt")  # the longest first
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

    @property
    def fates(self) -> dict[str, tuple[str, str]]:
        """What became of each device: with that kernel, and with Holdfast."""
        return {one["function"]: (one["kernel"], one["holdfast"]) for one in self.result["devices"]}


def packaged(name: str) -> list[str]:
    """Return the lines of a log: two travel with the command, the others are of the tests."""
    of_command = resources.files("services.console").joinpath("data", name)
    log = of_command if of_command.is_file() else Path(__file__).parents[1] / "unit/console/dmesg" / name
    return log.read_text(encoding="utf-8").splitlines()


def cut() -> list[str]:
    """Return the begin of log 03, with a line cut in its timestamp, and the last one in its address."""
    whole = packaged("03.txt")
    return [*whole[:6], whole[6][:6], whole[6][:33]]


async def run_replay(directory: Path, name: str, turn: asyncio.Semaphore) -> Ran:
    async with turn:
        return await run_one(directory, name)


async def run_one(directory: Path, name: str) -> Ran:
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
    """Replay all logs, some at once: they are mostly waits, and no fleet may disturb another."""
    directory = tmp_path_factory.mktemp("replay")
    turn = asyncio.Semaphore(AT_ONCE)
    ran = await asyncio.gather(*(run_replay(directory, name, turn) for name in (*LOGS, CUT)))
    return dict(zip((*LOGS, CUT), ran, strict=True))


@pytest.mark.parametrize("name", LOGS)
async def test_a_replay_ends_well_with_one_json_document_as_design_8_has_it(replays: dict[str, Ran], name: str) -> None:
    ran = replays[name]
    assert ran.code == 0, ran.err
    assert len(ran.out.splitlines()) == 1
    assert "Traceback" not in ran.err
    result = ran.result
    open_ended = {"variants"} if name == OPEN_ENDED else set()
    assert result.keys() == {"log", "devices", "facts", "leases"} | open_ended
    assert result["log"] == str(ran.log)
    variant = {"variant"} if name == OPEN_ENDED else set()
    for device in result["devices"]:
        assert device.keys() == {"function", "kernel", "holdfast", "why"} | variant
        assert {device["kernel"], device["holdfast"]} <= VERDICTS
        assert device["why"]
    lines = ran.log.read_text().splitlines()
    for fact in result["facts"]:
        assert fact.keys() - variant == {"what", "from", "line"}
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
    assert replays["03.txt"].fates == {"0004:01:00.0": ("lost", "kept"), "0004:01:00.1": ("lost", "kept")}
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


async def test_p3_scenario_2_and_3_log_01_is_kept_on_a_firmware_first_host(replays: dict[str, Ran]) -> None:
    """That kernel recovered the drive, and then removed it for the presence change that containment had made."""
    ran = replays["01.txt"]
    assert ran.fates == {"0000:ab:00.0": ("lost", "kept")}
    assert ran.facts("log")["the host is firmware first: containment is reported by EDR"] == 2
    (lease,) = ran.result["leases"]
    assert (lease["port"], lease["cause"]) == ("0000:a9:10.0", "edr")


async def test_p3_scenario_5_log_07_four_drives_are_kept_and_what_never_came_back_failed(
    replays: dict[str, Ran],
) -> None:
    ran = replays["07.txt"]
    drives = ("0000:69:00.0", "0000:6a:00.0", "0000:6c:00.0", "0000:6e:00.0")
    assert ran.fates == {**dict.fromkeys(drives, ("lost", "kept")), "0000:79:00.0": ("failed", "failed")}
    (lease,) = ran.result["leases"]
    assert (lease["port"], lease["cause"]) == ("0000:64:02.0", "edr")
    assert {function for function, result in lease["outcomes"].items() if result == "failed"} == {
        "0000:71:00.0", "0000:72:1c.0", "0000:77:00.0", "0000:78:00.0", "0000:79:00.0",
    }  # fmt: skip
    inferred, assumed = ran.facts("inferred"), ran.facts("assumed")
    assert "below 0000:68:14.0: 0000:6e:00.0" in inferred
    assert inferred["mpt3sas_cm0 is below 0000:66:08.0: it read all ones after the reset"] == 29
    assert inferred["what strikes here is a consequence of what the kernel did"] == 32
    assert assumed["rp_pio_status is 0 and does not tell which request failed: memory_timeout"] == 4


async def test_p8_scenario_18_log_08_is_removed_and_that_its_card_is_out_is_assumed(replays: dict[str, Ran]) -> None:
    ran = replays["08.txt"]
    assert ran.fates == {"0000:04:00.0": ("removed", "removed")}
    said = "the card below 0000:00:01.4 is out: no line tells of presence, PDS = 0 is taken"
    assert ran.facts("assumed")[said] == 7


async def test_p2_log_15_a_link_that_falls_after_each_training_ends_in_quarantine(replays: dict[str, Ran]) -> None:
    ran = replays["15.txt"]
    assert ran.fates == {"0000:01:00.0": ("failed", "quarantined")}
    assert "0000:00:00.0 is held down" in ran.result["devices"][0]["why"]
    assumed = ran.facts("assumed")
    assert assumed["the gap of 33.1 s before line 11 is compressed to 1 s"] == 11
    assert assumed["the link below 0000:00:00.0 falls 6 ms after it trained, every time from here on"] == 14
    first, *_, last = ran.result["leases"]
    assert first["outcomes"]["0000:01:00.0"] == "recovered"
    assert last["outcomes"]["0000:01:00.0"] == "quarantined"


async def test_log_18_is_run_both_ways_since_it_does_not_tell_whether_the_link_returned(
    replays: dict[str, Ran],
) -> None:
    """It returns: rebound, since no driver has callbacks. It stays down: failed."""
    result = replays[OPEN_ENDED].result
    assert result["variants"] == ["returns", "gone"]
    assert [(one["variant"], one["holdfast"]) for one in result["devices"]] == [
        ("returns", "rebound"),
        ("gone", "failed"),
    ]
    assert {fact["variant"]: fact["from"] for fact in result["facts"] if "the log does not say" in fact["what"]} == {
        "returns": "assumed",
        "gone": "assumed",
    }
    assert {lease["variant"] for lease in result["leases"]} == {"returns", "gone"}


async def test_a_log_cut_in_the_middle_of_a_line_is_replayed_as_far_as_it_goes_and_that_is_said(
    replays: dict[str, Ran],
) -> None:
    ran = replays[CUT]
    assert ran.code == 0, ran.err
    assert "Traceback" not in ran.err
    assert f"{ran.log}: line 7 is skipped: it ends within its timestamp" in ran.err
    assert f"{ran.log}: line 8 is skipped: it ends within an address" in ran.err
    assert {device["holdfast"] for device in ran.result["devices"]} == {"kept"}
