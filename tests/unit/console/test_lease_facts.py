"""Which facts tell of one lease: whatever it is called, and before it was called anything."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.console._exit import ExitCode, Failure
from services.console._lease_facts import chosen, concerned, is_over, last_recovery, tells_of
from shared.pcie import Address
from shared.protocol.facts import Fact, What

PORT = Address.parse("0000:00:01.0")
FAR = Address.parse("0000:7f:00.0")
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
LEASE = "r-0000-00-01-0-7d6ce8cb-1"
LATER = "r-0000-00-01-0-7d6ce8cb-10"
SLOT = "slot-0000-00-01-0-0d949c70-2"


def fact(what: What, at_s: float = 0.0, *, lease: str | None = LEASE, port: Address = PORT, **data: Any) -> Fact:
    at = BEGIN + timedelta(seconds=at_s)
    return Fact(what=what, host="lab", port=port, service="x", seq=1, at=at, lease=lease, data=data)


STORY = (
    fact(What.LEASE_OPENED, lease=SLOT),
    fact(What.RECOVERY_STARTED),
    fact(What.RECOVERY_STARTED, lease=LATER),
)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        (LEASE, LEASE),
        (LATER, LATER),
        (SLOT, SLOT),
        ("slot-", SLOT),
        ("cb-10", LATER),
        ("0d949c70", SLOT),
        (None, LATER),
    ],
)
def test_a_lease_is_named_by_its_id_by_a_part_of_it_or_as_the_last_recovery(text: str | None, meant: str) -> None:
    assert chosen(STORY, text, "lab") == meant


def test_an_id_that_is_the_beginning_of_another_is_no_ambiguity() -> None:
    assert LATER.startswith(LEASE)
    assert chosen(STORY, LEASE, "lab") == LEASE


@pytest.mark.parametrize("text", ["7d6ce8cb", "", "-"])
def test_a_part_of_several_is_a_usage_error_that_names_them(text: str) -> None:
    with pytest.raises(Failure, match=f"ambiguous: .*{LEASE}, {LATER}; name more of it") as failed:
        chosen(STORY, text, "lab")
    assert failed.value.code is ExitCode.USAGE


def test_of_very_many_the_last_ones_are_named() -> None:
    many = [fact(What.LEASE_OPENED, lease=f"slot-{number}-") for number in range(12)]
    with pytest.raises(Failure, match=r"ambiguous: slot-7-, slot-8-, .*slot-11- and 7 older ones"):
        chosen(many, "slot", "lab")


@pytest.mark.parametrize(("facts", "text"), [(STORY, "r-nobody"), ((), "r"), ((), None), (STORY[:1], None)])
def test_what_no_fact_names_is_absent(facts: tuple[Fact, ...], text: str | None) -> None:
    with pytest.raises(Failure, match=r"host 'lab'.*`holdfast history`") as failed:
        chosen(facts, text, "lab")
    assert failed.value.code is ExitCode.ABSENT


def test_the_last_recovery_is_the_one_that_started_last() -> None:
    assert last_recovery(STORY) == LATER
    assert last_recovery([]) is None


@pytest.mark.parametrize("name", ["heir", "absorbed_by", "behind", "inside"])
def test_a_fact_of_another_lease_that_names_this_one_tells_of_both(name: str) -> None:
    data: Any = {name: LEASE}
    other = fact(What.RECOVERY_CLOSED, lease=SLOT, **data)
    assert tells_of(other, LEASE)
    assert tells_of(other, SLOT)
    assert not tells_of(other, LATER)


def around(
    *others: Fact, own: tuple[Fact, ...] = (fact(What.LEASE_OPENED, 10.0), fact(What.LEASE_CLOSED, 20.0))
) -> list[Fact]:
    return [found for found in concerned([*others, *own], own) if found not in own]


def test_what_led_to_the_lease_belongs_to_it_though_nothing_had_a_name_yet() -> None:
    contained = fact(What.CONTAINMENT_ENTERED, 9.5, lease=None)
    assert around(contained) == [contained]
    assert around(fact(What.CONTAINMENT_ENTERED, 8.5, lease=None)) == []


def test_what_followed_from_it_belongs_to_it() -> None:
    freed = fact(What.DEVICE_CHANNEL, 20.5, lease=None)
    assert around(freed) == [freed]
    assert around(fact(What.DEVICE_CHANNEL, 21.5, lease=None)) == []


def test_neither_the_end_of_what_was_before_nor_the_beginning_of_what_comes_next() -> None:
    assert around(fact(What.DEVICE_CHANNEL, 9.9, lease=None), fact(What.CONTAINMENT_ENTERED, 20.1, lease=None)) == []


def test_in_between_everything_about_its_ports_belongs_to_it_and_nothing_about_others() -> None:
    here = fact(What.SLOT_DEFERRED, 15.0, lease=None)
    assert around(here, fact(What.SLOT_DEFERRED, 15.0, lease=None, port=FAR), fact(What.LINK_UP, 15.0, lease=SLOT)) == [
        here
    ]


def test_the_functions_that_a_lease_names_are_its_places_too() -> None:
    own = (fact(What.RECOVERY_STARTED, 10.0, functions=[str(FAR)]), fact(What.RECOVERY_CLOSED, 20.0))
    there = fact(What.LINK_DOWN, 15.0, lease=None, port=FAR)
    assert around(there, own=own) == [there]


def test_the_order_is_that_of_the_stamps_whoever_stored_first() -> None:
    """A service that had no bus stores what it said later than the others."""
    own = (fact(What.LEASE_CLOSED, 2.0), fact(What.LEASE_OPENED, 1.0))
    assert [found.what for found in concerned(own, own)] == [What.LEASE_OPENED, What.LEASE_CLOSED]


@pytest.mark.parametrize(
    ("whats", "over"),
    [
        ((What.LEASE_OPENED,), False),
        ((What.LEASE_OPENED, What.LEASE_CLOSED), True),
        ((What.LEASE_OPENED, What.LEASE_ABSORBED), True),
        ((What.LEASE_OPENED, What.RECOVERY_STARTED, What.RECOVERY_CLOSED), False),
        ((What.LEASE_OPENED, What.RECOVERY_STARTED, What.LEASE_CLOSED), False),  # the dead-man's: callbacks are owed
        ((What.LEASE_OPENED, What.RECOVERY_STARTED, What.LEASE_CLOSED, What.RECOVERY_CLOSED), True),
        ((What.RECOVERY_WAITING,), False),
        ((What.RECOVERY_WAITING, What.RECOVERY_CLOSED), True),
        ((What.LEASE_CLOSED,), True),  # its beginning is on record no more
        ((What.SLOT_DEFERRED,), False),
    ],
)
def test_a_lease_is_over_when_all_that_began_under_it_has_ended(whats: tuple[What, ...], over: bool) -> None:
    other = fact(What.LEASE_CLOSED, lease=SLOT, heir=LEASE)
    assert is_over([*map(fact, whats), other], LEASE) is over
