"""The failures that a kernel log tells of, from what struck to how that kernel's recovery ended. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import Final, TypeVar

import msgspec

from services.console.kernel_log import Containment, Decided, Decision, Event, KernelLog, LinkLost, LogEvent, Report
from shared.pcie import Address
from shared.pcie.errors import Severity

_ENDS: Final = frozenset({Decided.RECOVERED, Decided.FAILED})

E = TypeVar("E", bound=Event)


class Fit(StrEnum):
    """How surely a log shows a failure, the surest first."""

    CERTAIN = "certain"
    LIKELY = "likely"
    POSSIBLE = "possible"


class Evidence(msgspec.Struct, frozen=True):
    """The lines that show it."""

    fit: Fit
    lines: tuple[int, ...]


class Failure(msgspec.Struct, frozen=True):
    """One failure at a port: what struck, what was said until it was over, and how the kernel's recovery ended."""

    port: Address
    struck: Containment | Report | LinkLost
    events: tuple[LogEvent, ...]
    end: Decision | None  # None: the log does not say

    def all(self, kind: type[E]) -> list[E]:
        """Return what was said meanwhile, of one kind."""
        return [event for event in self.events if isinstance(event, kind)]

    def concluded(self, wanted: frozenset[Decided]) -> list[Decision]:
        """Return what the kernel concluded meanwhile, of these kinds."""
        return list(decisions(self.events, wanted))


def failures(log: KernelLog) -> Iterator[Failure]:
    """Yield the failures in the order of the log; what a port says of one that is under way belongs to it."""
    under_way: set[Address] = set()
    for index, event in enumerate(log.events):
        port = _struck(event)
        if port is not None and port not in under_way:
            under_way.add(port)
            assert isinstance(event, Containment | Report | LinkLost)
            meanwhile, end = _until_end(log.events, index + 1, port)
            yield Failure(port, event, meanwhile, end)
        elif isinstance(event, Decision) and event.what in _ENDS:
            under_way.discard(event.function)


def _struck(event: LogEvent) -> Address | None:
    """Return the port at which hardware failed, None for an event that is no failure."""
    match event:
        case Containment() | LinkLost():
            return event.port
        case Report() if event.severity is not Severity.CORRECTABLE:
            return event.function
        case _:
            return None


def _until_end(events: tuple[LogEvent, ...], start: int, port: Address) -> tuple[tuple[LogEvent, ...], Decision | None]:
    """Return what was said from `start` until the port's recovery ended, and that end."""
    for index in range(start, len(events)):
        event = events[index]
        if isinstance(event, Decision) and event.what in _ENDS and event.function == port:
            return events[start:index], event
    return events[start:], None


def decisions(events: Iterable[LogEvent], wanted: frozenset[Decided]) -> Iterator[Decision]:
    """Yield what the kernel concluded, of these kinds."""
    return (event for event in events if isinstance(event, Decision) and event.what in wanted)


def evidence(fit: Fit, *events: Event | None) -> Evidence:
    """Return the lines on which these events stand, all those of a report."""
    lines: set[int] = set()
    for event in events:
        if isinstance(event, Report):
            lines |= set(event.lines)
        elif event is not None:
            lines.add(event.line)
    return Evidence(fit, tuple(sorted(lines)))


def seconds_between(start: Event, end: Event) -> float | None:
    """Return the seconds from one line to the other; None where the stamps do not tell."""
    if start.at is None or end.at is None or end.at < start.at:
        return None
    return end.at - start.at
