"""What an image says: the function, its identity, and what software puts back after a reset."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shared.pcie import (
    Address,
    Capabilities,
    ConfigSpace,
    capabilities_of,
    describe,
    describe_virtual,
    identity_of,
    restorable,
    virtual_functions,
)
from shared.pcie import registers as r

HERE = Address.parse("0000:02:00.0")
EXPRESS_AT, AER_AT, DPC_AT, SERIAL_AT = 0x40, 0x100, 0x150, 0x1A0
SLOT = r.SlotCapabilities.HOTPLUG_CAPABLE | r.SlotCapabilities.HOTPLUG_SURPRISE
ALL = 0xFFFF_FFFF


def port_image(*, full: bool = False, kind: r.DeviceType = r.DeviceType.ROOT_PORT) -> bytes:
    """Return a port's image; `full`: with every writable bit set."""
    space = ConfigSpace()
    values = {
        r.VENDOR_ID: 0x8086,
        r.DEVICE_ID: 0x6F04,
        r.STATUS: 0x10,
        r.REVISION_AND_CLASS: 0x0604_0001,
        r.HEADER_TYPE: r.HeaderType.BRIDGE,
        r.EXPRESS_CAPABILITIES: 2 | kind << 4 | r.EXPRESS_SLOT_IMPLEMENTED | 3 << 9,
        r.LINK_CAPABILITIES: r.LinkCapabilities.LINK_ACTIVE_REPORTING,
        r.SLOT_CAPABILITIES: SLOT | 41 << 19,
        r.ROOT_ERROR_STATUS: 5 << 27,
        r.DPC_CAPABILITIES: 7 | r.DpcCapabilities.RP_EXTENSIONS,
        r.SERIAL_NUMBER_LOW: 0x4455_6677,
        r.SERIAL_NUMBER_HIGH: 0x0011_2233,
    }
    for registers, base in ((r.TYPE1, 0), (r.EXPRESS, EXPRESS_AT), (r.AER_ROOT, AER_AT), (r.DPC_ROOT, DPC_AT)):
        for register in registers:
            space.place(register, values.get(register, 0) | (register.rw if full else 0), base)
    for register in r.SERIAL_NUMBER:
        space.place(register, values[register], SERIAL_AT)
    space.set(r.CAPABILITY_POINTER, 1, EXPRESS_AT)
    space.set(EXPRESS_AT, 2, r.CapabilityId.EXPRESS)
    for at, identifier, following in ((AER_AT, 1, DPC_AT), (DPC_AT, 0x1D, SERIAL_AT), (SERIAL_AT, 3, 0)):
        space.set(at, 4, identifier | 1 << 16 | following << 20)
    return space.image()


def test_a_port_is_described() -> None:
    function = describe(HERE, port_image(), None)
    assert function is not None
    assert function.kind is r.DeviceType.ROOT_PORT
    assert function.capabilities == Capabilities(express=EXPRESS_AT, aer=AER_AT, dpc=DPC_AT, serial_number=SERIAL_AT)
    assert function.slot == SLOT
    assert function.slot_number == 41
    assert (function.vectors.hotplug, function.vectors.aer, function.vectors.dpc) == (3, 5, 7)
    assert function.link_active_reporting
    assert function.hotplug_capable
    assert function.identity.class_code == 0x060400
    assert function.identity.revision == 1
    assert function.identity.serial == 0x0011_2233_4455_6677


def test_a_function_without_a_serial_number_has_none_not_zero() -> None:
    assert identity_of(port_image(), Capabilities(express=EXPRESS_AT)).serial is None


def test_p9_all_ones_and_not_ready_yet_are_nobody() -> None:
    ones = b"\xff" * r.CONFIG_SPACE_SIZE
    assert describe(HERE, ones, None) is None
    assert describe(HERE, b"\x01\x00" + ones[2:], None) is None


def test_chains_that_loop_end() -> None:
    image = bytearray(port_image())
    image[EXPRESS_AT + 1] = EXPRESS_AT
    image[SERIAL_AT : SERIAL_AT + 4] = (3 | 1 << 16 | AER_AT << 20).to_bytes(4, "little")
    assert capabilities_of(bytes(image)).serial_number == SERIAL_AT


@given(st.dictionaries(st.integers(0, r.CONFIG_SPACE_SIZE - 1), st.integers(0, 0xFF), max_size=64))
def test_p9_whatever_was_read_describing_it_ends(damage: dict[int, int]) -> None:
    image = bytearray(port_image())
    for offset, value in damage.items():
        image[offset] = value
    function = describe(HERE, bytes(image), None)
    if function is not None:
        restorable(function, bytes(image))


def test_the_restore_begins_with_bus_numbers_and_ends_with_the_command_register() -> None:
    image = port_image()
    function = describe(HERE, image, None)
    assert function is not None
    offsets = [offset for offset, _, _ in restorable(function, image)]
    assert offsets[:3] == [0x18, 0x19, 0x1A]
    assert offsets[-1] == r.COMMAND.offset
    assert offsets.index(EXPRESS_AT + r.DEVICE_CONTROL.offset) < offsets.index(EXPRESS_AT + r.SLOT_CONTROL.offset)
    assert offsets.index(AER_AT + r.UNCORRECTABLE_MASK.offset) < offsets.index(DPC_AT + r.DPC_CONTROL.offset)


def test_p1_nothing_is_restored_that_would_act() -> None:
    image = bytearray(port_image(full=True))
    for at, register in ((EXPRESS_AT, r.DEVICE_CONTROL), (EXPRESS_AT, r.LINK_CONTROL), (DPC_AT, r.DPC_CONTROL)):
        image[at + register.offset : at + register.offset + 2] = b"\xff\xff"
    function = describe(HERE, bytes(image), None)
    assert function is not None
    values = {offset: value for offset, _, value in restorable(function, bytes(image))}
    assert not values[r.BRIDGE_CONTROL.offset] & r.BridgeControl.SECONDARY_BUS_RESET
    assert not values[EXPRESS_AT + r.DEVICE_CONTROL.offset] & r.DeviceControl.INITIATE_FLR
    assert not values[EXPRESS_AT + r.LINK_CONTROL.offset] & r.LinkControl.LINK_DISABLE
    assert not values[DPC_AT + r.DPC_CONTROL.offset] & r.DpcControl.SOFTWARE_TRIGGER
    assert values[EXPRESS_AT + r.SLOT_CONTROL.offset] & r.SLOT_MASKED == r.SLOT_MASKED


def test_a_switch_port_restores_nothing_that_only_roots_have() -> None:
    image = port_image(kind=r.DeviceType.DOWNSTREAM_PORT)
    function = describe(HERE, image, None)
    assert function is not None
    offsets = {offset for offset, _, _ in restorable(function, image)}
    assert AER_AT + r.ROOT_ERROR_COMMAND.offset not in offsets
    assert EXPRESS_AT + r.ROOT_CONTROL.offset not in offsets
    assert EXPRESS_AT + r.SLOT_CONTROL.offset in offsets


SRIOV_AT, REBAR_AT, COLLECTOR_AT = 0x200, 0x260, 0x280


def card_image(*, control: int = 1, number: int = 3, offset: int = 4, stride: int = 2) -> bytes:
    """Return the image of a physical function with two resizable BARs."""
    space = ConfigSpace()
    values = {
        r.VENDOR_ID: 0x8086,
        r.DEVICE_ID: 0x1572,
        r.STATUS: 0x10,
        r.REVISION_AND_CLASS: 0x0200_0001,
        r.SRIOV_CONTROL: control,
        r.TOTAL_VFS: 8,
        r.NUM_VFS: number,
        r.FIRST_VF_OFFSET: offset,
        r.VF_STRIDE: stride,
        r.VF_DEVICE_ID: 0x154C,
        r.RESIZABLE_BAR_CONTROL[0]: 2 << 5 | 7 << 8,
        r.RESIZABLE_BAR_CONTROL[1]: 2 | 9 << 8,
    }
    bars = r.RESIZABLE_BAR_CONTROL[:2]
    for registers, base in ((r.TYPE0, 0), (r.EXPRESS, EXPRESS_AT), (r.SRIOV, SRIOV_AT), (bars, REBAR_AT)):
        for register in registers:
            space.place(register, values.get(register, 0), base)
    space.set(r.CAPABILITY_POINTER, 1, EXPRESS_AT)
    space.set(EXPRESS_AT, 2, r.CapabilityId.EXPRESS)
    space.set(0x100, 4, r.ExtendedId.ARI | 1 << 16 | SRIOV_AT << 20)
    space.set(SRIOV_AT, 4, r.ExtendedId.SRIOV | 1 << 16 | REBAR_AT << 20)
    space.set(REBAR_AT, 4, r.ExtendedId.RESIZABLE_BAR | 1 << 16)
    return space.image()


def virtual_addresses(image: bytes, here: Address = HERE) -> list[str]:
    function = describe(here, image, None)
    assert function is not None
    return [str(address) for address in virtual_functions(function, image)]


def test_virtual_functions_stand_where_offset_and_stride_say() -> None:
    assert virtual_addresses(card_image()) == ["0000:02:00.4", "0000:02:00.6", "0000:02:01.0"]
    assert virtual_addresses(card_image(offset=255, stride=1)) == ["0000:02:1f.7", "0000:03:00.0", "0000:03:00.1"]


def test_there_are_no_virtual_functions_but_those_that_are_enabled_and_exist() -> None:
    assert virtual_addresses(card_image(control=0)) == []
    assert virtual_addresses(card_image(number=0)) == []
    assert len(virtual_addresses(card_image(number=0xFFFF))) == 8
    assert virtual_addresses(port_image()) == []


def test_p9_numbers_that_lead_off_the_last_bus_name_nobody() -> None:
    last = Address.parse("0000:ff:1f.6")
    assert virtual_addresses(card_image(offset=1, stride=1), last) == ["0000:ff:1f.7"]


def test_a_virtual_function_is_described_by_its_physical_one() -> None:
    image = card_image()
    physical = describe(HERE, image, None)
    assert physical is not None
    own = bytearray(image)
    own[0:4] = b"\xff\xff\xff\xff"
    address = Address.parse("0000:02:00.4")
    one = describe_virtual(address, bytes(own), physical, image)
    assert one is not None
    assert one.physical == HERE
    assert (one.identity.vendor, one.identity.device, one.identity.class_code) == (0x8086, 0x154C, 0x020000)
    assert describe_virtual(address, b"\xff" * r.CONFIG_SPACE_SIZE, physical, image) is None


def test_resizable_bars_are_restored_before_bars_and_the_number_of_virtual_functions_before_their_enable() -> None:
    """DESIGN 5, coordinator: Resizable BAR before BARs, SR-IOV, ..., command last."""
    image = card_image()
    function = describe(HERE, image, None)
    assert function is not None
    rows = restorable(function, image)
    offsets = [offset for offset, _, _ in rows]
    sizes = [REBAR_AT + register.offset for register in r.RESIZABLE_BAR_CONTROL]
    assert [offset for offset in offsets if offset in sizes] == sizes[:2], "as many as the first one says"
    assert offsets.index(sizes[1]) < offsets.index(r.BAR[0].offset)
    assert offsets.index(SRIOV_AT + r.NUM_VFS.offset) < offsets.index(SRIOV_AT + r.SRIOV_CONTROL.offset)
    assert {offset: value for offset, _, value in rows}[sizes[0]] == 7 << 8, "the size, and no bits that are fixed"
    assert offsets[-1] == r.COMMAND.offset


def test_a_collector_names_the_devices_of_its_bitmap_without_its_own() -> None:
    space = ConfigSpace()
    for register, value in ((r.VENDOR_ID, 0x8086), (r.DEVICE_ID, 1), (r.ASSOCIATION_BITMAP, 1 << 31 | 1 << 12 | 1)):
        space.place(register, value, COLLECTOR_AT if register is r.ASSOCIATION_BITMAP else 0)
    space.set(0x100, 4, r.ExtendedId.LTR | 1 << 16 | COLLECTOR_AT << 20)
    space.set(COLLECTOR_AT, 4, r.ExtendedId.EVENT_COLLECTOR | 2 << 16)
    function = describe(Address.parse("0000:05:0c.0"), space.image(), None)
    assert function is not None
    assert [str(address) for address in function.associated] == ["0000:05:00.0", "0000:05:1f.0"]
