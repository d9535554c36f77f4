"""Ports that do not come up again: waiting before another try, and holding them down for good. Pure logic.

A port with DPC is held down by containment, any other by Link Disable: both keep the link down over everything that
follows, also over our own death, until the fabric's record of the quarantine is lifted (DESIGN 4, Storms). Where the
firmware comes first it is Link Disable for all: containment may be released only as long as its EDR event is open, and
whoever lifts the quarantine comes after that.
"""

from __future__ import annotations

from itertools import chain
from typing import Final

import msgspec

from shared.pcie import Address, Function, Topology, answered
from shared.pcie.registers import (
    BRIDGE_CONTROL,
    DPC_CAPABILITIES,
    DPC_CONTROL,
    LINK_CONTROL,
    BridgeControl,
    DpcCapabilities,
    DpcControl,
    LinkControl,
)
from shared.protocol.fabric import FunctionOutcome, Lease, Result
from shared.recovery import (
    Do,
    Logic,
    Pause,
    PortView,
    Verified,
    ask,
    look_at,
    modify,
    port_reads,
    port_view,
    read,
    release,
)

LOOK_S: Final = 0.25  # between two looks whether a card that is to be tried again is still there
_TRIGGERS: Final = DpcControl.TRIGGER_ON_FATAL | DpcControl.TRIGGER_ON_NONFATAL


def wait_for_retry(ports: tuple[Function, ...], seconds: float) -> Logic[None]:
    """Wait before ports are reset again; not for cards that are gone (P8)."""
    asked = tuple(port_reads(port) for port in ports)
    now: float = yield Pause(0.0)
    until = now + seconds
    while now < until:
        held = yield from ask(chain.from_iterable(asked))
        views = []
        for port, reads in zip(ports, asked, strict=True):
            views.append(port_view(port, held[: len(reads)]))
            held = held[len(reads) :]
        if all(view is not None and view.looks_gone for view in views):
            return
        now = yield Pause(min(LOOK_S, until - now), "another try")


def hold_down(port: Function, *, firmware_first: bool = False, firmware_owned: bool = False) -> Logic[bool]:
    """Keep the port's link down: contained if it can be, else disabled. False: nothing would do, or nobody is there (P8).

    `firmware_first`: disabled, and not contained any more; unless `firmware_owned`, which forbids to release it.
    """
    view = yield from look_at(port)
    if view is None or view.known_gone or not port.is_port:
        return False
    if not firmware_first and not view.contained and port.capabilities.dpc:
        view = yield from _contain(port, view)
    if (firmware_first or not view.contained) and not view.disabled:
        bit = int(LinkControl.LINK_DISABLE)
        offset = port.capabilities.express + LINK_CONTROL.offset
        yield Do((modify(port.address, offset, LINK_CONTROL.width, mask=bit, value=bit),))
    if view.in_reset:  # only now, or the link would come up in between
        bit = int(BridgeControl.SECONDARY_BUS_RESET)
        yield Do((modify(port.address, BRIDGE_CONTROL.offset, BRIDGE_CONTROL.width, mask=bit, value=0),))
    if firmware_first and not firmware_owned:
        yield from release(port, clear_disable=False)
    held = yield from look_at(port)
    return held is not None and (held.contained or held.disabled)


def _contain(port: Function, view: PortView) -> Logic[PortView]:
    """Trigger containment by software, where the port can and its trigger is enabled (§6.2.11.3); look again."""
    at = port.capabilities.dpc
    capabilities, control = yield from ask(
        (
            read(port.address, at + DPC_CAPABILITIES.offset, DPC_CAPABILITIES.width),
            read(port.address, at + DPC_CONTROL.offset, DPC_CONTROL.width),
        )
    )
    able = answered(capabilities) and bool(capabilities & DpcCapabilities.SOFTWARE_TRIGGERING)
    if not able or not answered(control) or not control & _TRIGGERS:
        return view
    bit = int(DpcControl.SOFTWARE_TRIGGER)
    yield Do((modify(port.address, at + DPC_CONTROL.offset, DPC_CONTROL.width, mask=bit, value=bit),))
    return (yield from look_at(port)) or view


def port_alone(port: Address) -> Verified:
    """Return what rolling forward comes to where the lease's own port is held down: nothing behind it is looked at."""
    return Verified(outcomes=(FunctionOutcome(function=port, result=Result.RECOVERED),))


def left_alone(lease: Lease, ports: tuple[Address, ...], topology: Topology) -> Lease:
    """Return the lease as rolling forward is to see it, where `ports` and all below them stay as they are."""
    if not ports:
        return lease
    below = {function.address for port in ports for function in topology.below(port)}
    return msgspec.structs.replace(
        lease,
        functions=tuple(saved for saved in lease.functions if saved.address not in below),
        slots=tuple(slot for slot in lease.slots if slot.port not in below),
        links=tuple(link for link in lease.links if link.port not in below and link.port not in ports),
        quarantined=tuple(dict.fromkeys((*lease.quarantined, *ports))),
    )
