"""What a 4 KiB image says: who the function is, which capabilities it has, and what software puts back after a reset.

Pure functions of the image. They are given whatever was read, so a chain that loops or leaves the space just ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from . import registers as r
from ._address import Address
from ._answer import all_ones
from ._identity import Identity
from ._topology import Capabilities, Function, Vectors

_STATUS_CAPABILITIES_LIST: Final = 0x0010  # §7.5.1.1.4
_POINTER_MASK: Final = 0xFC  # §7.5.1.1.11: the two low bits are reserved
_HEADER_END: Final = 0x40  # the first byte behind the header
_EXTENDED_NEXT_SHIFT: Final = 20  # §7.6.3
_EXTENDED_NEXT_MASK: Final = 0xFFC
_EXTENDED_ID_MASK: Final = 0xFFFF
_NOBODY: Final = frozenset(
    {0x0000, r.RRS_VENDOR_ID, r.NO_VENDOR}
)  # vendor ids that no function has (§2.3.2, §7.5.1.1.1)
_NO_EXTENDED: Final = frozenset({0, 0xFFFF_FFFF})

_DEVICES_PER_BUS: Final = 32
_LAST_REQUESTER_ID: Final = 0xFFFF

# Bits that act when written. Restoring a register must not act.
_NEVER_RESTORED: Final[dict[r.Register, int]] = {
    r.BRIDGE_CONTROL: r.BridgeControl.SECONDARY_BUS_RESET,
    r.DEVICE_CONTROL: r.DeviceControl.INITIATE_FLR,
    r.LINK_CONTROL: r.LinkControl.LINK_DISABLE | r.LinkControl.RETRAIN_LINK,
    r.DPC_CONTROL: r.DpcControl.SOFTWARE_TRIGGER,
}
_OF_LINKS: Final = frozenset({r.LINK_CONTROL, r.LINK_CONTROL_2})
_OF_SLOTS: Final = frozenset({r.SLOT_CONTROL})
_OF_ROOTS: Final = frozenset({r.ROOT_CONTROL})
_LINKLESS: Final = frozenset({r.DeviceType.ROOT_COMPLEX_ENDPOINT, r.DeviceType.ROOT_COMPLEX_EVENT_COLLECTOR})


def describe(address: Address, image: bytes, parent: Address | None) -> Function | None:
    """Return the function that the image shows; None where nothing answers, or nothing yet (RRS)."""
    if _field(image, r.VENDOR_ID) in _NOBODY:
        return None
    caps = capabilities_of(image)
    return _described(address, image, parent, caps, identity_of(image, caps))


def describe_virtual(address: Address, image: bytes, physical: Function, image_of_physical: bytes) -> Function | None:
    """Return the virtual function that the image shows; None where nothing answers.

    Vendor and device are those that the physical function gives for it: its own say FFFFh (§9.3.4.1.1).
    """
    if _field(image, r.REVISION_AND_CLASS) == all_ones(r.REVISION_AND_CLASS.width):
        return None
    caps = capabilities_of(image)
    device = _field(image_of_physical, r.VF_DEVICE_ID, physical.capabilities.sriov)
    identity = msgspec.structs.replace(identity_of(image, caps), vendor=physical.identity.vendor, device=device)
    virtual = _described(address, image, physical.parent, caps, identity)
    return msgspec.structs.replace(virtual, physical=physical.address)


def virtual_functions(physical: Function, image: bytes) -> tuple[Address, ...]:
    """Return where the virtual functions stand that are enabled in `physical` now (§9.3.3)."""
    base = physical.capabilities.sriov
    if not base or not _field(image, r.SRIOV_CONTROL, base) & r.SriovControl.VF_ENABLE:
        return ()
    count = min(_field(image, r.NUM_VFS, base), _field(image, r.TOTAL_VFS, base))
    first = physical.address.requester_id + _field(image, r.FIRST_VF_OFFSET, base)
    stride = _field(image, r.VF_STRIDE, base)
    ids = (first + stride * n for n in range(count))
    return tuple(physical.address.with_requester_id(each) for each in ids if each <= _LAST_REQUESTER_ID)


def _described(
    address: Address, image: bytes, parent: Address | None, caps: Capabilities, identity: Identity
) -> Function:
    kind = _kind(image, caps)
    has_slot = kind.is_downstream_port and bool(
        _field(image, r.EXPRESS_CAPABILITIES, caps.express) & r.EXPRESS_SLOT_IMPLEMENTED
    )
    slot = _field(image, r.SLOT_CAPABILITIES, caps.express) if has_slot else 0
    return Function(
        address=address,
        kind=kind,
        identity=identity,
        capabilities=caps,
        parent=parent,
        secondary=_field(image, r.SECONDARY_BUS) if kind.is_bridge else 0,
        subordinate=_field(image, r.SUBORDINATE_BUS) if kind.is_bridge else 0,
        slot=r.SlotCapabilities(slot & ((1 << r.SLOT_NUMBER_SHIFT) - 1)) if has_slot else None,
        slot_number=slot >> r.SLOT_NUMBER_SHIFT,
        in_band_disable=has_slot
        and bool(
            _field(image, r.SLOT_CAPABILITIES_2, caps.express) & r.SlotCapabilities2.IN_BAND_PRESENCE_DISABLE_SUPPORTED
        ),
        vectors=_vectors(image, caps, kind),
        flr=bool(caps.express)
        and bool(_field(image, r.DEVICE_CAPABILITIES, caps.express) & r.DeviceCapabilities.FUNCTION_LEVEL_RESET),
        link_active_reporting=kind.is_downstream_port
        and bool(_field(image, r.LINK_CAPABILITIES, caps.express) & r.LinkCapabilities.LINK_ACTIVE_REPORTING),
        associated=_associated(address, image, caps),
    )


def _associated(collector: Address, image: bytes, caps: Capabilities) -> tuple[Address, ...]:
    """Return the function 0 of every device whose errors the collector is told of, but for its own (§7.9.10.2)."""
    bitmap = _field(image, r.ASSOCIATION_BITMAP, caps.event_collector) if caps.event_collector else 0
    devices = (device for device in range(_DEVICES_PER_BUS) if bitmap >> device & 1 and device != collector.device)
    return tuple(Address(collector.domain, collector.bus, device, 0) for device in devices)


def capabilities_of(image: bytes) -> Capabilities:
    """Walk both chains; the first capability of each id counts."""
    plain: dict[int, int] = {}
    for identifier, offset in _chain(image):
        plain.setdefault(identifier, offset)
    extended: dict[int, int] = {}
    for identifier, offset in _extended_chain(image):
        extended.setdefault(identifier, offset)
    return Capabilities(
        express=plain.get(r.CapabilityId.EXPRESS, 0),
        power_management=plain.get(r.CapabilityId.POWER_MANAGEMENT, 0),
        msi=plain.get(r.CapabilityId.MSI, 0),
        advanced_features=plain.get(r.CapabilityId.ADVANCED_FEATURES, 0),
        aer=extended.get(r.ExtendedId.AER, 0),
        dpc=extended.get(r.ExtendedId.DPC, 0),
        serial_number=extended.get(r.ExtendedId.DEVICE_SERIAL_NUMBER, 0),
        msi_x=plain.get(r.CapabilityId.MSI_X, 0),
        event_collector=extended.get(r.ExtendedId.EVENT_COLLECTOR, 0),
        acs=extended.get(r.ExtendedId.ACS, 0),
        ari=extended.get(r.ExtendedId.ARI, 0),
        ltr=extended.get(r.ExtendedId.LTR, 0),
        resizable_bar=extended.get(r.ExtendedId.RESIZABLE_BAR, 0),
        sriov=extended.get(r.ExtendedId.SRIOV, 0),
    )


def identity_of(image: bytes, caps: Capabilities) -> Identity:
    """Return what the function says of itself. Bridges have no subsystem in their header: 0."""
    revision_and_class = _field(image, r.REVISION_AND_CLASS)
    subsystem = 0
    if not _field(image, r.HEADER_TYPE) & r.HeaderType.BRIDGE:
        subsystem = _field(image, r.SUBSYSTEM_ID) << 16 | _field(image, r.SUBSYSTEM_VENDOR_ID)
    serial = None
    if caps.serial_number:
        low = _field(image, r.SERIAL_NUMBER_LOW, caps.serial_number)
        serial = _field(image, r.SERIAL_NUMBER_HIGH, caps.serial_number) << 32 | low
    return Identity(
        vendor=_field(image, r.VENDOR_ID),
        device=_field(image, r.DEVICE_ID),
        class_code=revision_and_class >> 8,
        revision=revision_and_class & 0xFF,
        subsystem=subsystem,
        serial=serial,
    )


def restorable(function: Function, image: bytes) -> tuple[tuple[int, int, int], ...]:
    """Return (offset, width, value) of all that software puts back after a reset, in the order in which it does.

    Values are those of the image, but for bits that would act: no reset, no disabled link, no trigger is restored.
    """
    found = [
        (register.restored, base + register.offset, register, _field(image, register, base))
        for register, base in _registers(function, image)
        if register.restored
    ]
    found.sort(key=lambda row: row[:2])
    return tuple((offset, register.width, _harmless(register, value)) for _, offset, register, value in found)


def _harmless(register: r.Register, value: int) -> int:
    kept = register.rw or value  # a BAR's writable bits depend on its size, and its read-only bits do no harm
    return value & kept & ~_NEVER_RESTORED.get(register, 0)


def _registers(function: Function, image: bytes) -> Iterator[tuple[r.Register, int]]:
    """Yield every register that this function has, with the base that its offset counts from."""
    caps = function.capabilities
    for register in r.TYPE1 if function.kind.is_bridge else r.TYPE0:
        yield register, 0
    if caps.power_management:
        yield from ((register, caps.power_management) for register in r.POWER_MANAGEMENT)
    if caps.msi:
        yield from ((register, caps.msi) for register in _msi(image, caps.msi))
    if caps.express:
        absent = _absent_from_express(function)
        yield from ((register, caps.express) for register in r.EXPRESS if register not in absent)
    if caps.aer:
        yield from ((register, caps.aer) for register in (r.AER_ROOT if function.kind.receives_errors else r.AER))
    if caps.dpc:
        extended = _field(image, r.DPC_CAPABILITIES, caps.dpc) & r.DpcCapabilities.RP_EXTENSIONS
        yield from ((register, caps.dpc) for register in (r.DPC_ROOT if extended else r.DPC))
    for base, table in (
        (caps.msi_x, r.MSI_X),
        (caps.acs, r.ACS),
        (caps.ari, r.ARI),
        (caps.ltr, r.LTR),
        (caps.resizable_bar, _resizable_bars(image, caps.resizable_bar)),
        (caps.sriov, r.SRIOV),
    ):
        yield from ((register, base) for register in table if base)


def _resizable_bars(image: bytes, base: int) -> tuple[r.Register, ...]:
    """Return the control registers that there are: the first tells how many (§7.8.6.3)."""
    count = (_field(image, r.RESIZABLE_BAR_CONTROL[0], base) & r.RESIZABLE_BARS) >> r.RESIZABLE_BARS_SHIFT
    return r.RESIZABLE_BAR_CONTROL[:count] if base else ()


def _msi(image: bytes, base: int) -> tuple[r.Register, ...]:
    """Message Data stands where the upper address would, in a function with 32-bit message addresses (§7.7.1)."""
    if _field(image, r.MSI_CONTROL, base) & r.MsiControl.ADDRESS_64:
        return r.MSI
    return r.MSI_CONTROL, r.MSI_ADDRESS, r.MSI_DATA_32


def _absent_from_express(function: Function) -> frozenset[r.Register]:
    absent: frozenset[r.Register] = frozenset()
    if function.kind in _LINKLESS:
        absent |= _OF_LINKS
    if function.slot is None:
        absent |= _OF_SLOTS
    if not function.kind.receives_errors:
        absent |= _OF_ROOTS
    return absent


def _kind(image: bytes, caps: Capabilities) -> r.DeviceType:
    """Return the device type; a function without a PCI Express capability counts as what stands behind a bridge."""
    if caps.express:
        value = (_field(image, r.EXPRESS_CAPABILITIES, caps.express) & r.EXPRESS_TYPE) >> r.EXPRESS_TYPE_SHIFT
        return r.DeviceType(value) if value in set(r.DeviceType) else r.DeviceType.ENDPOINT
    is_bridge = _field(image, r.HEADER_TYPE) & r.HeaderType.BRIDGE
    return r.DeviceType.PCIE_TO_PCI_BRIDGE if is_bridge else r.DeviceType.LEGACY_ENDPOINT


def _vectors(image: bytes, caps: Capabilities, kind: r.DeviceType) -> Vectors:
    hotplug = (
        (_field(image, r.EXPRESS_CAPABILITIES, caps.express) & r.EXPRESS_MESSAGE) >> r.EXPRESS_MESSAGE_SHIFT
        if caps.express
        else 0
    )
    is_root = bool(caps.aer) and kind.receives_errors
    aer = _field(image, r.ROOT_ERROR_STATUS, caps.aer) >> r.ROOT_ERROR_MESSAGE_SHIFT if is_root else 0
    dpc = _field(image, r.DPC_CAPABILITIES, caps.dpc) & r.DPC_MESSAGE if caps.dpc else 0
    return Vectors(hotplug=hotplug, aer=aer, dpc=dpc)


def _chain(image: bytes) -> Iterator[tuple[int, int]]:
    """Yield (id, offset) of the first 256 bytes' capabilities."""
    if not _field(image, r.STATUS) & _STATUS_CAPABILITIES_LIST:
        return
    seen: set[int] = set()
    offset = image[r.CAPABILITY_POINTER] & _POINTER_MASK
    while offset >= _HEADER_END and offset not in seen:
        seen.add(offset)
        yield image[offset], offset
        offset = image[offset + 1] & _POINTER_MASK


def _extended_chain(image: bytes) -> Iterator[tuple[int, int]]:
    """Yield (id, offset) of the extended capabilities."""
    seen: set[int] = set()
    offset = r.EXTENDED_START
    while r.EXTENDED_START <= offset <= len(image) - 4 and offset not in seen:
        seen.add(offset)
        header = int.from_bytes(image[offset : offset + 4], "little")
        if header in _NO_EXTENDED:
            return
        yield header & _EXTENDED_ID_MASK, offset
        offset = header >> _EXTENDED_NEXT_SHIFT & _EXTENDED_NEXT_MASK


def _field(image: bytes, register: r.Register, base: int = 0) -> int:
    offset = base + register.offset
    return int.from_bytes(image[offset : offset + register.width], "little")
