"""Which facts count for what: one table. The figures agree with the facts because nothing else is counted.

Every label has a list of all that it can be, and what is not in it is `other`; so the number of series has a bound,
whatever a fact says. Only the errors' functions and names come from the hardware, which has a bound of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import product
from typing import Any, Final

import msgspec

from shared.protocol import Reason
from shared.protocol.fabric import Result
from shared.protocol.facts import Fact, Ignored, What
from shared.protocol.records import Verdict
from shared.protocol.requests import Cause

OTHER: Final = "other"
NONE: Final = "none"  # no function was concerned: a slot operation, or a cause that was gone when its turn came
ABSORBED: Final = "absorbed"  # a recovery above has taken it over


class Label(msgspec.Struct, frozen=True):
    """One label: its name, all that it can be beside `other`, and where a fact says it."""

    name: str
    values: tuple[str, ...]
    of: Callable[[Fact], Any]

    def value(self, fact: Fact) -> str:
        """Return what the fact says, if it is one of the values."""
        said = str(self.of(fact))
        return said if said in self.values else OTHER


class Measure(msgspec.Struct, frozen=True, kw_only=True):
    """A metric made of facts, and its labels beside service and host."""

    name: str
    about: str
    labels: tuple[Label, ...] = ()

    @property
    def label_names(self) -> tuple[str, ...]:
        """The names of its labels."""
        return tuple(label.name for label in self.labels)

    def label_values(self, fact: Fact) -> tuple[str, ...]:
        """Return the labels under which a fact counts."""
        return tuple(label.value(fact) for label in self.labels)

    def series(self) -> Iterable[tuple[str, ...]]:
        """Return all combinations of labels that are expected."""
        return product(*(label.values for label in self.labels))


class Counter(Measure, frozen=True, kw_only=True):
    """Counts the facts of these kinds for which `provided` holds."""

    whats: frozenset[What]
    provided: Callable[[Fact], bool] = lambda _: True

    def counts(self, fact: Fact) -> bool:
        """Tell whether this fact counts."""
        return fact.what in self.whats and self.provided(fact)


class Durations(Measure, frozen=True, kw_only=True):
    """Distributes what the facts of one kind say in one field, in seconds."""

    what: What
    field: str
    buckets: tuple[float, ...]

    def seconds(self, fact: Fact) -> float | None:
        """Return what the fact says, if it says so."""
        said = fact.data.get(self.field) if fact.what is self.what else None
        return said if isinstance(said, int | float) else None


def worst(ranking: Iterable[str], found: Iterable[str]) -> str:
    """Return the first of the ranking that is among those found; `none` if nothing was."""
    seen = frozenset(found)
    return next((one for one in ranking if one in seen), OTHER if seen else NONE)


_RESULTS: Final = (Result.QUARANTINED, Result.FAILED, Result.REMOVED, Result.REPLACED, Result.RECOVERED)
_VERDICTS: Final = (
    Verdict.QUARANTINED,
    Verdict.FAILED,
    Verdict.REMOVED,
    Verdict.REPLACED,
    Verdict.REBOUND,
    Verdict.KEPT,
)


def _lease_outcome(fact: Fact) -> str:
    return worst(_RESULTS, (said[0] for said in _table(fact, "outcomes").values()))


def _recovery_outcome(fact: Fact) -> str:
    return ABSORBED if fact.data.get("absorbed_by") else worst(_VERDICTS, _table(fact, "verdicts").values())


def _table(fact: Fact, field: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = fact.data.get(field, {})
    return found


_CAUSE: Final = Label("cause", tuple(Cause), lambda fact: fact.cause)

FACTS: Final = Measure(
    name="holdfast_facts",
    about="Facts stated, by kind.",
    labels=(Label("what", tuple(What), lambda fact: fact.what),),
)
COUNTERS: Final = (
    Counter(
        name="holdfast_leases_closed",
        about="Leases closed, by cause, and by the worst outcome of a function.",
        whats=frozenset({What.LEASE_CLOSED}),
        labels=(_CAUSE, Label("outcome", (*_RESULTS, NONE), _lease_outcome)),
    ),
    Counter(
        name="holdfast_leases_adopted",
        about="Leases taken over from another holder, dead or stopped.",
        whats=frozenset({What.LEASE_ADOPTED}),
        labels=(_CAUSE,),
    ),
    Counter(
        name="holdfast_leases_expired",
        about="Leases taken over from a holder that had been silent for longer than it was allowed.",
        whats=frozenset({What.LEASE_ADOPTED}),
        labels=(_CAUSE,),
        provided=lambda fact: fact.data.get("expired") is True,
    ),
    Counter(
        name="holdfast_leases_broken",
        about="Leases ended by an operator's word.",
        whats=frozenset({What.RECOVERY_BROKEN}),
    ),
    Counter(
        name="holdfast_recoveries",
        about="Recoveries, resets and holds that have ended, by cause, and by the worst verdict on a function.",
        whats=frozenset({What.RECOVERY_CLOSED}),
        labels=(_CAUSE, Label("outcome", (*_VERDICTS, ABSORBED, NONE), _recovery_outcome)),
    ),
    Counter(
        name="holdfast_recoveries_degraded",
        about="Recoveries, resets and holds after which a link is slower or narrower than before, by cause.",
        whats=frozenset({What.RECOVERY_CLOSED}),
        labels=(_CAUSE,),
        provided=lambda fact: bool(fact.data.get("degraded")),
    ),
    Counter(
        name="holdfast_fence_refusals",
        about="Commands that the fabric refused, by reason.",
        whats=frozenset({What.LEASE_REFUSED}),
        labels=(Label("reason", tuple(Reason), lambda fact: fact.data.get("reason")),),
    ),
    Counter(
        name="holdfast_events_ignored",
        about="Events and errors about which nothing was done, by reason.",
        whats=frozenset({What.SLOT_IGNORED, What.ERROR_IGNORED, What.CONTAINMENT_IGNORED}),
        labels=(Label("reason", tuple(Ignored), lambda fact: fact.data.get("reason")),),
    ),
)

# A link takes tenths of a second; a device may take 60 s to be ready, and each callback of a driver as well.
RECOVERY_DURATION: Final = Durations(
    name="holdfast_recovery_duration_seconds",
    about="How long recoveries, resets and holds took under their lease, by cause.",
    what=What.RECOVERY_CLOSED,
    field="took_s",
    labels=(_CAUSE,),
    buckets=(0.1, 0.25, 0.5, 1, 2, 3, 5, 10, 20, 30, 60, 120, 300),
)


class Errors(msgspec.Struct, frozen=True):
    """The errors' counter: its labels are what the hardware says."""

    name: str
    about: str
    label_names: tuple[str, str, str]


ERRORS: Final = Errors(
    "holdfast_errors",
    "Errors that functions reported, by severity and the kernel's short name.",
    ("function", "severity", "error"),
)
_SEVERITIES: Final[Mapping[What, str]] = {
    What.ERROR_CORRECTABLE: "correctable",
    What.ERROR_NONFATAL: "nonfatal",
    What.ERROR_FATAL: "fatal",
}


class ErrorCounts:
    """Counts the errors of one tenure.

    Not every error is told, but none is lost: facts with `counts` say the totals since the tenure began, by name.
    Facts without speak of one error of each name.
    """

    def __init__(self) -> None:
        self._told: dict[tuple[str, str, str], int] = {}

    def new(self, fact: Fact) -> Iterator[tuple[tuple[str, str, str], int]]:
        """Yield by how much this fact raises each count, by function, severity and name."""
        severity = _SEVERITIES.get(fact.what)
        if severity is None:
            return
        function = str(fact.data.get("function", fact.port))
        counts = fact.data.get("counts")
        if counts is None:
            yield from (((function, severity, name), 1) for name in fact.data.get("names", ()))
            return
        for name, total in counts.items():
            key = (function, severity, name)
            yield key, total - self._told.get(key, 0)
            self._told[key] = total
