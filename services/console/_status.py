"""`status`, `topology` and `leases`: what the services and the registers say right now."""

from __future__ import annotations

import asyncio

import msgspec
from rich.text import Text
from rich.tree import Tree

from shared.pcie import Address, Function, Topology
from shared.pcie.registers import (
    LINK_SPEED,
    LINK_STATUS,
    LINK_WIDTH,
    LINK_WIDTH_SHIFT,
    SLOT_CONTROL,
    SLOT_MASKED,
    LinkStatus,
)
from shared.protocol import subjects
from shared.protocol.fabric import Lease
from shared.protocol.records import Device
from shared.protocol.requests import SlotReply, SlotReport, SlotRequest

from ._exit import ExitCode, Failure
from ._names import dashed
from ._output import console, print_json, print_table
from ._services import ServiceState, ask_services
from ._session import Session

_GIGATRANSFERS = {1: "2.5", 2: "5", 3: "8", 4: "16", 5: "32", 6: "64"}  # LINK_SPEED, in GT/s per lane (§7.5.3.6)


class Port(msgspec.Struct, frozen=True):
    """One port as `status --json` prints it. None: it has none, or nobody answered."""

    port: str
    slot: int | None
    state: str | None
    link: str | None
    masked: bool | None
    lease: str | None
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
    ports = await _ports(session, topology, listed.leases, await session.devices())
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
    """Tell whether a slot's presence and link interrupts are off. None: no such slot, or no answer."""
    if not function.hotplug_capable or slot_control is None:
        return None
    return slot_control & SLOT_MASKED != SLOT_MASKED


def covering(address: Address, topology: Topology, leases: tuple[Lease, ...]) -> Lease | None:
    """Return the lease on `address` or on the nearest port above it."""
    chain = (address, *(function.address for function in topology.ancestors(address)))
    by_port = {lease.port: lease for lease in leases}
    return next((by_port[port] for port in chain if port in by_port), None)


async def slot_controls(session: Session, ports: tuple[Function, ...]) -> dict[Address, int | None]:
    """Read Slot Control of every port."""
    values = await session.read(
        *((p.address, p.capabilities.express + SLOT_CONTROL.offset, SLOT_CONTROL.width) for p in ports)
    )
    return {port.address: value for port, value in zip(ports, values, strict=True)}


async def _ports(
    session: Session, topology: Topology, leases: tuple[Lease, ...], devices: tuple[Device, ...]
) -> tuple[Port, ...]:
    ports = tuple(function for function in topology if function.is_port)
    links = await session.read(
        *((p.address, p.capabilities.express + LINK_STATUS.offset, LINK_STATUS.width) for p in ports)
    )
    controls = await slot_controls(session, ports)
    reports = await asyncio.gather(*(_slot(session, port) for port in ports))
    return tuple(
        Port(
            port=str(port.address),
            slot=None if port.slot is None else port.slot_number,
            state=None if report is None else str(report.state),
            link=_link(link),
            masked=masked(port, controls[port.address]),
            lease=None if (lease := covering(port.address, topology, leases)) is None else lease.id,
            devices=tuple(device for device in devices if device.port == port.address),
        )
        for port, link, report in zip(ports, links, reports, strict=True)
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


def _link(link_status: int | None) -> str | None:
    if link_status is None:
        return None
    if not link_status & LinkStatus.LINK_ACTIVE:
        return "down"
    speed = link_status & LINK_SPEED
    width = (link_status & LINK_WIDTH) >> LINK_WIDTH_SHIFT
    return f"{_GIGATRANSFERS.get(speed, '?')} GT/s x{width}"


def _rows(port: Port) -> list[tuple[str | Text, ...]]:
    """Return one row per device of the port; the port's own columns stand in the first."""
    own: tuple[str | Text, ...] = (
        port.port,
        "-" if port.slot is None else str(port.slot),
        port.state or "-",
        port.link or "no answer",
        _coloured("masked", "yellow") if port.masked else "-",
        port.lease or "-",
    )
    blank: tuple[str | Text, ...] = ("",) * len(own)
    return [
        (*(blank if index else own), *device) for index, device in enumerate([_device(d) for d in port.devices] or [()])
    ]


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
    tree = Tree(session.host)
    for function in found:
        if function.parent is None:
            _grow(tree, function, found)
    console().print(tree)


def _grow(tree: Tree, function: Function, found: Topology) -> None:
    kind = function.kind.name.lower().replace("_", " ")
    slot = "" if function.slot is None else f"  Slot({function.slot_number})"
    branch = tree.add(Text(f"{function.address}  {kind}{slot}  {function.identity}"))
    for child in found.children(function.address):
        _grow(branch, child, found)


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
