"""The story that `holdfast logs` tells: who said it, when since the start, in which step, and why."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.console._logs import Story, Told
from services.console._story import account, why
from shared.pcie import Address
from shared.protocol.facts import Fact, What

PORT = Address.parse("0000:00:01.0")
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


def fact(
    what: What, at_s: float = 0.0, *, lease: str | None = "r-1", changed: tuple[str, str] | None = None, **data: Any
) -> Fact:
    data |= {} if changed is None else {"from": changed[0], "to": changed[1]}
    at = BEGIN + timedelta(seconds=at_s)
    return Fact(
        what=what, host="lab", port=PORT, service="coordinator", seq=1, at=at, lease=lease, cause="dpc", data=data
    )


BEGUN = (
    fact(What.CONTAINMENT_ENTERED, 0.0, lease=None, reason="err_fatal"),
    fact(What.LEASE_OPENED, 0.5),
    fact(What.RECOVERY_STARTED, 0.6),
    fact(What.RECOVERY_STEP, 0.7, step="reset"),
    fact(What.RECOVERY_PROGRESS, 0.8, step="reset", skipped="containment was the reset"),
)


def story() -> tuple[Story, list[Told]]:
    begun = Story("r-1", BEGUN)
    return begun, list(begun.recorded())


def test_time_is_counted_from_what_led_to_the_lease() -> None:
    assert [told.since_s for told in story()[1]] == [0.0, 0.5, 0.6, 0.7, 0.8]


def test_every_line_names_the_step_under_way() -> None:
    assert [told.step for told in story()[1]] == [None, None, None, "reset", "reset"]


def test_a_line_says_why_if_its_fact_does() -> None:
    assert [told.why for told in story()[1]] == ["err_fatal", None, None, None, "containment was the reset"]


def test_for_programs_it_is_the_fact_as_history_has_it_with_its_place_in_the_story() -> None:
    last = story()[1][-1].as_json()
    assert last["what"] == "recovery.progress"
    assert last["data"] == {"step": "reset", "skipped": "containment was the reset"}
    assert (last["since_s"], last["step"], last["why"]) == (0.8, "reset", "containment was the reset")
    assert last["text"] == "0000:00:01.0: no reset: containment was the reset"


def test_what_comes_later_goes_on_where_the_record_ended() -> None:
    begun, _ = story()
    later = begun.hear(fact(What.LEASE_EXECUTED, 0.9, n=1, operations=[]))
    assert later is not None
    assert (later.since_s, later.step) == (0.9, "reset")


def test_what_comes_later_and_belongs_elsewhere_is_passed_over() -> None:
    begun, _ = story()
    assert begun.hear(fact(What.LEASE_OPENED, 0.9, lease="r-2")) is None
    assert begun.hear(fact(What.DEVICE_KEPT, 0.9, lease="r-2", behind="r-3")) is None


def test_a_fact_without_a_lease_is_told_while_the_lease_is_open_and_shortly_after_it() -> None:
    begun, _ = story()
    assert begun.hear(fact(What.SLOT_DEFERRED, 30.0, lease=None)) is not None
    begun.hear(fact(What.LEASE_CLOSED, 31.0))
    begun.hear(fact(What.RECOVERY_CLOSED, 31.1))
    assert begun.hear(fact(What.DEVICE_CHANNEL, 31.2, lease=None)) is not None
    assert begun.hear(fact(What.DEVICE_CHANNEL, 33.0, lease=None)) is None
    assert begun.hear(fact(What.CONTAINMENT_ENTERED, 31.3, lease=None)) is None


def test_a_recovery_that_another_one_absorbed_is_told_in_both_stories() -> None:
    absorbed = fact(What.LEASE_ABSORBED, 0.5, lease="slot-1", heir="r-1")
    assert [told.fact for told in Story("r-1", [*BEGUN, absorbed]).recorded()].count(absorbed) == 1
    assert Story("slot-1", [absorbed]).is_over


def test_the_story_is_over_with_the_lease_and_has_no_step_after_it() -> None:
    begun, _ = story()
    ends = (fact(What.LEASE_CLOSED, 1.0), fact(What.RECOVERY_CLOSED, 1.1, verdicts={}), fact(What.DEVICE_KEPT, 1.2))
    heard = [(begun.hear(one), begun.is_over) for one in ends]
    assert [(told.step if told else "not told", over) for told, over in heard] == [
        ("reset", False), ("reset", True), (None, True),
    ]  # fmt: skip


# --- One fact of it ---


@pytest.mark.parametrize("what", list(What))
@pytest.mark.parametrize("data", [{}, {"why": "because"}, {"waiting": 1, "operations": [1], "slots": [2], "names": 3}])
def test_p10_every_fact_is_told_whatever_it_carries(what: What, data: dict[str, Any]) -> None:
    told = account(fact(what, **data))
    assert told
    assert "because" in told or "why" not in data


@pytest.mark.parametrize(
    ("told", "text"),
    [
        (fact(What.LEASE_EXECUTED, n=3, operations=[
            {"verb": "write", "function": "0000:00:01.0", "offset": 0x158, "width": 2, "value": 9},
            {"verb": "write", "function": "0000:01:00.0", "offset": 4, "width": 2, "value": None}]),
         "0000:00:01.0 0x158 = 0x9, 0000:01:00.0 0x4 = no answer"),
        (fact(What.LEASE_EXECUTED, n=4, operations=[{"verb": "enumerate", "function": "0000:00:01.0", "value": 2}]),
         "2 functions found below 0000:00:01.0"),
        (fact(What.LEASE_ACKNOWLEDGED, verb="write", function="0000:00:01.0", offset=16, width=4, value=1),
         "0000:00:01.0 0x10 = 0x1"),
        (fact(What.LEASE_REFUSED, command="open", role="hotplug", reason="held", why="recovery r-1 comes first"),
         "0000:00:01.0: open of hotplug refused: recovery r-1 comes first"),
        (fact(What.LEASE_ABSORBED, lease="slot-1", heir="r-1"), "0000:00:01.0: lease slot-1 absorbed by r-1"),
        (fact(What.DEVICE_CHANNEL, function="0000:01:00.0", changed=("normal", "frozen"), why="a lease covers it"),
         "0000:01:00.0: channel normal → frozen: a lease covers it"),
        (fact(What.RECOVERY_PROGRESS, step="ready", waiting=["0000:01:00.0"], waited_s=1.001),
         "0000:00:01.0: waits for 0000:01:00.0, 1.0 s so far"),
        (fact(What.RECOVERY_PROGRESS, step="reset", method="flr"), "0000:00:01.0: method flr"),
        (fact(What.SLOT_STATE, changed=("on", "power_off"), why="the link is down"),
         "0000:00:01.0: slot on → power off: the link is down"),
        (fact(What.RECOVERY_ESCALATED, because="need_reset"), "0000:00:01.0: recovery goes further: need reset"),
        (fact(What.LEASE_UNMASKED, because="unchanged, and nothing is latched"),
         "0000:00:01.0: hotplug interrupts as they were found: unchanged, and nothing is latched"),
        (fact(What.SLOT_RECONCILED, slot=4, set=2), "0000:00:01.0: slot reconciled  slot=4  set=2"),
    ],
)  # fmt: skip
def test_what_a_watcher_is_spared_is_told_in_full(told: Fact, text: str) -> None:
    assert account(told) == text


def test_the_most_telling_reason_is_given() -> None:
    assert why(fact(What.ERROR_IGNORED, reason="stale", why="older than the service")) == "older than the service"
    assert why(fact(What.LEASE_OPENED)) is None


def test_errors_that_were_latched_are_told_by_name() -> None:
    told = account(
        fact(What.RECOVERY_ERRORS, uncorrectable=0x20, correctable=0, names=["SDES"], reports=[], cleared={})
    )
    assert told == f"{PORT}: latched errors read and cleared: SDES"
