"""Writes to Slot Control and Slot Status: the power controller, the two indicators, and what has latched."""

from __future__ import annotations

from shared.pcie import Function
from shared.pcie import registers as r
from shared.protocol.fabric import Operation
from shared.recovery import modify, write

_C = r.SlotCapabilities


def clear(port: Function, bits: int) -> Operation:
    """Clear exactly these latched bits (RW1C): what latches in between stays."""
    return write(port.address, port.capabilities.express + r.SLOT_STATUS.offset, r.SLOT_STATUS.width, bits)


def control(port: Function, *, mask: int, value: int) -> tuple[Operation, ...]:
    """Change some bits of Slot Control; nothing to do for an empty mask."""
    if not mask:
        return ()
    offset = port.capabilities.express + r.SLOT_CONTROL.offset
    return (modify(port.address, offset, r.SLOT_CONTROL.width, mask=mask, value=value),)


def lamps(
    port: Function, *, power: r.Indicator | None = None, attention: r.Indicator | None = None
) -> tuple[Operation, ...]:
    """Set the indicators that the slot has; None leaves one as it is."""
    mask, value = _lamps(port, power, attention)
    return control(port, mask=mask, value=value)


def power(port: Function, *, on: bool, attention: r.Indicator | None = None) -> tuple[Operation, ...]:
    """Switch power and its indicator in one command: blinking while the slot comes up, off when it is down."""
    mask, value = _lamps(port, r.Indicator.BLINK if on else r.Indicator.OFF, attention)
    if has(port, _C.POWER_CONTROLLER):
        mask |= r.SlotControl.POWER_OFF
        value |= 0 if on else r.SlotControl.POWER_OFF
    return control(port, mask=mask, value=value)


def has(port: Function, capability: r.SlotCapabilities) -> bool:
    """Tell whether the slot has this capability."""
    return port.slot is not None and capability in port.slot


def enables(port: Function) -> int:
    """Return the bits of Slot Control that must be set when nobody masks them: interrupts, and trustworthy presence.

    Power faults and the latch are enabled too, unlike in pciehp: a fault that nobody looks for is not reported.
    """
    wanted = (
        r.SlotControl.HOTPLUG_INTERRUPT_ENABLE
        | r.SlotControl.PRESENCE_CHANGED_ENABLE
        | r.SlotControl.LINK_STATE_CHANGED_ENABLE
        | r.SlotControl.POWER_FAULT_ENABLE
    )
    if has(port, _C.ATTENTION_BUTTON):
        wanted |= r.SlotControl.ATTENTION_BUTTON_ENABLE
    if has(port, _C.MRL_SENSOR):
        wanted |= r.SlotControl.MRL_CHANGED_ENABLE
    if port.in_band_disable:
        wanted |= r.SlotControl.IN_BAND_PRESENCE_DISABLE
    return int(wanted)


def _lamps(port: Function, power: r.Indicator | None, attention: r.Indicator | None) -> tuple[int, int]:
    mask = value = 0
    if power is not None and has(port, _C.POWER_INDICATOR):
        mask |= r.POWER_INDICATOR
        value |= power << r.POWER_INDICATOR_SHIFT
    if attention is not None and has(port, _C.ATTENTION_INDICATOR):
        mask |= r.ATTENTION_INDICATOR
        value |= attention << r.ATTENTION_INDICATOR_SHIFT
    return mask, value
