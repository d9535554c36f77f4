"""A function's config space as it is at power-on: header and capability chains, as its specification says."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from shared.pcie import Capabilities, ConfigSpace, capabilities_of
from shared.pcie import registers as r

from ._extended import extend
from ._specs import FunctionSpec, LinkSpec, SlotSpec

TYPES: Final = {
    "root_port": r.DeviceType.ROOT_PORT,
    "upstream_port": r.DeviceType.UPSTREAM_PORT,
    "downstream_port": r.DeviceType.DOWNSTREAM_PORT,
    "endpoint": r.DeviceType.ENDPOINT,
    "pci_bridge": r.DeviceType.PCIE_TO_PCI_BRIDGE,
    "integrated_endpoint": r.DeviceType.ROOT_COMPLEX_ENDPOINT,
    "event_collector": r.DeviceType.ROOT_COMPLEX_EVENT_COLLECTOR,
}
_LINKLESS: Final = frozenset({"integrated_endpoint", "event_collector"})
_DWORD: Final = 0xFFFF_FFFF
_STATUS_CAPABILITIES_LIST: Final = 0x0010  # §7.5.1.1.4
# Ours: where the first 256 bytes have their chain.
_AT_POWER_MANAGEMENT, _AT_MSI, _AT_EXPRESS, _AT_ADVANCED_FEATURES, _AT_MSI_X = 0x40, 0x50, 0x70, 0xB0, 0xC0
_AF_TRANSACTIONS_PENDING: Final = 0x01  # AF ECN 2: AF Status tells of them
_MSI_X_ENTRY: Final = 16  # bytes (§7.7.2)
_PM_VERSION: Final = 3  # §7.5.2.1
_PM_NO_SOFT_RESET: Final = 0x0008  # §7.5.2.2
_EXPRESS_VERSION: Final = 2  # §7.5.3.2
_PAYLOAD_256: Final = 0x1  # §7.5.3.3: Max_Payload_Size Supported
_DEVICE_CONTROL_POWER_ON: Final = 0x2810  # §7.5.3.4: relaxed ordering, no snoop, 512-byte reads
_COMPLETION_TIMEOUT_DISABLE: Final = 0x10  # §7.5.3.15
_ARI_FORWARDING: Final = int(r.DeviceCapabilities2.ARI_FORWARDING_SUPPORTED)
_SLOT_CLOCK: Final = 0x1000  # §7.5.3.8: both ends use the connector's reference clock
_RRS_CAPABLE: Final = 0x1  # §7.5.3.13
_INDICATORS_OFF: Final = r.Indicator.OFF << r.ATTENTION_INDICATOR_SHIFT | r.Indicator.OFF << r.POWER_INDICATOR_SHIFT


def power_on(spec: FunctionSpec, link: LinkSpec) -> tuple[ConfigSpace, Capabilities]:
    """Return the function's config space after power-on, and where its capabilities are."""
    space = ConfigSpace()
    _header(space, spec)
    chain = [(_AT_POWER_MANAGEMENT, r.CapabilityId.POWER_MANAGEMENT), (_AT_MSI, r.CapabilityId.MSI)]
    chain += [(_AT_EXPRESS, r.CapabilityId.EXPRESS)] if spec.is_express else []
    chain += [(_AT_ADVANCED_FEATURES, r.CapabilityId.ADVANCED_FEATURES)] if spec.af_flr else []
    chain += [(_AT_MSI_X, r.CapabilityId.MSI_X)] if spec.msi_x else []
    following = [at for at, _ in chain[1:]] + [0]
    for (at, identifier), after in zip(chain, following, strict=True):
        space.set(at, 2, after << 8 | identifier)
    _power_management(space, spec)
    _msi(space)
    if spec.af_flr:
        _advanced_features(space)
    if spec.msi_x:
        _msi_x(space, spec)
    if spec.is_express:
        _express(space, spec, link)
        extend(space, spec)
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
    space.place(r.PM_CAPABILITIES, _PM_VERSION, _AT_POWER_MANAGEMENT)
    space.place(r.PM_CONTROL, 0 if spec.pm_reset else _PM_NO_SOFT_RESET, _AT_POWER_MANAGEMENT)


def _msi(space: ConfigSpace) -> None:
    for register in r.MSI:
        space.place(register, 0, _AT_MSI)
    space.place(r.MSI_CONTROL, r.MsiControl.ADDRESS_64 | r.MsiControl.MULTIPLE_CAPABLE_32, _AT_MSI)


def _msi_x(space: ConfigSpace, spec: FunctionSpec) -> None:
    """Place the capability; table and pending bits share the first BAR, one behind the other."""
    values = {r.MSI_X_CONTROL: spec.msi_x - 1, r.MSI_X_TABLE: 0, r.MSI_X_PENDING: spec.msi_x * _MSI_X_ENTRY}
    for register, value in values.items():
        space.place(register, value, _AT_MSI_X)


def _advanced_features(space: ConfigSpace) -> None:
    values = {
        r.AF_LENGTH: r.ADVANCED_FEATURES_SIZE,
        r.AF_CAPABILITIES: _AF_TRANSACTIONS_PENDING | r.AF_FUNCTION_LEVEL_RESET,
    }
    for register in r.ADVANCED_FEATURES:
        space.place(register, values.get(register, 0), _AT_ADVANCED_FEATURES)


def _express(space: ConfigSpace, spec: FunctionSpec, link: LinkSpec) -> None:
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
        r.DEVICE_CAPABILITIES_2: _COMPLETION_TIMEOUT_DISABLE | (_ARI_FORWARDING if spec.is_port else 0),
        r.DEVICE_CONTROL_2: 0,
    }
    if spec.kind not in _LINKLESS:
        placed |= _link_registers(spec, link)
    if spec.slot is not None:
        placed |= _slot_registers(spec.slot)
    if spec.is_root:
        placed |= _root_registers(spec)
    for register, value in placed.items():
        space.place(register, value, _AT_EXPRESS)


def _root_registers(spec: FunctionSpec) -> dict[r.Register, int]:
    shows_rrs = spec.kind == "root_port" and spec.rrs_visibility
    hidden = 0 if shows_rrs else r.RootControl.RRS_SOFTWARE_VISIBILITY
    control = replace(r.ROOT_CONTROL, rw=r.ROOT_CONTROL.rw & ~hidden)
    return {control: 0, r.ROOT_CAPABILITIES: _RRS_CAPABLE if shows_rrs else 0, r.ROOT_STATUS: 0}


def _link_registers(spec: FunctionSpec, link: LinkSpec) -> dict[r.Register, int]:
    capabilities = link.speed | link.width << r.LINK_WIDTH_SHIFT
    control = r.LINK_CONTROL
    if spec.is_port:
        if spec.link_active_reporting:
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
