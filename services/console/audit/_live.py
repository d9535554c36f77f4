"""An audit through the fabric: every function is read between two looks at the leases, which explain what they cover.

A lease, a quarantine or an EDR event that was there at either end, or began and ended in between, explains whatever is
not as it should be in its domain. What is left must still be there at a second look: hardware acts before anybody can
have taken a lease.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Final

import msgspec

from services.console._dump import read_configs
from services.console._exit import describe_lease
from services.console._session import Session
from shared.pcie import Address, Topology
from shared.protocol.fabric import LeaseList

from ._checks import Finding, Image, Severity, judge

_AGAIN_S: Final = 1.0  # until the second look: a recovery has its lease long before


class Explained(msgspec.Struct, frozen=True):
    """A finding for which somebody answers, and who."""

    finding: Finding
    by: str


class Look(msgspec.Struct, frozen=True):
    """All functions of a host, what nobody explains of them, and what is explained."""

    functions: int
    findings: tuple[Finding, ...]
    explained: tuple[Explained, ...]


async def audit(session: Session) -> Look:
    """Look, and look again if something is left that nobody explains."""
    first = await _look(session)
    if all(finding.severity is Severity.NOTE for finding in first.findings):
        return first
    await asyncio.sleep(_AGAIN_S)
    return await _look(session)


async def _look(session: Session) -> Look:
    before = await session.leases()
    topology = await session.topology()
    addresses = [function.address for function in topology]
    images = list(map(Image, addresses, await read_configs(session, addresses)))
    after = await session.leases()
    found = [finding for image in images for finding in judge(image, live=True)]
    return sort(found, explanations(before, after, topology), len(images))


def sort(found: list[Finding], answers: dict[Address, str], functions: int) -> Look:
    """Part what somebody answers for from what nobody does. `answers`: who does, by function."""
    by = {finding: answers.get(Address.parse(finding.function)) for finding in found}
    return Look(
        functions,
        tuple(finding for finding, who in by.items() if who is None),
        tuple(Explained(finding, who) for finding, who in by.items() if who is not None),
    )


def explanations(before: LeaseList, after: LeaseList, topology: Topology) -> dict[Address, str]:
    """Return who answers for each function between two looks at the leases. Pure."""
    answers: dict[Address, str] = {}
    for port, who in _covers(before, after):
        if topology.find(port) is not None:
            for function in topology.domain(port):
                answers.setdefault(function.address, who)
    return answers


def _covers(before: LeaseList, after: LeaseList) -> Iterator[tuple[Address, str]]:
    known = {lease.id for lease in before.leases} | {retired.lease.id for retired in before.retired}
    for listed in (before, after):
        yield from ((lease.port, describe_lease(lease.ref)) for lease in listed.leases)
        yield from ((one.port, f"quarantine of {one.port}: {one.why}") for one in listed.quarantines)
        yield from ((port, f"EDR event of {port}: the firmware awaits its answer") for port in listed.edr)
    for retired in after.retired:
        if retired.lease.id not in known:
            yield Address.parse(retired.lease.port), describe_lease(retired.lease)
