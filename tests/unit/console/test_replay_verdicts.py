"""What became of each device: two decision tables, walked row by row."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from services.console import _kernel_log as kernel_log
from services.console._replay_plan import plan
from services.console._verdicts import Fate, holdfast_fate, kernel_fate
from shared.pcie import Address, Identity
from shared.protocol.facts import Fact, What
from shared.protocol.records import Device, Verdict

DATA = Path(kernel_log.__file__).parent / "data"
DMESG = Path(__file__).parent / "dmesg"
PORT = Address.parse("0000:00:01.0")
FUNCTION = Address.parse("0000:01:00.0")
CARD = Identity(vendor=0x144D, device=0xA824, class_code=0x010802, revision=0, subsystem=0, serial=1)
OTHER = Identity(vendor=0x144D, device=0xA824, class_code=0x010802, revision=0, subsystem=0, serial=2)
BEGIN = datetime(2024, 11, 22, tzinfo=UTC)


def device(generation: int = 1, *, present: bool = True, identity: Identity = CARD) -> Device:
    return Device(function=FUNCTION, port=PORT, identity=identity, generation=generation, present=present)


def fact(what: What, at_s: float = 0.0, **data: Any) -> Fact:
    return Fact(
        what=what, host="lab", port=PORT, service="x", seq=1, at=BEGIN + timedelta(seconds=at_s), lease="L", data=data
    )


def said(verdict: Verdict | None) -> tuple[Fact, ...]:
    return () if verdict is None else (fact(What.RECOVERY_CLOSED, verdicts={str(FUNCTION): str(verdict)}),)


@pytest.mark.parametrize(
    ("before", "after", "verdict", "fate"),
    [
        (None, device(), None, Fate.ADDED),
        (device(present=False), device(2), None, Fate.ADDED),
        (device(), None, Verdict.KEPT, Fate.LOST),
        (device(), device(present=False), Verdict.KEPT, Fate.LOST),
        (device(), device(present=False), Verdict.REBOUND, Fate.LOST),
        (device(), device(present=False), Verdict.FAILED, Fate.FAILED),
        (device(), device(present=False), Verdict.REMOVED, Fate.REMOVED),
        (device(), device(present=False), None, Fate.REMOVED),
        (device(), device(2, identity=OTHER), Verdict.REPLACED, Fate.REPLACED),
        (device(), device(2), Verdict.KEPT, Fate.LOST),
        (device(), device(), Verdict.KEPT, Fate.KEPT),
        (device(), device(), Verdict.REBOUND, Fate.REBOUND),
        (device(), device(), Verdict.FAILED, Fate.FAILED),
        (device(), device(), None, Fate.KEPT),
        (None, None, Verdict.KEPT, Fate.KEPT),
        (None, None, None, Fate.UNKNOWN),
    ],
)
def test_p3_holdfast_is_judged_by_the_registry_and_by_its_own_word(
    before: Device | None, after: Device | None, verdict: Verdict | None, fate: Fate
) -> None:
    assert holdfast_fate(FUNCTION, before, after, said(verdict))[0] is fate


def test_the_reason_names_generation_votes_and_how_long_hotplug_was_masked() -> None:
    facts = (
        fact(What.LEASE_MASKED, 0.1),
        fact(What.RECOVERY_VOTE, 2.5, function=str(FUNCTION), step="error_detected", vote="need_reset", took_s=2.365),
        fact(What.RECOVERY_VOTE, 4.9, function=str(FUNCTION), step="slot_reset", vote="recovered", took_s=0.0),
        fact(What.LEASE_UNMASKED, 5.1),
        *said(Verdict.KEPT),
    )

    _, why = holdfast_fate(FUNCTION, device(), device(), facts)

    assert why == (
        "the same identity, and generation 1 before and after; "
        "its driver: error_detected need_reset after 2.36 s, slot_reset recovered; hotplug was masked for 5.0 s"
    ).replace("2.36", f"{2.365:.2f}")


def test_a_device_that_hotplug_removed_after_a_failed_recovery_says_both() -> None:
    facts = (*said(Verdict.FAILED), fact(What.DEVICE_REMOVED, 4.0, function=str(FUNCTION), why="the link is down"))

    fate, why = holdfast_fate(FUNCTION, device(), device(present=False), facts)

    assert (fate, why) == (Fate.FAILED, "removed by hotplug: the link is down")


def kernel(path: Path) -> dict[str, tuple[Fate, str]]:
    log = kernel_log.load(path)
    replay = plan(log)
    return {str(function): kernel_fate(log, function, replay.above[function]) for function in replay.functions}


def test_scenario_38_the_kernel_of_log_03_lost_both_functions_after_its_four_seconds() -> None:
    verdicts = kernel(DATA / "03.txt")

    assert verdicts["0004:01:00.0"] == (
        Fate.LOST,
        "hotplug gave up (Link Down) 4.2 s after the error (line 21); removed (line 30); device recovery failed (line 32)",
    )
    assert verdicts["0004:01:00.1"] == (
        Fate.LOST,
        "hotplug gave up (Link Down) 4.2 s after the error (line 21); removed (line 29); device recovery failed (line 32)",
    )


def test_scenario_2_the_kernel_of_log_01_removed_what_it_had_recovered_and_added_it_again() -> None:
    fate, why = kernel(DATA / "01.txt")["0000:ab:00.0"]

    assert fate is Fate.LOST
    assert why.startswith("hotplug gave up (Card not present) 0.4 s after the error (line 19); removed (line 20)")
    assert why.endswith("device recovery successful (line 29); added again as nvme10 (line 43)")


def test_scenario_18_a_link_that_never_came_back_is_a_removal() -> None:
    assert kernel(DMESG / "08.txt")["0000:04:00.0"][0] is Fate.REMOVED


def test_nested_slots_of_log_07_were_all_lost() -> None:
    assert {fate for fate, _ in kernel(DMESG / "07.txt").values()} == {Fate.LOST}


def test_where_the_log_ends_before_the_kernel_decides_its_verdict_is_unknown() -> None:
    assert kernel(DMESG / "18.txt")["0000:02:00.0"] == (Fate.UNKNOWN, "the log does not say")


def test_a_recovery_without_a_removal_was_kept_or_failed_as_the_kernel_says() -> None:
    start = "pcieport 0000:00:01.0: DPC: containment event, status:0x1f01 source:0x0000\nnvme 0000:01:00.0: x\n"
    for word, fate in (("successful", Fate.KEPT), ("failed", Fate.FAILED)):
        log = kernel_log.parse(f"{start}pcieport 0000:00:01.0: AER: device recovery {word}\n", "short.log")
        assert kernel_fate(log, FUNCTION, (PORT,))[0] is fate
