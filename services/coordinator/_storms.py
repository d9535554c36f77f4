"""When trying again is over: failures in a row under one lease, and recoveries of one port in a minute. Pure.

A port that does not come up is reset again after 1 and 2 s inside the same lease, so that hotplug never sees the
attempts; the third failure, or too many recoveries in a row, ends in quarantine (DESIGN 4, Storms). What is counted is
in the journal, so a successor goes on counting.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from shared.pcie import Address

FAILURES_MAX: Final = 3  # in a row; the last one is not followed by another try
_DELAYS_S: Final = (1.0, 2.0)  # before a port is reset again: after its first failure, after its second


class Round(msgspec.Struct, frozen=True):
    """What follows from one more time that ports were brought up, or not."""

    failures: dict[str, int] = msgspec.field(default_factory=dict)  # port -> how often it has failed
    retrying: tuple[Address, ...] = ()
    quarantine: tuple[Address, ...] = ()


def judge_failures(before: Mapping[str, int], failed: Iterable[Address]) -> Round:
    """Count the ports that failed now. Whoever may be tried again goes first; then those without a try left are given up.

    Counts only grow, so this ends.
    """
    ports = tuple(failed)
    failures = {**before, **{str(port): before.get(str(port), 0) + 1 for port in ports}}
    retrying = tuple(port for port in ports if failures[str(port)] < FAILURES_MAX)
    return Round(failures, retrying, () if retrying else ports)


def delay_s(failures: Mapping[str, int], retrying: Iterable[Address]) -> float:
    """Return how many seconds to wait before these ports are reset again."""
    return _DELAYS_S[min(max(failures[str(port)] for port in retrying), len(_DELAYS_S)) - 1]


class Storms:
    """Recoveries begun lately, by port. Times are seconds on one monotonic clock, that of the caller."""

    def __init__(self, recoveries_max: int, within_s: float) -> None:
        self._max = recoveries_max
        self._within_s = within_s
        self._begun: dict[Address, tuple[float, ...]] = {}

    def is_over(self, port: Address, now: float) -> bool:
        """Tell whether one more recovery of the port would be one too many."""
        return len(self._lately(port, now)) >= self._max

    def begin(self, port: Address, now: float) -> tuple[float, ...]:
        """Note that a recovery begins; return the ages in seconds of all that count, its own (0) first."""
        self._begun[port] = (now, *self._lately(port, now))
        return tuple(round(now - then, 3) for then in self._begun[port])

    def take_over(self, port: Address, ages: Sequence[float], now: float) -> None:
        """Go on counting where a dead coordinator was; `ages` in seconds, as of now."""
        if ages and port not in self._begun:
            self._begun[port] = tuple(now - age for age in ages)

    def forget(self, port: Address) -> None:
        """Begin anew: somebody has seen to the port."""
        self._begun.pop(port, None)

    def _lately(self, port: Address, now: float) -> tuple[float, ...]:
        return tuple(then for then in self._begun.get(port, ()) if now - then < self._within_s)
