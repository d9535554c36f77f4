"""How long each holder has been silent, on the fabric's monotonic clock; no other clock is used.

Every accepted command and every beat counts. A restart of the fabric counts as hearing from everybody: what was said
while it was down cannot be known, and the holders could not be answered.

Who acts on silence asks `silent`: the coordinator that owns the host adopts the lease.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from shared.pcie import Address


class Heard(NamedTuple):
    """Two moments of one lease, in seconds on the loop's clock."""

    opened: float  # or when this fabric started, if that was later
    last: float


def silent(heard: Heard, now: float) -> float:
    """Return the seconds since the holder was last heard."""
    return max(now - heard.last, 0.0)


def quarantine_key(port: Address) -> str:
    """Return under which name Hearing knows since when a port has been in quarantine."""
    return f"quarantine {port}"


class Hearing:
    """Notes when each open lease was last heard from, and since when each quarantine has been known."""

    def __init__(self) -> None:
        self._heard: dict[str, Heard] = {}

    def note(self, lease: str, now: float) -> None:
        """Note that the holder of `lease` lives."""
        before = self._heard.get(lease)
        self._heard[lease] = Heard(opened=now if before is None else before.opened, last=now)

    def get(self, lease: str, now: float) -> Heard:
        """Return when `lease` was opened and last heard; now, for one that was never heard of."""
        return self._heard.get(lease, Heard(now, now))

    def ended(self, leases: Iterable[str], now: float) -> dict[str, float]:
        """Return how long ago the leases were last heard of, in seconds; not those that ended under another fabric."""
        return {lease: now - heard.last for lease in leases if (heard := self._heard.get(lease)) is not None}

    def forget_but(self, leases: frozenset[str]) -> None:
        """Drop all that are not in `leases`."""
        self._heard = {lease: heard for lease, heard in self._heard.items() if lease in leases}
