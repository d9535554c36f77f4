"""What firmware has done before anybody looks: bus numbers, memory, enables. It writes as software does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from shared.pcie import registers as r

from ._function import SimulatedFunction
from ._specs import MachineError

_MEMORY_START: Final = 0x8000_0000  # ours: memory below 4 GiB that devices share ...
_MEMORY_END: Final = 0xFEC0_0000  # ... up to the interrupt controllers
_WINDOW: Final = 0x0010_0000  # §7.5.1.3.8: bridge windows come in units of 1 MiB
_SLOT_RESERVE: Final = 2 * _WINDOW  # Linux hpmemsize: room for the next card in a hotplug slot
_WINDOW_SHIFT: Final = 16
_IO_CLOSED: Final = 0x00F0  # §7.5.1.3.6: base above limit
_PREFETCHABLE_CLOSED: Final = 0xFFF0
_MSI_ADDRESS: Final = 0xFEE0_0000
_MSI_32_VECTORS: Final = 0x0050  # §7.7.1.2: Multiple Message Enable 101b
_COMMAND: Final = r.Command.MEMORY_SPACE | r.Command.BUS_MASTER | r.Command.SERR | r.Command.INTX_DISABLE
_REPORTING: Final = (
    r.DeviceControl.CORRECTABLE_REPORTING
    | r.DeviceControl.NONFATAL_REPORTING
    | r.DeviceControl.FATAL_REPORTING
    | r.DeviceControl.UNSUPPORTED_REQUEST_REPORTING
)
_ROOT_ERRORS: Final = (
    r.RootErrorCommand.CORRECTABLE_ENABLE | r.RootErrorCommand.NONFATAL_ENABLE | r.RootErrorCommand.FATAL_ENABLE
)


def boot(roots: Iterable[SimulatedFunction]) -> None:
    """Configure everything on the bench. Raises MachineError where the devices do not fit into memory."""
    cursor = _MEMORY_START
    for root in roots:
        cursor = _assign_memory(root, cursor)
        for function in root.subtree():
            _configure(function)
    if cursor > _MEMORY_END:
        raise MachineError(
            f"the functions' bars need {cursor - _MEMORY_START:#x} bytes; there is room for {_MEMORY_END - _MEMORY_START:#x}"
        )


def _assign_memory(function: SimulatedFunction, cursor: int) -> int:
    """Give memory to the function and all below, from `cursor` on; return where it ends."""
    if not function.spec.is_bridge:
        for register, size in zip(r.BAR, function.spec.bars, strict=False):
            cursor = _aligned(cursor, size)
            _write(function, register, cursor)
            cursor += size
        return cursor
    start = end = _aligned(cursor, _WINDOW)
    for child in function.children:
        end = _assign_memory(child, end)
    slot = function.spec.slot
    reserve = _SLOT_RESERVE if slot is not None and slot.hotplug else _WINDOW
    end = _aligned(max(end, start + reserve), _WINDOW)
    _write(function, r.MEMORY_BASE, start >> _WINDOW_SHIFT)
    _write(function, r.MEMORY_LIMIT, (end - 1) >> _WINDOW_SHIFT)
    return end


def _configure(function: SimulatedFunction) -> None:
    spec, caps = function.spec, function.caps
    if spec.bus is not None:
        _write(function, r.PRIMARY_BUS, spec.address.bus)
        _write(function, r.SECONDARY_BUS, spec.bus[0])
        _write(function, r.SUBORDINATE_BUS, spec.bus[1])
        _write(function, r.IO_BASE_LIMIT, _IO_CLOSED)
        _write(function, r.PREFETCHABLE_BASE, _PREFETCHABLE_CLOSED)
        _write(function, r.BRIDGE_CONTROL, r.BridgeControl.SERR)
    _write(function, r.MSI_ADDRESS, _MSI_ADDRESS, caps.msi)
    _write(function, r.MSI_CONTROL, r.MsiControl.ENABLE | _MSI_32_VECTORS, caps.msi)
    if spec.is_express:
        control = function.express.get(r.DEVICE_CONTROL)
        _write(function, r.DEVICE_CONTROL, control | _REPORTING, caps.express)
    if spec.is_port and any(child.caps.ari for child in function.children):
        _write(function, r.DEVICE_CONTROL_2, r.DeviceControl2.ARI_FORWARDING_ENABLE, caps.express)
    if spec.is_root:
        _write(function, r.ROOT_CONTROL, r.RootControl.RRS_SOFTWARE_VISIBILITY, caps.express)
        if caps.aer:
            _write(function, r.ROOT_ERROR_COMMAND, _ROOT_ERRORS, caps.aer)
    if spec.sriov is not None and spec.sriov.enabled:
        _write(function, r.NUM_VFS, spec.sriov.enabled, caps.sriov)
        hierarchy = r.SriovControl.ARI_CAPABLE_HIERARCHY if spec.ari else r.SriovControl(0)
        enable = r.SriovControl.VF_ENABLE | r.SriovControl.VF_MEMORY_SPACE | hierarchy
        _write(function, r.SRIOV_CONTROL, enable, caps.sriov)
    if spec.slot is not None and spec.slot.hotplug:
        _write(function, r.SLOT_CONTROL, _slot_control(function), caps.express)
    if caps.dpc:
        fatal = spec.dpc_trigger == "fatal"
        trigger = r.DpcControl.TRIGGER_ON_FATAL if fatal else r.DpcControl.TRIGGER_ON_NONFATAL
        _write(function, r.DPC_CONTROL, trigger | r.DpcControl.INTERRUPT_ENABLE, caps.dpc)
    _write(function, r.COMMAND, _COMMAND)


def _slot_control(function: SimulatedFunction) -> int:
    """Return the enables of what the slot has, its attention indicator off and its power indicator as it is."""
    slot, bits = function.spec.slot, r.SlotControl
    assert slot is not None
    power = r.Indicator.ON if function.children else r.Indicator.OFF
    control = bits.HOTPLUG_INTERRUPT_ENABLE | bits.PRESENCE_CHANGED_ENABLE | bits.LINK_STATE_CHANGED_ENABLE
    for given, bit in (
        (slot.button, bits.ATTENTION_BUTTON_ENABLE),
        (slot.mrl, bits.MRL_CHANGED_ENABLE),
        (slot.power_controller, bits.POWER_FAULT_ENABLE),
        (slot.command_completed, bits.COMMAND_COMPLETED_ENABLE),
    ):
        control |= bit if given else bits(0)
    return control | r.Indicator.OFF << r.ATTENTION_INDICATOR_SHIFT | power << r.POWER_INDICATOR_SHIFT


def _write(function: SimulatedFunction, register: r.Register, value: int, base: int = 0) -> None:
    function.space.write(base + register.offset, register.width, value)


def _aligned(value: int, size: int) -> int:
    return -(-value // size) * size
