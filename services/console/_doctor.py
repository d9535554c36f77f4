"""`doctor` asks whether everything is there and answers, and looks for masks that nobody holds."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec
from rich.text import Text

from shared.pcie import Topology
from shared.protocol.fabric import LeaseList

from ._exit import ExitCode, Failure
from ._links import links
from ._output import print_json, print_table
from ._services import ServiceState, ask_services
from ._session import Session
from ._status import covering, masked, quarantine_of, slot_controls


class Grade(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"  # worth a look, and no failure
    BAD = "bad"
    UNKNOWN = "unknown"  # it could not be looked at


class Check(msgspec.Struct, frozen=True):
    """One line of the report. `code` is how the command ends because of it."""

    name: str
    grade: Grade
    says: str
    code: ExitCode = ExitCode.OK


_STYLES: Final = {Grade.OK: "green", Grade.WARNING: "yellow", Grade.BAD: "bold red", Grade.UNKNOWN: "yellow"}


async def doctor(session: Session, *, as_json: bool) -> ExitCode:
    """Run every check that can be run. The exit code is that of the worst finding."""
    checks = [Check("bus", Grade.OK, "connected, JetStream answers"), *await _services(session)]
    try:
        checks += await _hardware(session)
    except Failure as failure:
        checks.append(Check("slots and leases", Grade.UNKNOWN, str(failure), failure.code))
    if as_json:
        for check in checks:
            print_json(check)
    else:
        rows = [(check.name, Text(check.grade, style=_STYLES[check.grade]), check.says) for check in checks]
        print_table(("CHECK", "RESULT", "FINDING"), rows, empty="")
    return max(check.code for check in checks)


async def _services(session: Session) -> list[Check]:
    checks = []
    for state in await ask_services(session):
        name = f"service {state.service}"
        if state.alive:
            checks.append(Check(name, Grade.OK, _who(state)))
        else:
            says = f"does not answer; start it: python -m services.{state.service}, or its container"
            checks.append(Check(name, Grade.BAD, says, ExitCode.UNREACHABLE))
    return checks


def _who(state: ServiceState) -> str:
    """Say who acts for the host, and who would if that one died."""
    owner = f"; the host is owned by {state.owner}" if state.owner else ""
    standby = f"; standing by: {', '.join(state.standby)}" if state.standby else ""
    return f"answers{owner}{standby}"


async def _hardware(session: Session) -> list[Check]:
    listed, topology = await session.leases(), await session.topology()
    return [
        *await _masks(session, listed, topology),
        *_silences(listed),
        *_quarantines(listed),
        *await _links(session, topology),
    ]


async def _masks(session: Session, listed: LeaseList, topology: Topology) -> list[Check]:
    """Look for orphan masks: slots whose enables are off although no lease and no quarantine covers them."""
    slots = tuple(function for function in topology if function.hotplug_capable)
    controls = await slot_controls(session, slots)
    orphans = [
        slot for slot in slots
        if masked(slot, controls[slot.address])
        and covering(slot.address, topology, listed.leases) is None
        and quarantine_of(slot.address, topology, listed.quarantines) is None
    ]  # fmt: skip
    if not orphans:
        return [Check("masks", Grade.OK, f"no orphan among {len(slots)} slots")]
    return [
        Check(
            f"mask of {slot.address}",
            Grade.BAD,
            f"slot {slot.slot_number} is masked and no lease covers it: nobody would notice a removal; "
            "restart hotplug, which sets the enables again",
            ExitCode.FAILED,
        )
        for slot in orphans
    ]


def _quarantines(listed: LeaseList) -> list[Check]:
    """Tell of ports whose devices are out of service until somebody releases them."""
    if not listed.quarantines:
        return [Check("quarantines", Grade.OK, "no port is in quarantine")]
    return [
        Check(
            f"quarantine of {one.port}",
            Grade.BAD,
            f"held down for {one.age_s:.0f} s: {one.why}; `{one.release}` brings it back",
            ExitCode.FAILED,
        )
        for one in listed.quarantines
    ]


async def _links(session: Session, topology: Topology) -> list[Check]:
    """Tell of links that run slower or narrower than both of their ends can."""
    found = await links(session, topology)
    slow = [(port, link) for port, link in found.items() if link is not None and link.below is not None]
    if not slow:
        return [Check("links", Grade.OK, f"none of {len(found)} is degraded")]
    return [
        Check(
            f"link of {port}",
            Grade.WARNING,
            f"degraded: it runs at {link.text}, both ends can do {link.below}; reseat the card, or look at its cable",
        )
        for port, link in slow
    ]


def _silences(listed: LeaseList) -> list[Check]:
    silent = [lease for lease in listed.leases if lease.silent_s > lease.allowed_s]
    if not silent:
        return [Check("leases", Grade.OK, f"{len(listed.leases)} open, none silent")]
    return [
        Check(
            f"lease {lease.id}",
            Grade.BAD,
            f"{lease.holder} has been silent for {lease.silent_s:.1f} s on {lease.port}; "
            "its mask lasts until a coordinator adopts it: is one running?",
            ExitCode.FAILED,
        )
        for lease in silent
    ]
