"""How people name a port or a device: by address, by slot, or by serial number. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from shared.pcie import Address, AddressError, Function, Topology
from shared.protocol.records import Device

from ._exit import ExitCode, Failure

_SLOT: Final = re.compile(r"slot(?:\((?P<dmesg>\d{1,4})\)|:(?P<short>\d{1,4}))", re.IGNORECASE)  # 13 bits (§7.5.3.9)
_SERIAL: Final = re.compile(r"(?:[0-9a-f]{2}-){7}[0-9a-f]{2}", re.IGNORECASE)
_NAMED_MAX: Final = 5  # leases that an error names
_FORMS: Final = (
    "an address (0000:3b:00.0, 3b:00.0), a slot (Slot(4), slot:4) or a serial number (00-11-22-33-44-55-66-77)"
)


def dashed(serial: int | None) -> str:
    """Write a serial number as lspci does; `-` for none."""
    return "-" if serial is None else serial.to_bytes(8, "big").hex("-")


def literal(text: str) -> Address | None:
    """Return the address that `text` spells, None where it names a slot or a serial number.

    Raises Failure for text that is none of them.
    """
    if _SLOT.fullmatch(text) or _SERIAL.fullmatch(text):
        return None
    try:
        return Address.parse(text)
    except AddressError as error:
        raise Failure(ExitCode.USAGE, f"{text!r} names no port or device; write {_FORMS}") from error


def resolve(text: str, topology: Topology, devices: Iterable[Device] = ()) -> Address:
    """Find what `text` names among the functions of the host and the registered devices, present or not."""
    address = literal(text)
    if address is not None:
        known = {function.address for function in topology} | {device.function for device in devices}
        return _only({address} & known, text)
    if slot := _SLOT.fullmatch(text):
        number = int(slot["dmesg"] or slot["short"])
        return _only({f.address for f in topology if f.slot is not None and f.slot_number == number}, text)
    return _by_serial(text, topology, devices)


def lease_named(text: str, known: Iterable[str], *, nobody: str) -> str:
    """Return the lease that `text` names, by its id or by a part that no other has. Raises Failure, `nobody` if none."""
    leases = tuple(dict.fromkeys(known))
    found = [text] if text in leases else [lease for lease in leases if text in lease]
    if not found:
        raise Failure(ExitCode.ABSENT, nobody)
    if len(found) > 1:
        # The last ones: whoever asks has just seen one of them.
        named = ", ".join(found[-_NAMED_MAX:])
        more = f" and {len(found) - _NAMED_MAX} older ones" if len(found) > _NAMED_MAX else ""
        raise Failure(ExitCode.USAGE, f"{text!r} is ambiguous: {named}{more}; name more of it")
    return found[0]


def port_of(address: Address, topology: Topology) -> Function:
    """Return the port that a lease for `address` is taken on. Raises Failure where there is none."""
    if topology.find(address) is None:
        raise Failure(ExitCode.ABSENT, f"{address} is gone; name the port or the slot that it was in")
    port = topology.lease_port(address)
    if port is None:
        raise Failure(ExitCode.POLICY, f"{address} has no port above it: it can be neither held nor powered")
    return port


def device_of(address: Address, topology: Topology) -> Address:
    """Return the function to reset for `address`: of a port with a device, the device's first function."""
    function = topology.find(address)
    below = topology.children(address) if function is not None and function.is_port else ()
    return below[0].address if below else address


def _by_serial(text: str, topology: Topology, devices: Iterable[Device]) -> Address:
    serial = int(text.replace("-", ""), 16)
    found = {f.address for f in topology if f.identity.serial == serial}
    found = found or {device.function for device in devices if device.identity.serial == serial}
    # The functions of one device share its serial number: the first stands for all.
    cards = {(a.domain, a.bus, a.device): a for a in sorted(found, reverse=True)}
    return _only(set(cards.values()), text)


def _only(found: set[Address], text: str) -> Address:
    if not found:
        raise Failure(ExitCode.ABSENT, f"{text}: this host has none; `holdfast topology` shows what it has")
    if len(found) > 1:
        named = ", ".join(str(address) for address in sorted(found))
        raise Failure(ExitCode.USAGE, f"{text} is ambiguous: {named}; name it by its address")
    return found.pop()
