"""Errors counted per function and kind. Counting is never limited; how often it is told is (kernel: 10 per 5000 ms)."""

from __future__ import annotations

from collections import Counter, deque
from typing import Final

from shared.pcie import Address
from shared.pcie.errors import ErrorReport, Severity

BURST: Final = 10  # Linux 6.16, aer/correctable_ratelimit_burst
INTERVAL_S: Final = 5.0  # Linux 6.16, aer/correctable_ratelimit_interval_ms


class Counters:
    """Counts what every function reports."""

    def __init__(self) -> None:
        self._counts: dict[tuple[Address, Severity], Counter[str]] = {}

    def count(self, function: Address, report: ErrorReport) -> None:
        """Count every error of one report."""
        self._counts.setdefault((function, report.severity), Counter()).update(report.names)

    def totals(self, function: Address, severity: Severity) -> dict[str, int]:
        """Return how often each error of this severity was counted for the function, by short name."""
        return dict(self._counts.get((function, severity), ()))


class Limit:
    """At most BURST tellings in INTERVAL_S for each function; what is held back is owed, not lost."""

    def __init__(self) -> None:
        self._told: dict[Address, deque[float]] = {}
        self._owed: dict[Address, int] = {}

    def admit(self, function: Address, now: float) -> bool:
        """Tell whether the function may be told about now (seconds of any monotonic clock), and note the answer."""
        told = self._told.setdefault(function, deque(maxlen=BURST))
        if len(told) == BURST and now - told[0] < INTERVAL_S:
            self._owed[function] = self._owed.get(function, 0) + 1
            return False
        told.append(now)
        return True

    def owed(self, function: Address) -> int:
        """Return how often the function was held back since it was last asked, and settle that."""
        return self._owed.pop(function, 0)

    def due(self, now: float) -> tuple[Address, ...]:
        """Return the functions that were held back and may be told about again."""
        return tuple(function for function in sorted(self._owed) if self._free_at(function) <= now)

    def next_due(self) -> float | None:
        """Return when a function that was held back may be told about, or None if nothing is owed."""
        return min((self._free_at(function) for function in self._owed), default=None)

    def _free_at(self, function: Address) -> float:
        return self._told[function][0] + INTERVAL_S
