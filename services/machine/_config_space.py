"""A function's config space as it is at power-on: header and capability chains, as its specification says."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from shared.pcie import Capabilities, ConfigSpace, capabilities_of
from shared.pcie import registers as r

from ._specs import FunctionSpec, LinkSpec, SlotSpec

TYPES: Final = {
    "root_port": r.DeviceType.ROOT_PORT,
    "upstream_port": r.DeviceType.UPSTREAM_PORT,
    "downstream_port": r.DeviceType.DOWNSTREAM_PORT,
    "endpoint": r.DeviceType.ENDPOINT,
    "integrated_endpoint": r.DeviceType.ROOT_COMPLEX_ENDPOINT,
}
_DWORD: Final = 0xFFFF_FFFF
_STATUS_CAPABILITIES_LIST: Final = 0x0010  # §7.5.1.1.4
_AT_POWER_MANAGEMENT, _AT_MSI, _AT_EXPRESS = 0x40, 0x50, 0x70  # ours: where the first 256 bytes have their chain
_PM_VERSION: Final = 3  # §7.5.2.1
_PM_NO_SOFT_RESET: Final = 0x0008  # §7.5.2.2
_EXPRESS_VERSION: Final = 2  # §7.5.3.2
_PAYLOAD_256: Final = 0x1  # §7.5.3.3: Max_Payload_Size Supported
_DEVICE_CONTROL_POWER_ON: Final = 0x2810  # §7.5.3.4: relaxed ordering, no snoop, 512-byte reads
_COMPLETION_TIMEOUT_DISABLE: Final = 0x10  # §7.5.3.15
_SLOT_CLOCK: Final = 0x1000  # §7.5.3.8: both ends use the connector's reference clock
_RRS_CAPABLE: Final = 0x1  # §7.5.3.13
_RP_PIO_LOG_DWORDS: Final = 4 << 8  # §7.9.14.2: RP PIO Log Size
_EXTENDED_ALIGNMENT: Final = 0x10
_EXTENDED_VERSION_SHIFT, _EXTENDED_NEXT_SHIFT = 16, 20  # §7.6.3
_INDICATORS_OFF: Final = r.Indicator.OFF << r.ATTENTION_INDICATOR_SHIFT | r.Indicator.OFF << r.POWER_INDICATOR_SHIFT
# Advisory errors are masked at power-on (§7.8.4.6). Internal errors are not, although §7.8.4.3 would: this machine's
# firmware wants to hear of them, and so does whoever injects one.
_CORRECTABLE_MASK_POWER_ON: Final = r.Correctable.ADVISORY_NONFATAL
_AER_VERSION, _SERIAL_VERSION, _DPC_VERSION = 2, 1, 1


def power_on(spec: FunctionSpec, link: LinkSpec) -> tuple[ConfigSpace, Capabilities]:
    """Return the function's config space after power-on, and where its capabilities are."""
    space = ConfigSpace()
    _header(space, spec)
    _power_management(space, spec)
    _msi(space)
    _express(space, spec, link)
    _extended(space, spec)
    return space, capabilities_of(space.image())


def _header(space: ConfigSpace, spec: FunctionSpec) -> None:
    values = {
        r.VENDOR_ID: spec.vendor,
        r.DEVICE_ID: spec.device,
        r.STATUS: _STATUS_CAPABILITIES_LIST,
        r.REVISION_AND_CLASS: spec.class_or_default << 8 | spec.revision,
        r.HEADER_TYPE: r.HeaderType.BRIDGE if spec.is_bridge else 0,
        r.SUBSYSTEM_VENDOR_ID: spec.subsystem & 0xFFFF,
        r.SUBSYSTEM_ID: spec.subsystem >> 16,
    }
    for register in r.TYPE1 if spec.is_bridge else r.TYPE0:
        space.place(register, values.get(register, 0))
    for register, size in zip(r.BAR, spec.bars, strict=False):
        space.place(replace(register, rw=_DWORD & ~(size - 1)))
    space.set(r.CAPABILITY_POINTER, 1, _AT_POWER_MANAGEMENT)


def _power_management(space: ConfigSpace, spec: FunctionSpec) -> None:
    _capability(space, _AT_POWER_MANAGEMENT, r.CapabilityId.POWER_MANAGEMENT, _AT_MSI)
    space.place(r.PM_CAPABILITIES, _PM_VERSION, _AT_POWER_MANAGEMENT)
    space.place(r.PM_CONTROL, 0 if spec.pm_reset else _PM_NO_SOFT_RESET, _AT_POWER_MANAGEMENT)


def _msi(space: ConfigSpace) -> None:
    _capability(space, _AT_MSI, r.CapabilityId.MSI, _AT_EXPRESS)
    for register in r.MSI:
        space.place(register, 0, _AT_MSI)
    space.place(r.MSI_CONTROL, r.MsiControl.ADDRESS_64 | r.MsiControl.MULTIPLE_CAPABLE_32, _AT_MSI)


def _capability(space: ConfigSpace, at: int, identifier: int, following: int) -> None:
    space.set(at, 2, following << 8 | identifier)


def _express(space: ConfigSpace, spec: FunctionSpec, link: LinkSpec) -> None:
    _capability(space, _AT_EXPRESS, r.CapabilityId.EXPRESS, 0)
    kind = TYPES[spec.kind]
    capabilities = _EXPRESS_VERSION | kind << r.EXPRESS_TYPE_SHIFT
    if spec.is_port:
        capabilities |= spec.vectors.hotplug << r.EXPRESS_MESSAGE_SHIFT
    if spec.slot is not None:
        capabilities |= r.EXPRESS_SLOT_IMPLEMENTED
    device = _PAYLOAD_256 | r.DeviceCapabilities.ROLE_BASED_ERRORS
    if spec.flr:
        device |= r.DeviceCapabilities.FUNCTION_LEVEL_RESET
    placed = {
        r.EXPRESS_CAPABILITIES: capabilities,
        r.DEVICE_CAPABILITIES: device,
        r.DEVICE_CONTROL: _DEVICE_CONTROL_POWER_ON,
        r.DEVICE_STATUS: 0,
        r.DEVICE_CAPABILITIES_2: _COMPLETION_TIMEOUT_DISABLE,
        r.DEVICE_CONTROL_2: 0,
    }
    if kind is not r.DeviceType.ROOT_COMPLEX_ENDPOINT:
        placed |= _link_registers(spec, link)
    if spec.slot is not None:
        placed |= _slot_registers(spec.slot)
    if kind is r.DeviceType.ROOT_PORT:
        placed |= {r.ROOT_CONTROL: 0, r.ROOT_CAPABILITIES: _RRS_CAPABLE, r.ROOT_STATUS: 0}
    for register, value in placed.items():
        space.place(register, value, _AT_EXPRESS)


def _link_registers(spec: FunctionSpec, link: LinkSpec) -> dict[r.Register, int]:
    capabilities = link.speed | link.width << r.LINK_WIDTH_SHIFT
    control = r.LINK_CONTROL
    if spec.is_port:
        capabilities |= r.LinkCapabilities.LINK_ACTIVE_REPORTING
        if spec.surprise_down:
            capabilities |= r.LinkCapabilities.SURPRISE_DOWN_REPORTING
    else:
        control = replace(control, rw=control.rw & ~r.LinkControl.LINK_DISABLE)  # §7.5.3.7: reserved at the lower end
    return {
        r.LINK_CAPABILITIES: capabilities,
        control: 0,
        r.LINK_STATUS: _SLOT_CLOCK,
        r.LINK_CAPABILITIES_2: ((1 << link.speed) - 1) << 1,  # §7.5.3.18: all speeds up to the best
        r.LINK_CONTROL_2: link.speed,
        r.LINK_STATUS_2: 0,
    }


def _slot_registers(slot: SlotSpec) -> dict[r.Register, int]:
    bits = r.SlotCapabilities
    capabilities = slot.number << r.SLOT_NUMBER_SHIFT
    indicators = bits.ATTENTION_INDICATOR | bits.POWER_INDICATOR
    for given, bit in (
        (slot.hotplug, bits.HOTPLUG_CAPABLE | indicators),
        (slot.hotplug and slot.surprise, bits.HOTPLUG_SURPRISE),
        (slot.power_controller, bits.POWER_CONTROLLER),
        (slot.button, bits.ATTENTION_BUTTON),
        (slot.mrl, bits.MRL_SENSOR),
        (not slot.command_completed, bits.NO_COMMAND_COMPLETED),
    ):
        capabilities |= bit if given else 0
    in_band = r.SlotCapabilities2.IN_BAND_PRESENCE_DISABLE_SUPPORTED if slot.out_of_band_presence else 0
    return {
        r.SLOT_CAPABILITIES: capabilities,
        r.SLOT_CONTROL: _INDICATORS_OFF,
        r.SLOT_STATUS: 0,
        r.SLOT_CAPABILITIES_2: in_band,
    }


def _extended(space: ConfigSpace, spec: FunctionSpec) -> None:
    """Place the extended capabilities one after another; the first must stand at 0x100."""
    chain: list[tuple[r.ExtendedId, int, int]] = []
    if spec.aer:
        chain.append((r.ExtendedId.AER, _AER_VERSION, r.AER_SIZE))
    if spec.serial is not None:
        chain.append((r.ExtendedId.DEVICE_SERIAL_NUMBER, _SERIAL_VERSION, r.SERIAL_NUMBER_SIZE))
    if spec.dpc:
        chain.append((r.ExtendedId.DPC, _DPC_VERSION, r.DPC_SIZE))
    at = r.EXTENDED_START
    for index, (identifier, version, size) in enumerate(chain):
        following = -(-(at + size) // _EXTENDED_ALIGNMENT) * _EXTENDED_ALIGNMENT
        last = index == len(chain) - 1
        header = identifier | version << _EXTENDED_VERSION_SHIFT | (0 if last else following) << _EXTENDED_NEXT_SHIFT
        space.set(at, 4, header)
        for register, value in _extended_values(spec, identifier).items():
            space.place(register, value, at)
        at = following


def _extended_values(spec: FunctionSpec, identifier: r.ExtendedId) -> dict[r.Register, int]:
    is_root = spec.kind == "root_port"
    if identifier is r.ExtendedId.AER:
        values = dict.fromkeys(r.AER_ROOT if is_root else r.AER, 0)
        values[r.UNCORRECTABLE_SEVERITY] = r.UNCORRECTABLE_FATAL_DEFAULT
        values[r.CORRECTABLE_MASK] = _CORRECTABLE_MASK_POWER_ON
        if is_root:
            values[r.ROOT_ERROR_STATUS] = spec.vectors.aer << r.ROOT_ERROR_MESSAGE_SHIFT
        return values
    if identifier is r.ExtendedId.DEVICE_SERIAL_NUMBER:
        serial = spec.serial_number
        assert serial is not None
        return {r.SERIAL_NUMBER_LOW: serial & _DWORD, r.SERIAL_NUMBER_HIGH: serial >> 32}
    assert identifier is r.ExtendedId.DPC
    values = dict.fromkeys(r.DPC_ROOT if is_root else r.DPC, 0)
    extensions = r.DpcCapabilities.RP_EXTENSIONS | _RP_PIO_LOG_DWORDS if is_root else 0
    values[r.DPC_CAPABILITIES] = spec.vectors.dpc | r.DpcCapabilities.SOFTWARE_TRIGGERING | extensions
    return values
