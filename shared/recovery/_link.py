"""One port: let go of its reset, wait for its link, wait until what is behind it answers. Every step may run twice.

No wait here is a verdict on a device that is slow: each has its bound, and says on the way how long it has lasted.
Waiting for a card that is known to be gone ends at once (P8).
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import Any, Final

import msgspec

from shared.pcie import Function, IdentityField, answered, same_device, timing
from shared.pcie.registers import (
    BRIDGE_CONTROL,
    DPC_STATUS,
    LINK_CONTROL,
    BridgeControl,
    DpcStatus,
    LinkControl,
)

from ._effects import Do, Logic, Note, Pause, Step, ask, modify, read, write
from ._port import PortView, look_at, port_reads, port_view
from ._restore import Known
from ._verify import is_ready, presence_read

_DEVICE_ID_SHIFT: Final = 16
PROGRESS_EVERY: Final = 1.0  # seconds between two notes of one wait


class Bounds(msgspec.Struct, frozen=True):
    """How long to wait, in seconds."""

    link_s: float = timing.LINK_ACTIVE_MAX
    ready_s: float = timing.READY_MAX


class PortState(StrEnum):
    """What became of a port."""

    UP = "up"  # its link is active, or it has none to tell of
    EMPTY = "empty"  # nothing was behind it, so nothing is waited for
    GONE = "gone"  # the card is gone (P8)
    NO_LINK = "no_link"  # a card is there, but no link, even after a retrain
    BUSY = "busy"  # RP Busy did not clear: containment could not be released
    NO_ANSWER = "no_answer"  # the port itself cannot be reached
    LOST = "lost"  # the link went down again while its functions were awaited: to be released and awaited anew
    FIRMWARE = "firmware"  # contained, and only the firmware may have it released
    UNSTABLE = "unstable"  # it was up and went down again, as often as it was tried


def release(
    port: Function, *, clear_disable: bool, grace_s: float = 0.0, firmware_owned: bool = False
) -> Logic[PortState]:
    """Clear Secondary Bus Reset, Link Disable and containment, in this order. UP: nothing holds the link down.

    `grace_s`: how long to leave containment to a recovery, which would absorb the lease that runs this.
    `firmware_owned`: containment is not for this lease to release at all.
    """
    view = yield from look_at(port)
    if view is None:
        return PortState.NO_ANSWER
    if view.in_reset:
        yield Pause(timing.SECONDARY_BUS_RESET_HOLD, "reset held")
        bit = int(BridgeControl.SECONDARY_BUS_RESET)
        yield Do((modify(port.address, BRIDGE_CONTROL.offset, BRIDGE_CONTROL.width, mask=bit, value=0),))
    if view.disabled and clear_disable:
        bit = int(LinkControl.LINK_DISABLE)
        offset = port.capabilities.express + LINK_CONTROL.offset
        yield Do((modify(port.address, offset, LINK_CONTROL.width, mask=bit, value=0),))
    if view.contained and grace_s:
        yield Pause(grace_s, "a recovery of the containment")
        view = yield from look_at(port)
        if view is None:
            return PortState.NO_ANSWER
    if view.contained and firmware_owned:
        return PortState.FIRMWARE
    if view.contained:
        return (yield from _release_containment(port, view))
    return PortState.UP


def hold_down(port: Function) -> Logic[None]:
    """Disable the link of a quarantined port if nothing holds it down any more: a reset from above let go of it.

    Containment outlives such a reset (DPC Trigger Status is sticky, §7.9.14.4), Link Disable does not.
    """
    view = yield from look_at(port)
    if view is None or view.contained or view.disabled:
        return
    bit = int(LinkControl.LINK_DISABLE)
    offset = port.capabilities.express + LINK_CONTROL.offset
    yield Do((modify(port.address, offset, LINK_CONTROL.width, mask=bit, value=bit),))


def release_bus(bridge: Function) -> Logic[PortState]:
    """Clear Secondary Bus Reset of a bridge that is no port, and wait as its conventional bus asks. It has no link."""
    at, width = BRIDGE_CONTROL.offset, BRIDGE_CONTROL.width
    (control,) = yield from ask((read(bridge.address, at, width),))
    if not answered(control):
        return PortState.NO_ANSWER
    bit = int(BridgeControl.SECONDARY_BUS_RESET)
    if control & bit:
        yield Pause(timing.SECONDARY_BUS_RESET_HOLD, "reset held")
        yield Do((modify(bridge.address, at, width, mask=bit, value=0),))
        yield Pause(timing.PCI_RESET_TO_FIRST_CONFIG, "first request after a conventional reset")
    return PortState.UP


def _release_containment(port: Function, view: PortView) -> Logic[PortState]:
    """Wait until the link is down (§6.2.11; on timeout go on, as Linux does) and the root port idle, then release."""
    now: float = yield Pause(0.0)
    until = now + timing.LINK_INACTIVE_MAX
    while view.link_active and now < until:
        now = yield Pause(timing.RP_BUSY_POLL, "link inactive")
        seen = yield from look_at(port)
        if seen is None:
            return PortState.NO_ANSWER
        view = seen
    until = now + timing.RP_BUSY_MAX
    while view.busy:
        if now >= until:
            return PortState.BUSY
        now = yield Pause(timing.RP_BUSY_POLL, "root port busy")
        seen = yield from look_at(port)
        if seen is None:
            return PortState.NO_ANSWER
        view = seen
    bits = int(DpcStatus.TRIGGER | DpcStatus.INTERRUPT)
    yield Do((write(port.address, port.capabilities.dpc + DPC_STATUS.offset, DPC_STATUS.width, bits),))
    yield Note(Step.RELEASE, {"port": str(port.address), "released": "dpc"})
    return PortState.UP


def await_link(port: Function, bounds: Bounds) -> Logic[PortState]:
    """Wait for the link: once as it is, and where a card is present once more after a retrain.

    A port that does not report its link is given the whole time; whether somebody is there is asked afterwards.
    """
    if not port.link_active_reporting:
        yield Pause(bounds.link_s, "link, which the port does not report")
        return PortState.UP
    state = yield from _await_active(port, bounds)
    if state is not PortState.NO_LINK:
        return state
    bit = int(LinkControl.RETRAIN_LINK)
    offset = port.capabilities.express + LINK_CONTROL.offset
    yield Note(Step.LINK, {"port": str(port.address), "retrain": True})
    yield Do((modify(port.address, offset, LINK_CONTROL.width, mask=bit, value=bit),))
    return (yield from _await_active(port, bounds))


def _await_active(port: Function, bounds: Bounds) -> Logic[PortState]:
    now: float = yield Pause(0.0)
    until = now + bounds.link_s
    for delay in _delays():
        view = yield from look_at(port)
        if view is None:
            return PortState.NO_ANSWER
        if view.known_gone:
            return PortState.GONE
        if view.link_active:
            return PortState.UP
        if view.contained:
            return PortState.LOST
        if now >= until:
            return PortState.GONE if view.looks_gone else PortState.NO_LINK
        now = yield Pause(min(delay, until - now), "link")
    raise AssertionError("the delays do not end")


def await_trained(port: Function, bounds: Bounds) -> Logic[PortState]:
    """Wait for the end of a retrain. UP if the link is up then: it may have gone down, or never been."""
    now: float = yield Pause(0.0)
    until = now + bounds.link_s
    for delay in _delays():
        view = yield from look_at(port)
        state = _link_lost(port, view)
        if state is not None or view is None:
            return state or PortState.NO_ANSWER
        if not view.training or now >= until:
            return PortState.UP
        now = yield Pause(min(delay, until - now), "link, retrained")
    raise AssertionError("the delays do not end")


def await_ready(port: Function | None, functions: tuple[Known, ...], bounds: Bounds) -> Logic[_Awaited]:
    """Poll `functions` behind `port` until all answer (§2.3.1: RRS and all ones mean not yet).

    A wait ends early for functions that cannot come any more: one of their device answers as another device.
    """
    start: float = yield Pause(0.0)
    now, told, until = start, start, start + bounds.ready_s
    waiting = functions
    replaced: frozenset[Known] = frozenset()
    for delay in _delays():
        reads = () if port is None else port_reads(port)
        polls = tuple(presence_read(known.function) for known in waiting)
        held = yield from ask((*reads, *polls))
        if port is not None and (state := _link_lost(port, port_view(port, held[: len(reads)]))) is not None:
            return _Awaited(state, waiting)
        answers = dict(zip(waiting, held[len(reads) :], strict=True))
        waiting = tuple(known for known, value in answers.items() if not is_ready(value))
        replaced |= {known for known, value in answers.items() if is_ready(value) and _another(known, value)}
        waiting_still = tuple(
            known for known in waiting if not any(same_device(known.function, other.function) for other in replaced)
        )
        if not waiting_still or now >= until:
            return _Awaited(PortState.UP, waiting)
        waiting = waiting_still
        if now - told >= PROGRESS_EVERY:
            told = now
            yield Note(Step.READY, _progress(port, waiting, now - start))
        now = yield Pause(min(delay, until - now), "ready")
    raise AssertionError("the delays do not end")


def still_up(port: Function) -> Logic[PortState]:
    """Look at the link once more, after what is behind it has been restored."""
    return _link_lost(port, (yield from look_at(port))) or PortState.UP


class _Awaited(msgspec.Struct, frozen=True):
    """How a wait for readiness ended: the port, and which functions did not answer."""

    state: PortState
    missing: tuple[Known, ...]


def _link_lost(port: Function, view: PortView | None) -> PortState | None:
    if view is None:
        return PortState.NO_ANSWER
    if view.known_gone or (not port.link_active_reporting and view.looks_gone):
        return PortState.GONE
    down = port.link_active_reporting and not view.link_active
    return PortState.LOST if down or view.contained else None


def _another(known: Known, ids: int) -> bool:
    """Tell whether Vendor and Device ID, as one doubleword holds them (§7.5.1.1.1), are those of another device."""
    if known.function.physical is not None:
        return False
    identity = known.saved.identity
    device, vendor = divmod(ids, 1 << _DEVICE_ID_SHIFT)
    return (vendor != identity.vendor and IdentityField.VENDOR not in known.accept) or (
        device != identity.device and IdentityField.DEVICE not in known.accept
    )


def _progress(port: Function | None, waiting: tuple[Known, ...], waited: float) -> dict[str, Any]:
    return {
        "port": None if port is None else str(port.address),
        "waiting": [str(known.saved.address) for known in waiting],
        "waited_s": round(waited, 3),
    }


def _delays() -> Iterator[float]:
    """1, 2, 4 ... ms, as Linux' pci_dev_wait, up to our own ceiling. Endless: the caller's bound ends it."""
    delay = timing.READY_POLL_FIRST
    while True:
        yield delay
        delay = min(2 * delay, timing.READY_POLL_MAX)
