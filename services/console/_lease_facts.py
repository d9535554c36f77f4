"""Which facts tell of one lease, among all that a host has on record. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final

from shared.protocol.facts import Fact, What

from ._exit import ExitCode, Failure
from ._names import lease_named

AROUND_S: Final = 1.0  # facts of the same ports count that came so long before the lease, or after it

# A lease is over when all that began under it has ended: as the fabric's lease, as the coordinator's recovery.
_BEGINS: Final = {What.LEASE_OPENED: "lease", What.RECOVERY_STARTED: "recovery", What.RECOVERY_WAITING: "recovery"}
_ENDS: Final = {What.LEASE_CLOSED: "lease", What.LEASE_ABSORBED: "lease", What.RECOVERY_CLOSED: "recovery"}

# What of a port's facts that name no lease can have led to one, and what can follow from one.
_LEADS: Final = frozenset(
    {
        What.LINK_DOWN,
        What.SLOT_DEFERRED,
        What.SLOT_BUTTON,
        What.SLOT_POWER_FAULT,
        What.SLOT_LATCH,
        What.ERROR_CORRECTABLE,
        What.ERROR_NONFATAL,
        What.ERROR_FATAL,
        What.CONTAINMENT_ENTERED,
    }
)
_FOLLOWS: Final = frozenset(
    {
        What.LINK_UP,
        What.SLOT_STATE,
        What.SLOT_IGNORED,
        What.DEVICE_ADDED,
        What.DEVICE_REMOVED,
        What.DEVICE_KEPT,
        What.DEVICE_REBOUND,
        What.DEVICE_CHANNEL,
        What.ERROR_IGNORED,
        What.CONTAINMENT_IGNORED,
    }
)

# Where a fact of another lease names this one: it was absorbed by it, waits behind it, or ran inside it.
_MENTIONS: Final = ("heir", "absorbed_by", "behind", "inside")


def last_recovery(facts: Iterable[Fact]) -> str | None:
    """Return the lease of the recovery that started last; None if there was none."""
    started = [fact.lease for fact in facts if fact.what is What.RECOVERY_STARTED and fact.lease is not None]
    return started[-1] if started else None


def chosen(facts: Sequence[Fact], text: str | None, host: str) -> str:
    """Return the lease that `text` names, by its id or a part of it; without a text that of the last recovery.

    Raises Failure where there is none, or more than one.
    """
    if text is None:
        last = last_recovery(facts)
        if last is None:
            raise Failure(ExitCode.ABSENT, f"host {host!r} has no recovery on record; see `holdfast history`")
        return last
    known = (fact.lease for fact in facts if fact.lease is not None)
    nobody = f"host {host!r}: no fact names a lease {text!r}; see `holdfast history`"
    return lease_named(text, known, nobody=nobody)


def tells_of(fact: Fact, lease: str) -> bool:
    """Tell whether a fact names the lease, as its own or beside its own."""
    return fact.lease == lease or any(fact.data.get(name) == lease for name in _MENTIONS)


def places(fact: Fact) -> frozenset[str]:
    """Return the ports and functions that a fact is about."""
    functions = fact.data.get("functions")
    return frozenset({str(fact.port), *(map(str, functions) if isinstance(functions, list | tuple) else ())})


def concerned(facts: Sequence[Fact], own: Sequence[Fact]) -> list[Fact]:
    """Add to a lease's facts what was said of its ports and functions around that time without naming a lease.

    Ordered by their stamps: a service that had no bus stores what it said later than the others.
    """
    where = frozenset[str]().union(*(places(fact) for fact in own))
    first, last = min(fact.at for fact in own), max(fact.at for fact in own)
    near = [fact for fact in facts if is_around(fact, where, first, last) and not any(fact is one for one in own)]
    return sorted([*own, *near], key=lambda fact: fact.at)


def is_around(fact: Fact, where: frozenset[str], first: datetime, last: datetime) -> bool:
    """Tell whether a fact without a lease belongs to one that was open at `where` from `first` to `last`."""
    if fact.lease is not None or str(fact.port) not in where:
        return False
    before, after = (first - fact.at).total_seconds(), (fact.at - last).total_seconds()
    if before > 0:
        return before <= AROUND_S and fact.what in _LEADS
    return after <= 0 or (after <= AROUND_S and fact.what in _FOLLOWS)


def is_over(facts: Iterable[Fact], lease: str) -> bool:
    """Tell whether the facts show the end of the lease."""
    own = [fact.what for fact in facts if fact.lease == lease]
    begun = {_BEGINS[what] for what in own if what in _BEGINS}
    ended = {_ENDS[what] for what in own if what in _ENDS}
    return bool(ended) and begun <= ended
