"""What an actor remembers between two looks. Losing it costs a repeated fact or request, never an error."""

from __future__ import annotations

from collections.abc import Mapping

from shared.pcie import Address, ErrorRegisters
from shared.pcie.errors import ErrorReport, Severity

from ._sources import Case, unmasked


class Memory:
    """Bits that are dealt with although they are still set, and what the present latch has led to so far.

    `known`: uncorrectable bits per function that need nothing more: found stale at the start, reported as advisory,
    or handed to a recovery, which clears them. A bit leaves when the function answers without it.
    `stale`: of these, the bits that no message was about and that nobody else will clear.
    `contained`: ports that were contained when the present latch was looked at: what it is about is DPC's case.
    `settled`: functions for which the present latch of the root port needs nothing more. Emptied with the latch.
    """

    def __init__(self) -> None:
        self.known: dict[Address, int] = {}
        self.stale: dict[Address, int] = {}
        self.contained: set[Address] = set()
        self.settled: set[Address] = set()
        self._answering: frozenset[Address] | None = None  # at the last look; None: there was none
        self._told: dict[tuple[Address, Severity], int] = {}
        self._said: set[tuple[Address, str]] = set()
        self._gone_since: dict[Address, float] = {}

    def learn(self, function: Address, bits: int) -> None:
        """Remember that these bits are dealt with."""
        if bits:
            self.known[function] = self.known.get(function, 0) | bits

    def leave(self, function: Address, bits: int) -> None:
        """Remember that these bits are older than the first look at the function."""
        self.learn(function, bits)
        self.stale[function] = self.stale.get(function, 0) | bits

    def fresh(self, errors: Mapping[Address, ErrorRegisters], *, starting: bool) -> frozenset[Address]:
        """Return the functions that answer and did not at the last look (all, when `starting`), and note who does."""
        now = frozenset(errors)
        before = frozenset() if starting else self._answering
        self._answering = now
        return frozenset() if before is None else now - before

    def settle(self, case: Case) -> None:
        """Remember that a case is dealt with."""
        for source in case.sources:
            self.settled.add(source.function)
            self.learn(source.function, source.bits)

    def was_contained(self, case: Case) -> bool:
        """Tell whether the port was contained under the present latch, and nothing is left but the message of it."""
        return case.port in self.contained and not any(source.reports for source in case.sources)

    def see(self, errors: Mapping[Address, ErrorRegisters]) -> None:
        """Forget known bits that have been cleared since, where the function answers."""
        for function, registers in errors.items():
            left = self.known.get(function, 0) & unmasked(registers)
            if left:
                self.known[function] = left
            else:
                self.known.pop(function, None)
            stale = self.stale.get(function, 0) & left
            if stale:
                self.stale[function] = stale
            else:
                self.stale.pop(function, None)

    def first_telling(self, function: Address, report: ErrorReport) -> bool:
        """Tell whether this report has bits that were not published under the present latch, and note them."""
        key = (function, report.severity)
        fresh = bool(report.status & ~self._told.get(key, 0))
        self._told[key] = self._told.get(key, 0) | report.status
        return fresh

    def first_saying(self, port: Address, why: str) -> bool:
        """Tell whether this has not been said of the port under the present latch, and note it."""
        fresh = (port, why) not in self._said
        self._said.add((port, why))
        return fresh

    def gone_since(self, port: Address, now: float, *, gone: bool) -> float:
        """Return since when the port has looked empty: `now` at the first look, and after each look to the contrary."""
        if not gone:
            self._gone_since.pop(port, None)
            return now
        return self._gone_since.setdefault(port, now)

    def unlatched(self) -> None:
        """Start over with an acknowledged latch: the same bits are news when they are signalled again."""
        self.contained.clear()
        self.settled.clear()
        self._told.clear()
        self._said.clear()
        self._gone_since.clear()
