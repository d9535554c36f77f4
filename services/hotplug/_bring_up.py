"""Bringing a slot up, with the waits of pciehp_check_link_status: 20 ms, link <= 1 s, 100 ms, vendor ID <= 1 s.

Generators (shared.recovery): what to read and how long to pause come out, what was read goes in. A recovery that takes
the lease ends them wherever they are (P5).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from shared.pcie import Function, answered, timing
from shared.pcie import registers as r
from shared.protocol.fabric import Operation, Verb
from shared.recovery import Logic, Pause, ask, read

_POLL_FIRST: Final = timing.READY_POLL_FIRST
_POLL_MAX: Final = timing.LINK_SETTLE  # the kernel polls the link every 1 ms and the vendor ID every 20 ms


class Readiness(StrEnum):
    """How far a card came."""

    READY = "ready"
    NO_LINK = "no link"
    NO_ANSWER = "no answer"


def enumerate_below(port: Function) -> Operation:
    """Return the operation that finds the functions behind the port again; it is answered with their number."""
    return Operation(verb=Verb.ENUMERATE, function=port.address)


def await_device(port: Function, *, link_s: float, vendor_id_s: float) -> Logic[Readiness]:
    """Wait until the card answers, and has been enumerated; the bounds are those of the link and of the answer."""
    now: float = yield Pause(timing.LINK_SETTLE, "before the first look at the link")
    if not (yield from _link(port, until=now + link_s)):
        return Readiness.NO_LINK
    now = yield Pause(timing.LINK_TO_FIRST_CONFIG, "before the first request")
    if not (yield from _answers(port, until=now + vendor_id_s)):
        return Readiness.NO_ANSWER
    return Readiness.READY


def _link(port: Function, *, until: float) -> Logic[bool]:
    """Wait for Data Link Layer Link Active; a port that cannot report it gets the whole wait (kernel: 1100 ms)."""
    if not port.link_active_reporting:
        yield Pause(timing.LINK_ACTIVE_MAX, "the port does not report its link")
        return True
    offset = port.capabilities.express + r.LINK_STATUS.offset
    pause = _POLL_FIRST
    while True:
        (status,) = yield from ask((read(port.address, offset, r.LINK_STATUS.width),))
        if answered(status) and status & r.LinkStatus.LINK_ACTIVE:
            return True
        now: float = yield Pause(pause, "link")
        if now >= until:
            return False
        pause = min(2 * pause, _POLL_MAX)


def _answers(port: Function, *, until: float) -> Logic[bool]:
    """Wait for a vendor ID. RRS, and all ones with the link active, mean "not yet": enumeration passes over both.

    Before a card has been enumerated its functions belong to no domain, so there is nothing that a read could name.
    """
    pause = _POLL_FIRST
    while True:
        (found,) = yield from ask((enumerate_below(port),))
        if answered(found) and found:
            return True
        now: float = yield Pause(pause, "vendor ID")
        if now >= until:
            return False
        pause = min(2 * pause, _POLL_MAX)
