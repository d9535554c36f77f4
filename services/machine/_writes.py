"""What a config write does beyond changing bits: resets, triggers, commands. The machine acts on what was written."""

from __future__ import annotations

from typing import Final

from shared.pcie import registers as r
from shared.pcie import timing

from ._errors import contain
from ._function import SimulatedFunction
from ._port import hot_reset

_POWER_STATE: Final = 0x0003  # §7.5.2.2: 0 is D0, 3 is D3hot
_D3HOT: Final = 3


def store(function: SimulatedFunction, offset: int, data: bytes) -> None:
    """Change the bits that software may change. Containment is not released while the root port is busy."""
    containment = function.port.containment if function.port is not None else None
    if containment is not None and containment.busy:
        data = _without_release(function, offset, data)
    function.space.write(offset, len(data), int.from_bytes(data, "little"))


def react(function: SimulatedFunction, before: Before, offset: int, data: bytes, now: float) -> None:
    """Do what the write asks for."""
    _reset_function(function, before, offset, data, now)
    _reset_secondary(function, before)
    port = function.port
    if port is None:
        return
    if (function.express.written(r.LINK_CONTROL, offset, data) or 0) & r.LinkControl.RETRAIN_LINK:
        port.link.retrain()
    if port.slot is not None:
        if function.express.written(r.SLOT_STATUS, offset, data) is not None:
            port.slot.status_cleared()
        if function.express.written(r.SLOT_CONTROL, offset, data) is not None:
            port.slot.commanded()
    if port.containment is not None and function.dpc is not None:
        asked = (function.dpc.written(r.DPC_CONTROL, offset, data) or 0) & r.DpcControl.SOFTWARE_TRIGGER
        if asked and port.containment.software_can_trigger:
            contain(function, r.DpcReason.SOFTWARE)


class Before:
    """What must be known of the time before a write."""

    __slots__ = ("in_reset", "power_state")

    def __init__(self, function: SimulatedFunction) -> None:
        self.in_reset = _in_reset(function)
        self.power_state = function.power.get(r.PM_CONTROL) & _POWER_STATE


def _without_release(function: SimulatedFunction, offset: int, data: bytes) -> bytes:
    at = function.caps.dpc + r.DPC_STATUS.offset - offset
    if not 0 <= at < len(data):
        return data
    held = data[at] & ~r.DpcStatus.TRIGGER
    return data[:at] + bytes([held]) + data[at + 1 :]


def _reset_function(function: SimulatedFunction, before: Before, offset: int, data: bytes, now: float) -> None:
    """Reset the function alone: FLR, or the way from D3hot to D0 where software must expect one (§6.6.2, §5.3.1.4)."""
    control = function.express.written(r.DEVICE_CONTROL, offset, data) or 0
    if function.spec.flr and control & r.DeviceControl.INITIATE_FLR:
        function.space.hot_reset()
        above = function.port_above()
        function.ready_at = now + (function.spec.ready_after_s if above is None else above.readiness_s(function))
        return
    power_state = function.power.get(r.PM_CONTROL) & _POWER_STATE
    if function.spec.pm_reset and before.power_state == _D3HOT and power_state == 0:
        function.space.hot_reset()
        function.ready_at = now + timing.PM_D3HOT_TO_D0


def _reset_secondary(function: SimulatedFunction, before: Before) -> None:
    """Reset a switch's inner bus: below a port with a link, the link falling does it."""
    if function.port is None and _in_reset(function) and not before.in_reset:
        for child in function.children:
            hot_reset(child.subtree())


def _in_reset(function: SimulatedFunction) -> bool:
    if not function.spec.is_bridge:
        return False
    return bool(function.header.get(r.BRIDGE_CONTROL) & r.BridgeControl.SECONDARY_BUS_RESET)
