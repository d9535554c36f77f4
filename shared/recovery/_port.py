"""A port as one read shows it, and what that says of the card behind it. Pure.

Presence is in-band *or* out-of-band (DESIGN 5). In-band presence follows the link, so while the port is contained,
disabled or in reset, no presence means nothing; unless in-band presence is disabled (Slot Control bit 14, PCIe r6.2
§7.5.3.10), when the bit is wired to the card itself and is always to be believed.
"""

from __future__ import annotations

import msgspec

from shared.pcie import Function, Value, answered
from shared.pcie.registers import (
    BRIDGE_CONTROL,
    DPC_CAPABILITIES,
    DPC_STATUS,
    LINK_CONTROL,
    LINK_STATUS,
    SLOT_CONTROL,
    SLOT_STATUS,
    BridgeControl,
    DpcCapabilities,
    DpcStatus,
    LinkControl,
    LinkStatus,
    SlotControl,
    SlotStatus,
)
from shared.protocol.fabric import Operation

from ._effects import Logic, ask, read


class PortView(msgspec.Struct, frozen=True, kw_only=True):
    """What the registers of a port held in one step."""

    in_reset: bool  # Secondary Bus Reset is set
    disabled: bool  # Link Disable is set
    contained: bool  # DPC Trigger Status is set
    busy: bool  # DPC RP Busy is set
    rp_pio: bool  # the port has the RP PIO registers
    link_active: bool
    training: bool = False  # the link is being trained, or trained anew while it stays active
    present: bool | None  # Presence Detect State; None where there is no slot to ask
    out_of_band: bool  # presence does not follow the link

    @property
    def known_gone(self) -> bool:
        """The card is gone, whatever the link does (P8)."""
        return self.out_of_band and self.present is False

    @property
    def looks_gone(self) -> bool:
        """No link and no card, though nothing holds the link down. Certain once the link's bound has passed (P8)."""
        held_down = self.in_reset or self.disabled or self.contained
        return self.known_gone or (self.present is False and not self.link_active and not held_down)


def port_reads(port: Function) -> tuple[Operation, ...]:
    """Return the reads that `port_view` needs, always to be done in one step."""
    express, dpc = port.capabilities.express, port.capabilities.dpc
    reads = [
        read(port.address, BRIDGE_CONTROL.offset, BRIDGE_CONTROL.width),
        read(port.address, express + LINK_CONTROL.offset, LINK_CONTROL.width),
        read(port.address, express + LINK_STATUS.offset, LINK_STATUS.width),
    ]
    if port.slot is not None:
        reads.append(read(port.address, express + SLOT_CONTROL.offset, SLOT_CONTROL.width))
        reads.append(read(port.address, express + SLOT_STATUS.offset, SLOT_STATUS.width))
    if dpc:
        reads.append(read(port.address, dpc + DPC_CAPABILITIES.offset, DPC_CAPABILITIES.width))
        reads.append(read(port.address, dpc + DPC_STATUS.offset, DPC_STATUS.width))
    return tuple(reads)


def port_view(port: Function, held: tuple[Value, ...]) -> PortView | None:
    """Return what the answers to `port_reads` say; None if the port did not answer (P9: all ones is no evidence)."""
    assert len(held) == len(port_reads(port))
    known = tuple(value for value in held if answered(value))
    if len(known) != len(held):
        return None
    bridge_control, link_control, link_status, *rest = known
    slot_control, slot_status = rest[:2] if port.slot is not None else (0, 0)
    dpc_capabilities, dpc_status = rest[-2:] if port.capabilities.dpc else (0, 0)
    return PortView(
        in_reset=bool(bridge_control & BridgeControl.SECONDARY_BUS_RESET),
        disabled=bool(link_control & LinkControl.LINK_DISABLE),
        contained=bool(dpc_status & DpcStatus.TRIGGER),
        busy=bool(dpc_status & DpcStatus.RP_BUSY),
        rp_pio=bool(dpc_capabilities & DpcCapabilities.RP_EXTENSIONS),
        link_active=bool(link_status & LinkStatus.LINK_ACTIVE),
        training=bool(link_status & LinkStatus.LINK_TRAINING),
        present=None if port.slot is None else bool(slot_status & SlotStatus.PRESENCE),
        out_of_band=bool(slot_control & SlotControl.IN_BAND_PRESENCE_DISABLE),
    )


def look_at(port: Function) -> Logic[PortView | None]:
    """Read the port; None if it does not answer."""
    return port_view(port, (yield from ask(port_reads(port))))
