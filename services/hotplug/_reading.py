"""What a look at a slot reads, and what it says: the port's own registers, and the evidence of every bridge above."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from shared.pcie import NO_ANSWER, Address, Function, Value, answered
from shared.pcie import registers as r
from shared.protocol.fabric import Operation, Verb

from ._presence import Presence, out_of_band, presence

# Changes of link and presence; and what the button, the power and the latch say. Command Completed is the fabric's.
CHANGES: Final = r.SlotStatus.PRESENCE_CHANGED | r.SlotStatus.LINK_STATE_CHANGED

Place = tuple[Address, r.Register]
_SLOT: Final = (r.SLOT_CONTROL, r.SLOT_STATUS, r.LINK_STATUS)
_AER: Final = (r.UNCORRECTABLE_STATUS, r.UNCORRECTABLE_MASK, r.UNCORRECTABLE_SEVERITY)


@dataclass(frozen=True, slots=True)
class Reading:
    """One look. `above` are the bridges above the port, nearest first."""

    port: Function
    above: tuple[Function, ...]
    values: Mapping[Place, Value]

    def at(self, function: Function, register: r.Register) -> Value:
        """Return what the register held; NO_ANSWER too where the function has no such register."""
        return self.values.get((function.address, register), NO_ANSWER)

    def _bits(self, function: Function, register: r.Register, bits: int) -> int:
        value = self.at(function, register)
        return value & bits if answered(value) else 0

    @property
    def silent(self) -> bool:
        """The port or a bridge above it does not answer: nothing can be said (P9)."""
        slot_registers = ((self.port, register) for register in _SLOT)
        bridges = ((bridge, r.BRIDGE_CONTROL) for bridge in (self.port, *self.above))
        return not all(answered(self.at(function, register)) for function, register in (*slot_registers, *bridges))

    @property
    def control(self) -> int:
        """Slot Control, of a port that is not silent."""
        return self._bits(self.port, r.SLOT_CONTROL, ~0)

    @property
    def status(self) -> int:
        """Slot Status, of a port that is not silent."""
        return self._bits(self.port, r.SLOT_STATUS, ~0)

    @property
    def latched(self) -> int:
        """PDC and DLLSC, as far as they are latched."""
        return self.status & CHANGES

    @property
    def contained(self) -> tuple[str, ...]:
        """What keeps the link down on purpose, here or above, by function and register; empty if nothing does."""
        watched = (
            (r.DPC_STATUS, r.DpcStatus.TRIGGER, "DPC triggered"),
            (r.LINK_CONTROL, r.LinkControl.LINK_DISABLE, "link disabled"),
            (r.BRIDGE_CONTROL, r.BridgeControl.SECONDARY_BUS_RESET, "in reset"),
        )
        return tuple(
            f"{bridge.address} {why}"
            for bridge in (self.port, *self.above)
            for register, bit, why in watched
            if self._bits(bridge, register, bit)
        )

    @property
    def fatal(self) -> tuple[str, ...]:
        """Fatal errors that are pending, here or above, by function and register.

        Surprise Down alone decides nothing (DESIGN 5): while the root port has not been read, its ERR_FATAL is what
        defers; once aer has judged that the device is gone, the removal may go on, and clears the bit.
        """
        found = []
        for bridge in (self.port, *self.above):
            status, mask, severity = (self.at(bridge, register) for register in _AER)
            if answered(status) and answered(mask) and answered(severity):
                pending = status & ~mask & severity & ~int(r.Uncorrectable.SURPRISE_DOWN)
                if pending:
                    found.append(f"{bridge.address} uncorrectable status {pending:#010x}")
            if self._bits(bridge, r.ROOT_ERROR_STATUS, r.RootErrorStatus.FATAL_RECEIVED):
                found.append(f"{bridge.address} has received ERR_FATAL")
        return tuple(found)

    @property
    def powered(self) -> bool:
        """The slot has power, or no power controller that could take it away."""
        assert self.port.slot is not None
        controlled = r.SlotCapabilities.POWER_CONTROLLER in self.port.slot
        return not (controlled and self.control & r.SlotControl.POWER_OFF)

    @property
    def presence(self) -> Presence:
        """Whether a card is there."""
        shut = bool(self.contained) or not self.powered
        return presence(slot_status=self.status, slot_control=self.control, shut=shut)

    @property
    def link(self) -> bool:
        """The data link layer is active; where a port cannot report that, a card stands for it."""
        if not self.port.link_active_reporting:
            return self.presence is Presence.PRESENT and self.powered
        return bool(self._bits(self.port, r.LINK_STATUS, r.LinkStatus.LINK_ACTIVE))

    @property
    def out_of_band(self) -> bool:
        """Presence is the pins alone."""
        return out_of_band(self.control)


def places(port: Function, above: Iterable[Function]) -> tuple[tuple[Function, r.Register, int], ...]:
    """Return what a look reads: function, register, and the base that the register's offset counts from."""
    found = [(port, register, port.capabilities.express) for register in _SLOT]
    for bridge in (port, *above):
        caps = bridge.capabilities
        found.append((bridge, r.BRIDGE_CONTROL, 0))
        if caps.express and bridge.is_port:
            found.append((bridge, r.LINK_CONTROL, caps.express))
        if caps.dpc:
            found.append((bridge, r.DPC_STATUS, caps.dpc))
        if caps.aer:
            found += [(bridge, register, caps.aer) for register in _AER]
        if caps.aer and bridge.kind is r.DeviceType.ROOT_PORT:
            found.append((bridge, r.ROOT_ERROR_STATUS, caps.aer))
    return tuple(found)


def look(port: Function, above: Iterable[Function]) -> tuple[Operation, ...]:
    """Return the reads of one look, in the order of `places`."""
    return tuple(
        Operation(
            verb=Verb.READ, function=function.address, offset=base + register.offset, width=register.width
        )
        for function, register, base in places(port, above)
    )  # fmt: skip


def seen(port: Function, above: tuple[Function, ...], values: Iterable[Value]) -> Reading:
    """Return what the answers to `look` say."""
    named = zip(places(port, above), values, strict=True)
    return Reading(port, above, {(function.address, register): value for (function, register, _), value in named})
