"""What a replay does, and how it knows: every planned fact is tagged with where it comes from."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from shared.protocol.requests import DriverStep

from ._kernel_log import KernelLog
from ._log_events import Callback, Containment, Decided, Decision, LogEvent, Report


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


_HOTPLUG: frozenset[Decided] = frozenset(
    {Decided.LINK_DOWN, Decided.LINK_UP, Decided.CARD_PRESENT, Decided.CARD_NOT_PRESENT, Decided.IGNORED}
)


def is_hardware(event: LogEvent) -> bool:
    """Tell whether the event is what hardware did."""
    return isinstance(event, Containment | Report)


def kernel_acts(log: KernelLog) -> int | None:
    """Return the line of the kernel's first action on the hardware; what comes after it may be its own doing.

    What hotplug concluded before any error was reported is no action yet: the kernel only looked.
    """
    struck = False
    for event in log.events:
        struck = struck or is_hardware(event)
        match event:
            case Decision(what=what) if struck or what not in _HOTPLUG:
                return event.line
            case Callback(step=DriverStep.SLOT_RESET):
                return event.line
            case _:
                pass
    return None
