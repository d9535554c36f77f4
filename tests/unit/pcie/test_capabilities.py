"""What an image says: the function, its identity, and what software puts back after a reset."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shared.pcie import Address, Capabilities, ConfigSpace, capabilities_of, describe, identity_of, restorable
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
