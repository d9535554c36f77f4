"""What a config write does beyond changing bits: resets, triggers, commands. The machine acts on what was written."""

from __future__ import annotations

from typing import Final

from shared.pcie import registers as r
from shared.pcie import timing

from ._errors import contain
from ._function import Block, SimulatedFunction
from ._port import hot_reset
from ._virtual import is_enabled

_POWER_STATE: Final = 0x0003  # §7.5.2.2: 0 is D0, 3 is D3hot
_D3HOT: Final = 3


def store(function: SimulatedFunction, offset: int, data: bytes) -> None:
    """Change the bits that software may change.

    Containment is not released while the root port is busy, and NumVFs is fixed while virtual functions are enabled.
    """
    containment = function.port.containment if function.port is not None else None
    if containment is not None and containment.busy:
        data = _without_release(function, offset, data)
    if function.sriov is not None and is_enabled(function):
        data = _with_number_kept(function, function.sriov, offset, data)
    function.space.write(offset, len(data), int.from_bytes(data, "little"))


def react(function: SimulatedFunction, before: Before, offset: int, data: bytes, now: float) -> None:
    """Do what the write asks for."""
    _reset_function(function, before, offset, data, now)
    _reset_secondary(function, before, now)
    if is_enabled(function) and not before.enabled:
        for virtual in function.virtual_functions():
            virtual.space.hot_reset()
            virtual.ready_at = now + _readiness_s(virtual)
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

    __slots__ = ("enabled", "in_reset", "power_state")

    def __init__(self, function: SimulatedFunction) -> None:
        self.enabled = is_enabled(function)
        self.in_reset = _in_reset(function)
        self.power_state = function.power.get(r.PM_CONTROL) & _POWER_STATE


def _without_release(function: SimulatedFunction, offset: int, data: bytes) -> bytes:
    at = function.caps.dpc + r.DPC_STATUS.offset - offset
    if not 0 <= at < len(data):
        return data
    held = data[at] & ~r.DpcStatus.TRIGGER
    return data[:at] + bytes([held]) + data[at + 1 :]


def _with_number_kept(function: SimulatedFunction, sriov: Block, offset: int, data: bytes) -> bytes:
    """Put the number of virtual functions that is in force in place of what is written (§9.3.3.7)."""
    start = function.caps.sriov + r.NUM_VFS.offset - offset
    kept = sriov.get(r.NUM_VFS).to_bytes(r.NUM_VFS.width, "little")
    return bytes(kept[at - start] if 0 <= at - start < len(kept) else byte for at, byte in enumerate(data))


def _reset_function(function: SimulatedFunction, before: Before, offset: int, data: bytes, now: float) -> None:
    """Reset the function alone: FLR, or the way from D3hot to D0 where software must expect one (§6.6.2, §5.3.1.4).

    That takes the virtual functions of a physical one away: VF Enable is clear after it (§9.2.2.2).
    """
    if _starts_flr(function, offset, data):
        function.space.hot_reset()
        function.ready_at = now + _readiness_s(function)
        return
    power_state = function.power.get(r.PM_CONTROL) & _POWER_STATE
    if function.spec.pm_reset and before.power_state == _D3HOT and power_state == 0:
        function.space.hot_reset()
        function.ready_at = now + timing.PM_D3HOT_TO_D0


def _starts_flr(function: SimulatedFunction, offset: int, data: bytes) -> bool:
    control = function.express.written(r.DEVICE_CONTROL, offset, data) or 0
    if function.spec.flr and control & r.DeviceControl.INITIATE_FLR:
        return True
    at = function.caps.advanced_features + r.AF_CONTROL.offset - offset
    return function.spec.af_flr and 0 <= at < len(data) and bool(data[at] & r.AF_INITIATE_FLR)


def _readiness_s(function: SimulatedFunction) -> float:
    """Return how long after a reset the function begins to answer."""
    above = function.port_above()
    return function.spec.ready_after_s if above is None else above.readiness_s(function)


def _reset_secondary(function: SimulatedFunction, before: Before, now: float) -> None:
    """Reset a switch's inner bus, or a conventional one: below a port with a link, the link falling does it."""
    if function.port is not None:
        return
    if _in_reset(function) and not before.in_reset:
        for child in function.children:
            hot_reset(child.subtree())
    elif before.in_reset and not _in_reset(function):
        for child in function.children:
            child.ready_at = now + _readiness_s(child)


def _in_reset(function: SimulatedFunction) -> bool:
    if not function.spec.is_bridge:
        return False
    return bool(function.header.get(r.BRIDGE_CONTROL) & r.BridgeControl.SECONDARY_BUS_RESET)
