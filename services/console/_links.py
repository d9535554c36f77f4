"""How fast the links of ports run, and how fast both of their ends could."""

from __future__ import annotations

from typing import Final

import msgspec

from shared.pcie import Address, Function, Topology
from shared.pcie.registers import (
    LINK_CAPABILITIES,
    LINK_SPEED,
    LINK_STATUS,
    LINK_WIDTH,
    LINK_WIDTH_SHIFT,
    LinkCapabilities,
    LinkStatus,
    Register,
)

from ._session import Session

_GIGATRANSFERS: Final = {1: "2.5", 2: "5", 3: "8", 4: "16", 5: "32", 6: "64"}  # LINK_SPEED, in GT/s per lane (§7.5.3.6)


class Link(msgspec.Struct, frozen=True):
    """The link below a port. `below` is what both ends can do, where it runs slower or narrower than that."""

    text: str
    below: str | None = None


def link_text(speed: int, width: int) -> str:
    """Write the two fields of Link Status and Link Capabilities as people read them."""
    return f"{_GIGATRANSFERS.get(speed, '?')} GT/s x{width}"


async def links(session: Session, topology: Topology) -> dict[Address, Link | None]:
    """Read the link of every port; None where nothing answers."""
    ports = tuple(function for function in topology if function.is_port)
    partners = tuple(_partner(port, topology) for port in ports)
    status = await _read(session, ports, LINK_STATUS)
    own = await _read(session, ports, LINK_CAPABILITIES)
    theirs = await _read(session, partners, LINK_CAPABILITIES)
    return {
        port.address: judge(held, (mine, other))
        for port, held, mine, other in zip(ports, status, own, theirs, strict=True)
    }


def judge(status: int | None, capabilities: tuple[int | None, int | None]) -> Link | None:
    """Say how a link runs, by Link Status of the port and Link Capabilities of both ends, its own first. Pure."""
    if status is None:
        return None
    own = capabilities[0]
    if own is not None and not own & LinkCapabilities.LINK_ACTIVE_REPORTING:
        return Link("not reported")  # the bit is hardwired to 0, and speed and width mean nothing while it may be down
    if not status & LinkStatus.LINK_ACTIVE:
        return Link("down")
    speed, width = _fields(status)
    if None in capabilities:
        return Link(link_text(speed, width))
    ends = [_fields(value) for value in capabilities if value is not None]
    best_speed, best_width = min(end[0] for end in ends), min(end[1] for end in ends)
    lower = speed < best_speed or width < best_width
    return Link(link_text(speed, width), link_text(best_speed, best_width) if lower else None)


def _fields(register: int) -> tuple[int, int]:
    return register & LINK_SPEED, (register & LINK_WIDTH) >> LINK_WIDTH_SHIFT


def _partner(port: Function, topology: Topology) -> Function | None:
    """Return the function at the other end of a port's link: any of the device has its Link Capabilities."""
    return next((child for child in topology.children(port.address) if child.capabilities.express), None)


async def _read(session: Session, functions: tuple[Function | None, ...], register: Register) -> tuple[int | None, ...]:
    """Read one register of the PCI Express capability of each; None where there is none, or no answer."""
    asked = [one for one in functions if one is not None and one.capabilities.express]
    values = await session.read(
        *((one.address, one.capabilities.express + register.offset, register.width) for one in asked)
    )
    held = {one.address: value for one, value in zip(asked, values, strict=True)}
    return tuple(None if one is None else held.get(one.address) for one in functions)
