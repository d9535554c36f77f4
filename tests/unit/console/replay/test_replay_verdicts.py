"""What became of each device: two decision tables, walked row by row."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from services.console import kernel_log
from services.console.replay._plan import plans
from services.console.replay._verdicts import Fate, holdfast_fate, kernel_fate, kernel_marks
from shared.pcie import Address, Identity
from shared.protocol.facts import Fact, What
from shared.protocol.records import Device, Verdict
from tests.unit.console.logs import DATA, DMESG

PORT = Address.parse("0000:00:01.0")
FUNCTION = Address.parse("0000:01:00.0")
CARD = Identity(vendor=0x144D, device=0xA824, class_code=0x010802, revision=0, subsystem=0, serial=1)
OTHER = Identity(vendor=0x144D, device=0xA824, class_code=0x010802, revision=0, subsystem=0, serial=2)
BEGIN = datetime(2024, 11, 22, tzinfo=UTC)


def device(
    generation: int = 1, *, present: bool = True, identity: Identity = CARD, rebound: tuple[str, ...] = ()
) -> Device:
    return Device(
        function=FUNCTION, port=PORT, identity=identity, generation=generation, present=present, rebound=rebound
    )


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
        (device(), device(2, rebound=("L",)), Verdict.REBOUND, Fate.REBOUND),
        (device(2, rebound=("L",)), device(4, rebound=("L", "M", "N")), Verdict.REBOUND, Fate.REBOUND),
        (device(), device(3, rebound=("L",)), Verdict.REBOUND, Fate.LOST),
        (device(2, rebound=("L",)), device(3, rebound=("L",)), Verdict.REBOUND, Fate.LOST),
        (device(), device(), Verdict.QUARANTINED, Fate.QUARANTINED),
        (None, None, Verdict.QUARANTINED, Fate.QUARANTINED),
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
    replay = plans(log)[0]
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


def test_scenario_5_the_nested_slots_of_log_07_were_all_lost_and_what_never_came_back_failed() -> None:
    fates = {function: fate for function, (fate, _) in kernel(DMESG / "07.txt").items()}

    assert fates.pop("0000:79:00.0") is Fate.FAILED
    assert list(fates.values()) == [Fate.LOST] * 4


def test_a_driver_that_was_bound_anew_is_told_as_that() -> None:
    _, why = holdfast_fate(FUNCTION, device(), device(2, rebound=("L",)), said(Verdict.REBOUND))

    assert why == "its driver was bound anew once, and nothing else changed"


def test_where_the_log_ends_before_the_kernel_decides_its_verdict_is_unknown() -> None:
    assert kernel(DMESG / "18.txt")["0000:02:00.0"] == (Fate.UNKNOWN, "the log does not say")


def test_a_recovery_without_a_removal_was_kept_or_failed_as_the_kernel_says() -> None:
    start = "pcieport 0000:00:01.0: DPC: containment event, status:0x1f01 source:0x0000\nnvme 0000:01:00.0: x\n"
    for word, fate in (("successful", Fate.KEPT), ("failed", Fate.FAILED)):
        log = kernel_log.parse(f"{start}pcieport 0000:00:01.0: AER: device recovery {word}\n", "short.log")
        assert kernel_fate(log, FUNCTION, (PORT,))[0] is fate


def test_a_quarantined_device_says_which_port_is_held_down_and_why_and_passes_over_who_is_not_there() -> None:
    facts = (
        fact(What.RECOVERY_VOTE, function=str(FUNCTION), step="error_detected", vote="none", driver=None),
        fact(What.QUARANTINE_ENTERED, why="its link does not stay up: 3 times", held_by="link_disable"),
        *said(Verdict.QUARANTINED),
    )

    fate, why = holdfast_fate(FUNCTION, device(), device(), facts)

    assert (fate, why) == (Fate.QUARANTINED, f"{PORT} is held down: its link does not stay up: 3 times")


def test_what_the_kernel_did_is_drawn_from_the_failure_on_that_the_last_recovery_is_about() -> None:
    """Log 15: the second link down was at 140.167, the failed recovery that follows it ended at 141.651."""
    assert kernel_marks(kernel_log.load(DMESG / "15.txt")) == ((1.484, "recovery failed"),)
    assert kernel_marks(kernel_log.load(DATA / "03.txt"))[0] == (4.189, "Link Down")
