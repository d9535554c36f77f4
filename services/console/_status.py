"""`status`, `topology` and `leases`: what the services and the registers say right now."""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec
from rich.text import Text
from rich.tree import Tree

from shared.pcie import Address, Function, Topology
from shared.pcie.registers import SLOT_CONTROL, DeviceType, SlotControl
from shared.protocol import subjects
from shared.protocol.fabric import Lease, LeaseList, Quarantine, quarantine_over
from shared.protocol.records import Device
from shared.protocol.requests import SlotReply, SlotReport, SlotRequest

from ._exit import ExitCode, Failure
from ._links import Link, links
from ._names import dashed
from ._output import console, print_json, print_table, tell
from ._services import ServiceState, ask_services
from ._session import Session

_HOST_BRIDGE: Final = 0x0600  # base class and sub-class (PCI Code and ID Assignment 1.7); below them, the interface
_INTERFACE_BITS: Final = 8
_KINDS: Final = {
    DeviceType.ROOT_COMPLEX_ENDPOINT: "integrated endpoint",
    DeviceType.ROOT_COMPLEX_EVENT_COLLECTOR: "event collector",
    DeviceType.PCIE_TO_PCI_BRIDGE: "pci bridge",
    DeviceType.PCI_TO_PCIE_BRIDGE: "pcie bridge",
}


class Port(msgspec.Struct, frozen=True):
    """One port as `status --json` prints it. None: it has none, or nobody answered.

    `link_could` is what both ends of the link can do, where it runs slower or narrower; `quarantine` says why the port
    is held down.
    """

    port: str
    slot: int | None
    state: str | None
    link: str | None
    link_could: str | None
    masked: bool | None
    lease: str | None
    quarantine: str | None
    devices: tuple[Device, ...]


class Status(msgspec.Struct, frozen=True):
    """Everything that `status` shows."""

    host: str
    services: tuple[ServiceState, ...]
    ports: tuple[Port, ...]


async def status(session: Session, *, as_json: bool) -> ExitCode:
    """Show every port and every service. A service that is silent is shown, not an error."""
    services = await ask_services(session)
    topology = await session.topology()
    listed = await session.leases()
    ports = await _ports(session, topology, listed, await session.devices())
    found = Status(session.host, services, ports)
    if as_json:
        print_json(found)
        return ExitCode.OK
    rows = [row for port in ports for row in _rows(port)]
    columns = ("PORT", "SLOT", "STATE", "LINK", "MASK", "LEASE", "DEVICE", "SERIAL", "DRIVER", "GEN", "CHANNEL")
    print_table(columns, rows, empty=f"host {session.host} has no ports")
    console().print()
    print_table(
        ("SERVICE", "STATE", "OWNER", "STANDBY"),
        [
            (
                s.service,
                _coloured("answers", "green") if s.alive else _coloured("silent", "red"),
                s.owner or "-",
                " ".join(s.standby) or "-",
            )
            for s in services
        ],
        empty="",
    )
    return ExitCode.OK


def masked(function: Function, slot_control: int | None) -> bool | None:
    """Tell whether a slot's presence and link interrupts are off. None: no such slot, or no answer.

    Link State Changed can be enabled only on ports with Link Active Reporting (§7.5.3.10).
    """
    if not function.hotplug_capable or slot_control is None:
        return None
    wanted = SlotControl.PRESENCE_CHANGED_ENABLE
    if function.link_active_reporting:
        wanted |= SlotControl.LINK_STATE_CHANGED_ENABLE
    return slot_control & wanted != wanted


def quarantine_of(address: Address, topology: Topology, quarantines: tuple[Quarantine, ...]) -> Quarantine | None:
    """Return the quarantine that a port is in: its own, or one above it."""
    return quarantine_over(topology.path(address), quarantines)


def covering(address: Address, topology: Topology, leases: tuple[Lease, ...]) -> Lease | None:
    """Return the lease on `address` or on the nearest port above it."""
    chain = topology.path(address)
    by_port = {lease.port: lease for lease in leases}
    return next((by_port[port] for port in chain if port in by_port), None)


async def slot_controls(session: Session, ports: tuple[Function, ...]) -> dict[Address, int | None]:
    """Read Slot Control of every port."""
    values = await session.read(
        *((p.address, p.capabilities.express + SLOT_CONTROL.offset, SLOT_CONTROL.width) for p in ports)
    )
    return {port.address: value for port, value in zip(ports, values, strict=True)}


async def _ports(
    session: Session, topology: Topology, listed: LeaseList, devices: tuple[Device, ...]
) -> tuple[Port, ...]:
    ports = tuple(function for function in topology if function.is_port)
    found = await links(session, topology)
    controls = await slot_controls(session, ports)
    reports = await asyncio.gather(*(_slot(session, port) for port in ports))
    return tuple(
        _port(port, found[port.address], controls[port.address], report, topology, listed, devices)
        for port, report in zip(ports, reports, strict=True)
    )


def _port(
    port: Function,
    link: Link | None,
    control: int | None,
    report: SlotReport | None,
    topology: Topology,
    listed: LeaseList,
    devices: tuple[Device, ...],
) -> Port:
    lease = covering(port.address, topology, listed.leases)
    quarantine = quarantine_of(port.address, topology, listed.quarantines)
    return Port(
        port=str(port.address),
        slot=None if port.slot is None else port.slot_number,
        state=None if report is None else str(report.state),
        link=None if link is None else link.text,
        link_could=None if link is None else link.below,
        masked=masked(port, control),
        lease=None if lease is None else lease.id,
        quarantine=None if quarantine is None else quarantine.why or "in quarantine",
        devices=tuple(device for device in devices if device.port == port.address),
    )


async def _slot(session: Session, port: Function) -> SlotReport | None:
    """Ask hotplug for a slot; None where it has none or does not answer."""
    if not port.hotplug_capable:
        return None
    subject = subjects.slot(session.host, port.address, "status")
    try:
        report: SlotReport = await session.ask(subject, SlotRequest(), SlotReply, whom="hotplug", what="status")
    except Failure:
        return None
    return report


def _rows(port: Port) -> list[tuple[str | Text, ...]]:
    """Return one row per device of the port; the port's own columns stand in the first."""
    own: tuple[str | Text, ...] = (
        port.port,
        "-" if port.slot is None else str(port.slot),
        port.state or "-",
        _link(port),
        _mask(port),
        port.lease or "-",
    )
    blank: tuple[str | Text, ...] = ("",) * len(own)
    return [
        (*(blank if index else own), *device) for index, device in enumerate([_device(d) for d in port.devices] or [()])
    ]


def _link(port: Port) -> str | Text:
    if port.link_could is None:
        return port.link or "no answer"
    return _coloured(f"{port.link} (degraded: could be {port.link_could})", "yellow")


def _mask(port: Port) -> str | Text:
    if port.quarantine is not None:
        return _coloured("quarantine", "bold red")
    return _coloured("masked", "yellow") if port.masked else "-"


def _device(device: Device) -> tuple[str | Text, ...]:
    name = str(device.function)
    return (
        name if device.present else _coloured(f"{name} (gone)", "red"),
        dashed(device.identity.serial),
        device.driver or "-",
        str(device.generation),
        str(device.channel),
    )


def _coloured(text: str, style: str) -> Text:
    return Text(text, style=style)


async def topology(session: Session, *, as_json: bool) -> None:
    """Show the host's functions as a tree."""
    found = await session.topology()
    if as_json:
        print_json(found.functions)
        return
    held = {one.port for one in (await session.leases()).quarantines}
    tree = Tree(session.host + (" (firmware first)" if found.firmware_first else ""))
    for function in found:
        if function.parent is None:
            _grow(tree, function, found, held)
    console().print(tree)


def _grow(tree: Tree, function: Function, found: Topology, held: set[Address]) -> None:
    text = Text(describe_function(function))
    if function.address in held:
        text.append("  in quarantine", style="bold red")
    branch = tree.add(text)
    for child in found.children(function.address):
        _grow(branch, child, found, held)


def describe_function(function: Function) -> str:
    """Name a function for people: where, what kind, which slot, whose, and who it says it is."""
    slot = "" if function.slot is None else f"  Slot({function.slot_number})"
    collects = f"  for {' '.join(map(str, function.associated))}" if function.associated else ""
    return f"{function.address}  {_kind(function)}{slot}{collects}  {function.identity}"


def _kind(function: Function) -> str:
    if function.physical is not None:
        return f"virtual function of {function.physical}"
    if function.identity.class_code >> _INTERFACE_BITS == _HOST_BRIDGE:
        return "host bridge"
    if not function.capabilities.express and not function.kind.is_bridge:
        return "conventional device"
    return _KINDS.get(function.kind, function.kind.name.lower().replace("_", " "))


async def leases(session: Session, *, as_json: bool) -> None:
    """Show the open leases."""
    listed = await session.leases()
    if as_json:
        for lease in listed.leases:
            print_json(lease)
        return
    rows = [
        (
            lease.id,
            str(lease.port),
            lease.rank.name.lower(),
            lease.cause,
            lease.holder,
            f"{lease.age_s:.1f} s",
            _coloured(f"{lease.silent_s:.1f} s", "red" if lease.silent_s > lease.allowed_s else ""),
            " ".join(str(slot.port) for slot in lease.slots) or "-",
        )
        for lease in listed.leases
    ]
    columns = ("LEASE", "PORT", "RANK", "CAUSE", "HOLDER", "AGE", "SILENT", "MASKED SLOTS")
    print_table(columns, rows, empty="no open leases")
    for quarantine in listed.quarantines:
        tell(f"{quarantine.port} is in quarantine: {quarantine.why}; `holdfast quarantine list` tells more")
    for port in listed.edr:
        tell(f"{port}: the firmware awaits the answer to its EDR notification")
