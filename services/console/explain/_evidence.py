"""What a kernel log shows of each known failure: one function per failure, from typed events to the lines that show it.

Events decide, not words: the same failure is found in old wording and new. Lines without timestamps show less.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Final, TypeAlias

from services.console.kernel_log import (
    Callback,
    Containment,
    Decided,
    Decision,
    Event,
    Found,
    HostLink,
    Hung,
    KernelLog,
    Latched,
    LinkStatus,
    LogEvent,
    NoCallback,
    PowerFault,
    Report,
    Resetting,
    Retraining,
    SlowCommand,
    Unreachable,
)
from shared.pcie.errors import Severity
from shared.pcie.registers import LinkStatus as LinkStatusBits
from shared.pcie.registers import SlotStatus
from shared.protocol.requests import DriverStep

from ._failures import Evidence, Failure, Fit, decisions, evidence, failures, seconds_between

Find: TypeAlias = Callable[[KernelLog], Evidence | None]

DPC_CAP_S: Final = 3.9  # Linux waits 4 s for DPC; the log's first line is printed a little after the interrupt
_DPC_CAP_MAX_S: Final = 6.0
_RESET_MAX_S: Final = 5.0  # a reset that somebody asked for, its readiness included
_FLAP_MAX_S: Final = 1.0
_STORM_S: Final = 60.0
_STORM_MIN: Final = 3
_FAULTS_MIN: Final = 3
_GIVES_UP: Final = frozenset({Decided.LINK_DOWN, Decided.CARD_NOT_PRESENT})
_COMES: Final = frozenset({Decided.LINK_UP, Decided.CARD_PRESENT})
_IGNORED: Final = frozenset({Decided.IGNORED})
_SURPRISE_DOWN: Final = "SDES"
_LINK_LAYERS: Final = frozenset({"Data Link Layer", "Physical Layer"})


# --- Removed although it was recovered ---


def presence_with_link(log: KernelLog) -> Evidence | None:
    """Find where presence changed together with the link, the link change was ignored, and presence removed the card."""
    found = _removed_after_ignoring(log)
    if found is None:
        return None
    failure, events = found
    latched = _both_latched(log, failure)
    return None if latched is None else evidence(Fit.CERTAIN, latched, *events)


def presence_later(log: KernelLog) -> Evidence | None:
    """Find where the link change was ignored, and a presence change of its own removed the card."""
    found = _removed_after_ignoring(log)
    if found is None:
        return None
    failure, events = found
    return evidence(Fit.LIKELY if _both_latched(log, failure) is None else Fit.POSSIBLE, *events)


def _removed_after_ignoring(log: KernelLog) -> tuple[Failure, list[Event | None]] | None:
    for failure in failures(log):
        ignored = next((d for d in failure.concluded(_IGNORED) if d.function == failure.port), None)
        if ignored is None:
            continue
        after = [event for event in log.events if event.line > ignored.line]
        gone = next((d for d in _own(after, failure) if d.what is Decided.CARD_NOT_PRESENT), None)
        if gone is None:
            continue
        active = next((e for e in after if isinstance(e, LinkStatus) and e.value & LinkStatusBits.LINK_ACTIVE), None)
        removed = next(decisions(after, frozenset({Decided.REMOVED})), None)
        again = next((e for e in after if isinstance(e, Found) and e.line > gone.line), None)
        before = active if active is not None and active.line < gone.line else None
        return failure, [failure.struck, ignored, before, gone, removed, failure.end, again]
    return None


def _own(events: list[LogEvent], failure: Failure) -> Iterator[Decision]:
    """Yield what the kernel concluded of the very port that failed."""
    return (d for d in decisions(events, frozenset(Decided)) if d.function == failure.port)


def _both_latched(log: KernelLog, failure: Failure) -> Latched | None:
    both = SlotStatus.PRESENCE_CHANGED | SlotStatus.LINK_STATE_CHANGED
    end = len(log.lines) if failure.end is None else failure.end.line
    return next(
        (
            e
            for e in log.events
            if isinstance(e, Latched) and e.port == failure.port and e.line < end and e.status & both == both
        ),
        None,
    )


def waited_too_short(log: KernelLog) -> Evidence | None:
    """Find where hotplug gave up 4 s after the containment, while the recovery was at work."""
    for failure, gone in _gave_up_at_the_port(log):
        waited = seconds_between(failure.struck, gone)
        if waited is None or not DPC_CAP_S <= waited <= _DPC_CAP_MAX_S:
            continue
        callbacks = failure.all(Callback)
        fit = Fit.CERTAIN if callbacks else Fit.LIKELY
        return evidence(fit, failure.struck, *callbacks, gone, failure.end)
    return None


def did_not_wait(log: KernelLog) -> Evidence | None:
    """Find where hotplug removed what DPC was recovering, without waiting for it."""
    for failure, gone in _gave_up_at_the_port(log):
        waited = seconds_between(failure.struck, gone)
        ignored = any(d.function == failure.port for d in failure.concluded(_IGNORED))
        if ignored or (waited is not None and waited >= DPC_CAP_S):
            continue
        worked = failure.end is not None and failure.end.what is Decided.RECOVERED
        return evidence(Fit.CERTAIN if worked else Fit.LIKELY, failure.struck, gone, failure.end)
    return None


def _gave_up_at_the_port(log: KernelLog) -> Iterator[tuple[Failure, Decision]]:
    """Yield the containments during which hotplug gave up on the very port."""
    for failure in failures(log):
        gone = next((d for d in failure.concluded(_GIVES_UP) if d.function == failure.port), None)
        if isinstance(failure.struck, Containment) and gone is not None:
            yield failure, gone


def nested_slots(log: KernelLog) -> Evidence | None:
    """Find where slots below a port saw the link go down that was reset above them."""
    for failure in failures(log):
        port = failure.port
        below = [
            d for d in failure.concluded(_GIVES_UP) if d.function.domain == port.domain and d.function.bus > port.bus
        ]
        told = next((event for event in failure.events if _is_slot_reset(event)), None)
        if below and told is not None:
            return evidence(Fit.LIKELY, failure.struck, told, *below, failure.end)
    return None


def _is_slot_reset(event: LogEvent) -> bool:
    match event:
        case Callback(step=DriverStep.SLOT_RESET) | Decision(what=Decided.SLOT_RESET):
            return True
        case _:
            return False


def removed_by_a_reset(log: KernelLog) -> Evidence | None:
    """Find where a reset that somebody asked for, without any error, made hotplug remove the device."""
    if next(failures(log), None) is not None:
        return None
    reset: Resetting | None = None
    for event in log.events:
        if isinstance(event, Resetting):
            reset = event if not event.done else reset
        elif reset is not None and isinstance(event, Decision) and event.what in _GIVES_UP:
            took = seconds_between(reset, event)
            above = event.function.domain == reset.function.domain and event.function.bus < reset.function.bus
            if above and took is not None and took <= _RESET_MAX_S:
                return evidence(Fit.LIKELY, reset, event)
    return None


# --- Links that were lost ---


def surprise_down_contained(log: KernelLog) -> Evidence | None:
    """Find where DPC took a surprise removal for an error, and tried to recover what was gone."""
    for failure in failures(log):
        lost = next((e for e in failure.all(Report) if e.function == failure.port and _SURPRISE_DOWN in e.names), None)
        if not isinstance(failure.struck, Containment) or lost is None:
            continue
        if failure.end is None or failure.end.what is Decided.RECOVERED:
            continue
        after = [event for event in log.events if event.line > failure.struck.line]
        no_link = next((d for d in _own(after, failure) if d.what is Decided.NO_LINK), None)
        slot = next((d for d in _own(after, failure) if d.what in _GIVES_UP), None)
        fit = Fit.CERTAIN if no_link is not None and slot is not None else Fit.LIKELY
        return evidence(fit, failure.struck, lost, no_link, failure.end, slot)
    return None


def fell_off_without_callbacks(log: KernelLog) -> Evidence | None:
    """Find where a link was lost (Surprise Down by AER), and the driver above it can take part in no recovery."""
    for failure in failures(log):
        deaf = failure.all(NoCallback)
        if isinstance(failure.struck, Report) and _SURPRISE_DOWN in failure.struck.names and deaf:
            ones = failure.all(Unreachable)
            return evidence(Fit.LIKELY, failure.struck, *deaf, *ones[:1], failure.end)
    return None


def errors_before_the_loss(log: KernelLog) -> Evidence | None:
    """Find where the link layer had to repeat itself on the port whose link was lost later."""
    for failure in failures(log):
        lost = failure.struck
        if not isinstance(lost, Report) or _SURPRISE_DOWN not in lost.names:
            continue
        earlier = [
            e
            for e in log.events
            if isinstance(e, Report) and e.severity is Severity.CORRECTABLE and e.line < lost.line
            if e.function == failure.port and e.layer in _LINK_LAYERS
        ]
        if earlier:
            return evidence(Fit.POSSIBLE, *earlier, lost)
    return None


def unstable_at_insertion(log: KernelLog) -> Evidence | None:
    """Find where a card that was put in came and went within a second, without any error."""
    if next(failures(log), None) is not None:
        return None
    slots = list(decisions(log.events, _COMES | _GIVES_UP))
    for port in dict.fromkeys(d.function for d in slots):
        said = [d for d in slots if d.function == port]
        for come, gone, back in zip(said, said[1:], said[2:], strict=False):
            took = seconds_between(come, back)
            bounced = come.what in _COMES and gone.what in _GIVES_UP and back.what in _COMES
            if bounced and took is not None and took <= _FLAP_MAX_S:
                return evidence(Fit.LIKELY, come, gone, back)
    return None


def stuck_at_the_lowest_speed(log: KernelLog) -> Evidence | None:
    """Find where the kernel retrained a link at 2.5 GT/s, in vain."""
    tried = [e for e in log.events if isinstance(e, Retraining)]
    failed = any(e.failed for e in tried)
    return evidence(Fit.LIKELY if failed else Fit.POSSIBLE, *tried) if tried else None


# --- Loops and hangs ---


def reset_loop(log: KernelLog) -> Evidence | None:
    """Find where the same port failed again and again within a minute."""
    found = list(failures(log))
    for port in dict.fromkeys(failure.port for failure in found):
        own = [failure for failure in found if failure.port == port]
        for first, last in zip(own, own[_STORM_MIN - 1 :], strict=False):
            took = seconds_between(first.struck, last.struck)
            if took is not None and took <= _STORM_S:
                return evidence(
                    Fit.CERTAIN, *(one.struck for one in own), *(one.end for one in own), *unstable_links(log)
                )
    return None


def unstable_links(log: KernelLog) -> list[HostLink]:
    """Return where a host bridge said that its link fell as soon as it had trained."""
    found = []
    for up, down in itertools.pairwise(e for e in log.events if isinstance(e, HostLink)):
        held = seconds_between(up, down)
        if up.up and not down.up and held is not None and held <= _FLAP_MAX_S:
            found.append(down)
    return found


def driver_without_callback(log: KernelLog) -> Evidence | None:
    """Find where a recovery failed because a driver has no error callbacks, or none is bound."""
    for number, failure in enumerate(failures(log)):
        deaf = failure.all(NoCallback)
        if deaf and failure.end is not None and failure.end.what is Decided.FAILED:
            # In a later one, the kernel itself may have taken the driver away.
            return evidence(Fit.LIKELY if number == 0 else Fit.POSSIBLE, failure.struck, *deaf, failure.end)
    return None


def power_fault_loop(log: KernelLog) -> Evidence | None:
    """Find where one slot reported power faults many times within a second."""
    faults = [e for e in log.events if isinstance(e, PowerFault)]
    for port in dict.fromkeys(e.port for e in faults):
        own = [e for e in faults if e.port == port]
        for first, last in zip(own, own[_FAULTS_MIN - 1 :], strict=False):
            took = seconds_between(first, last)
            if took is not None and took <= _FLAP_MAX_S:
                return evidence(Fit.LIKELY, *own)
    return None


def hotplug_hangs(log: KernelLog) -> Evidence | None:
    """Find where the interrupt thread of hotplug is blocked for minutes."""
    hung = [e for e in log.events if isinstance(e, Hung)]
    if not any("pciehp" in e.task for e in hung):
        return None
    return evidence(Fit.LIKELY if len(hung) > 1 else Fit.POSSIBLE, *hung)


def command_timeout(log: KernelLog) -> Evidence | None:
    """Find where a slot command was not completed in time."""
    slow = [e for e in log.events if isinstance(e, SlowCommand)]
    return evidence(Fit.POSSIBLE, *slow) if slow else None
