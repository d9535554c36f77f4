from __future__ import annotations

import pytest

from services.console._exit import ExitCode, Failure
from services.console._names import dashed, device_of, port_of, resolve
from shared.pcie import Address, Capabilities, Function, Identity, Topology
from shared.pcie.registers import DeviceType, SlotCapabilities
from shared.protocol.records import Device

SERIAL = 0x0011_2233_4455_6677
PORT = Address.parse("0000:00:01.0")
NIC = Address.parse("0000:01:00.0")
NIC_TWIN = Address.parse("0000:01:00.1")
INTEGRATED = Address.parse("0000:00:1f.0")


def function(address: Address, kind: DeviceType, **fields: object) -> Function:
    serial = fields.pop("serial", None)
    identity = Identity(0x8086, 0x1533, 0x020000, 0, 0, serial if isinstance(serial, int) else None)
    return Function(address, kind, identity, Capabilities(), **fields)  # type: ignore[arg-type]


LAB = Topology(
    (
        function(PORT, DeviceType.ROOT_PORT, secondary=1, slot=SlotCapabilities.HOTPLUG_CAPABLE, slot_number=4),
        function(INTEGRATED, DeviceType.ROOT_COMPLEX_ENDPOINT),
        function(NIC, DeviceType.ENDPOINT, parent=PORT, serial=SERIAL),
        function(NIC_TWIN, DeviceType.ENDPOINT, parent=PORT, serial=SERIAL),
    )
)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("0000:01:00.0", NIC),
        ("01:00.0", NIC),
        ("0000-01-00-0", NIC),
        ("Slot(4)", PORT),
        ("slot(4)", PORT),
        ("slot:4", PORT),
        ("00-11-22-33-44-55-66-77", NIC),
    ],
)
def test_a_port_is_named_by_address_by_slot_or_by_serial_number(text: str, meant: Address) -> None:
    assert resolve(text, LAB) == meant


@pytest.mark.parametrize(
    "text", ["", "1", "0000:01:00", "01:00.8", "slot4", "Slot()", "0000:01:00.0 ", "zz:00.0", "slot:" + "9" * 5000]
)
def test_what_names_nothing_is_a_usage_error_that_shows_the_forms(text: str) -> None:
    with pytest.raises(Failure, match=r"names no port or device; write an address") as failed:
        resolve(text, LAB)
    assert failed.value.code is ExitCode.USAGE


@pytest.mark.parametrize("text", ["0000:7f:00.0", "Slot(9)", "ff-ff-ff-ff-00-00-00-00"])
def test_what_the_host_does_not_have_is_absent(text: str) -> None:
    with pytest.raises(Failure, match="this host has none") as failed:
        resolve(text, LAB)
    assert failed.value.code is ExitCode.ABSENT


def test_a_device_that_was_removed_is_still_found_in_the_registry() -> None:
    gone = Address.parse("0000:09:00.0")
    record = Device(function=gone, port=PORT, identity=Identity(1, 2, 3, 4, 5, 0xAB), generation=1, present=False)
    assert resolve("00-00-00-00-00-00-00-ab", LAB, (record,)) == gone
    assert resolve("09:00.0", LAB, (record,)) == gone


def test_two_cards_with_one_serial_number_are_not_guessed_between() -> None:
    elsewhere = function(Address.parse("0000:02:00.0"), DeviceType.ENDPOINT, serial=SERIAL)
    with pytest.raises(Failure, match=r"ambiguous: 0000:01:00\.0, 0000:02:00\.0"):
        resolve("00-11-22-33-44-55-66-77", Topology((*LAB.functions, elsewhere)))


def test_an_endpoint_is_held_by_the_port_above_and_an_integrated_one_by_none() -> None:
    assert port_of(NIC, LAB).address == PORT
    assert port_of(PORT, LAB).address == PORT
    with pytest.raises(Failure, match="is gone; name the port") as failed:
        port_of(Address.parse("0000:09:00.0"), LAB)
    assert failed.value.code is ExitCode.ABSENT
    with pytest.raises(Failure, match="has no port above it") as failed:
        port_of(INTEGRATED, LAB)
    assert failed.value.code is ExitCode.POLICY


def test_a_slot_that_is_to_be_reset_stands_for_the_device_in_it() -> None:
    assert device_of(PORT, LAB) == NIC
    assert device_of(NIC_TWIN, LAB) == NIC_TWIN
    assert device_of(INTEGRATED, LAB) == INTEGRATED


def test_serial_numbers_are_written_as_lspci_writes_them() -> None:
    assert dashed(SERIAL) == "00-11-22-33-44-55-66-77"
    assert dashed(None) == "-"
