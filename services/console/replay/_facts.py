"""What a replay does, and how it knows: every planned fact is tagged with where it comes from."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec

from services.console.kernel_log import Callback, Containment, Decided, Decision, KernelLog, LinkLost, LogEvent, Report
from shared.protocol.requests import DriverStep

QUIET_S: Final = 5.0  # what strikes so long after the kernel's last word on a failure is a failure of its own


class Source(StrEnum):
    """How a planned fact is known."""

    LOG = "log"  # a line says so
    INFERRED = "inferred"  # it follows from lines
    ASSUMED = "assumed"  # nothing says so; the usual case is taken


class Planned(msgspec.Struct, frozen=True):
    """One fact of the replay, with the line that it rests on, if any."""

    what: str
    source: Source
    line: int | None = None


class Episode(msgspec.Struct, frozen=True):
    """A stretch of the log in which the hardware acts by itself: from line `first` up to the kernel's first action."""

    first: int
    until: int | None  # None: the log ends before the kernel acts

    def covers(self, line: int) -> bool:
        """Tell whether a line stands in it."""
        return line >= self.first and (self.until is None or line < self.until)


_HOTPLUG: Final[frozenset[Decided]] = frozenset(
    {Decided.LINK_DOWN, Decided.LINK_UP, Decided.CARD_PRESENT, Decided.CARD_NOT_PRESENT, Decided.IGNORED}
)


def is_hardware(event: LogEvent) -> bool:
    """Tell whether the event is what hardware did."""
    return isinstance(event, Containment | Report | LinkLost)


def episodes(log: KernelLog) -> tuple[Episode, ...]:
    """Return the failures in the log that hardware began.

    What strikes after the kernel's first action may be its own doing, unless it has been quiet for a while.
    """
    found: list[Episode] = []
    acted = False
    last: float | None = None  # when the log's last event was
    for event in log.events:
        if is_hardware(event) and (not found or acted) and (not acted or _quiet(last, event.at)):
            found.append(Episode(event.line, None))
            acted = False
        elif not acted and _acts(event, struck=bool(found)):
            acted = True
            if found:
                found[-1] = Episode(found[-1].first, event.line)
        last = event.at
    return tuple(found)


def _quiet(last: float | None, at: float | None) -> bool:
    return last is not None and at is not None and at - last > QUIET_S


def _acts(event: LogEvent, *, struck: bool) -> bool:
    """Tell whether the kernel acts on the hardware. What hotplug concluded before any error is no action yet."""
    match event:
        case Decision(what=what):
            return struck or what not in _HOTPLUG
        case Callback(step=DriverStep.SLOT_RESET):
            return True
        case _:
            return False
