"""A link that came back slower or narrower than it was: one retrain, and if that does not help, it is said.

The device is recovered all the same: it answers with its identity and is set up. What it lost is bandwidth, which an
operator wants to know and no driver notices. Less is judged by the registers, so the fabric comes to the same word at
close as whoever rolled forward.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from shared.pcie import Address, Function, Topology, answered
from shared.pcie.registers import (
    LINK_CONTROL,
    LINK_SPEED,
    LINK_STATUS,
    LINK_WIDTH,
    LINK_WIDTH_SHIFT,
    LinkControl,
    LinkStatus,
)
from shared.protocol.fabric import FunctionOutcome, Operation, Result, SavedLink

from ._effects import Do, Logic, Note, Step, ask, modify, read
from ._link import Bounds, PortState, await_trained


def link_read(port: Function) -> Operation:
    """Return the read of a port's Link Status."""
    return read(port.address, port.capabilities.express + LINK_STATUS.offset, LINK_STATUS.width)


def saved_link(port: Function, status: int) -> SavedLink | None:
    """Return what the link has negotiated; None where it is down, or says nothing of itself."""
    link = SavedLink(port=port.address, speed=status & LINK_SPEED, width=(status & LINK_WIDTH) >> LINK_WIDTH_SHIFT)
    down = port.link_active_reporting and not status & LinkStatus.LINK_ACTIVE
    return None if down or not link.speed or not link.width else link


def is_less(now: SavedLink, before: SavedLink) -> bool:
    """Tell whether a link is slower or narrower than it was."""
    return now.speed < before.speed or now.width < before.width


def links_now(links: Iterable[SavedLink], topology: Topology) -> Logic[dict[Address, SavedLink]]:
    """Return what those of `links` that are up have negotiated now."""
    ports = tuple(port for link in links if (port := topology.find(link.port)) is not None)
    held = yield from ask(link_read(port) for port in ports)
    found = {}
    for port, status in zip(ports, held, strict=True):
        now = saved_link(port, status) if answered(status) else None
        if now is not None:
            found[port.address] = now
    return found


def degraded_ports(links: tuple[SavedLink, ...], topology: Topology) -> Logic[frozenset[Address]]:
    """Return the ports whose link is up, and less than it was."""
    now = yield from links_now(links, topology)
    return frozenset(link.port for link in links if link.port in now and is_less(now[link.port], link))


def marked(
    outcomes: Iterable[FunctionOutcome], degraded: frozenset[Address], topology: Topology
) -> tuple[FunctionOutcome, ...]:
    """Return the outcomes, `degraded` where a function recovered and the nearest port above it has a lesser link."""

    def one(outcome: FunctionOutcome) -> FunctionOutcome:
        port = topology.port_above(outcome.function)
        if outcome.result is not Result.RECOVERED or port is None or port.address not in degraded:
            return outcome
        return msgspec.structs.replace(outcome, degraded=True)

    return tuple(one(outcome) for outcome in outcomes)


def regain(port: Function, before: SavedLink, bounds: Bounds) -> Logic[PortState]:
    """Retrain once if the link is less than it was, and note it if it stays so. UP: the link is up, whatever its width.

    To be done before anything behind the port is restored: a link that trains anew may reset what is there.
    """
    now = (yield from links_now((before,), Topology((port,)))).get(port.address)
    if now is None or not is_less(now, before):
        return PortState.UP
    bit = int(LinkControl.RETRAIN_LINK)
    offset = port.capabilities.express + LINK_CONTROL.offset
    yield Note(Step.LINK, {"port": str(port.address), "retrain": True, "from": _text(before), "to": _text(now)})
    yield Do((modify(port.address, offset, LINK_CONTROL.width, mask=bit, value=bit),))
    state = yield from await_trained(port, bounds)
    if state is not PortState.UP:
        return state
    now = (yield from links_now((before,), Topology((port,)))).get(port.address)
    if now is not None and is_less(now, before):
        yield Note(Step.LINK, {"port": str(port.address), "degraded": True, "from": _text(before), "to": _text(now)})
    return PortState.UP


def _text(link: SavedLink) -> str:
    return f"speed {link.speed} x{link.width}"
