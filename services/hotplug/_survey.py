"""What stands over a port and what answers below it: leases, journals, and every function against the registry."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

from shared.pcie import NO_ANSWER, Address, Function, Topology, Value
from shared.protocol import decode, subjects
from shared.protocol.fabric import (
    Lease,
    LeaseList,
    Quarantine,
    Rank,
    Reach,
    Result,
    RetiredLease,
    Role,
    quarantine_over,
)
from shared.protocol.records import Device, Recovery, RecoveryState, Verdict
from shared.recovery import Finding, command_read, find, identity_reads
from shared.runtime import Bus, FabricClient

from ._judge import Identities

_SLOT_RANK: Final = Rank.SLOT_OPERATION.name.lower()  # as LeaseRef spells it


def anchor(address: Address, topology: Topology) -> Address | None:
    """Return who keeps the function: the nearest hotplug slot above it, else its root port; itself without one.

    A function that the topology has forgotten belongs to the narrowest of those whose buses include its own.
    """
    if topology.find(address) is not None:
        above = topology.ancestors(address)
        return next((bridge.address for bridge in above if _keeps(bridge)), above[-1].address if above else address)
    ranges = [bridge for bridge in topology if _keeps(bridge) and behind(address, bridge)]
    return max(ranges, key=lambda bridge: bridge.secondary).address if ranges else None


def _keeps(bridge: Function) -> bool:
    return bridge.hotplug_capable or bridge.parent is None


def behind(address: Address, bridge: Function) -> bool:
    """Tell whether the address lies on a bus behind the bridge, by bus numbers: also of what no longer answers."""
    return (
        bridge.kind.is_bridge
        and bridge.secondary > 0
        and address.domain == bridge.address.domain
        and bridge.secondary <= address.bus <= bridge.subordinate
    )


def chain(address: Address, topology: Topology) -> tuple[Address, ...]:
    """Return the function and all bridges above it: where a lease must be to cover it."""
    if topology.find(address) is not None:
        return topology.path(address)
    return (address, *(bridge.address for bridge in topology if behind(address, bridge)))


@dataclass(frozen=True, slots=True)
class Leases:
    """The fabric's leases, as they concern one function or another."""

    listed: LeaseList
    topology: Topology
    ours: str | None = None  # our own slot operation, which stands in nobody's way

    def over(self, address: Address) -> Lease | None:
        """Return a lease that covers the function; one that takes the link down before one that does not."""
        path = chain(address, self.topology)
        found = [lease for lease in self.listed.leases if lease.port in path and lease.id != self.ours]
        return max(found, key=lambda lease: (lease.reach is Reach.RESET, lease.rank), default=None)

    def quarantine(self, address: Address) -> Quarantine | None:
        """Return the quarantine that the function is in: the highest, of its port or of one above."""
        return quarantine_over(chain(address, self.topology), self.listed.quarantines)

    def concern(self, address: Address) -> bool:
        """Tell whether a lease covers the function, or a quarantine holds it: then it is not judged."""
        return self.over(address) is not None or self.quarantine(address) is not None

    def orphans(self, port: Address) -> tuple[str, ...]:
        """Return slot operations on the port that a predecessor of ours has left behind."""
        return tuple(
            lease.id
            for lease in self.listed.leases
            if lease.port == port and lease.role is Role.HOTPLUG and lease.id != self.ours
        )

    def ended(self, address: Address) -> tuple[RetiredLease, ...]:
        """Return the leases that covered the function and have ended lately, newest first; slot operations not."""
        path = {str(above) for above in chain(address, self.topology)}
        return tuple(
            retired
            for retired in self.listed.retired
            if retired.lease.port in path and retired.lease.rank != _SLOT_RANK and retired.absorbed_by is None
        )


def recovered(retired: RetiredLease, device: Device) -> bool:
    """Tell whether the lease found the device to be the same."""
    outcome = next((outcome for outcome in retired.outcomes if outcome.function == device.function), None)
    return outcome is not None and outcome.result is Result.RECOVERED


def removed_by(ended: Iterable[RetiredLease], function: Address) -> bool:
    """Tell whether the newest of these leases found the function gone."""
    outcomes = (outcome for retired in ended for outcome in retired.outcomes if outcome.function == function)
    newest = next(outcomes, None)
    return newest is not None and newest.result is Result.REMOVED


async def findings(fabric: FabricClient, topology: Topology, devices: Iterable[Device]) -> dict[Address, Finding]:
    """Ask every registered function who it is, in one step. One that the topology has lost does not answer.

    Whatever is registered was set up at that time.
    """
    found: dict[Address, Finding] = {}
    known = []
    for device in devices:
        function = topology.find(device.function)
        if function is None:
            found[device.function] = Finding(function=device.function, answers=False)
        else:
            known.append((function, device))
    if not known:
        return found
    reads = [
        (function, device, (*identity_reads(function), command_read(device.function))) for function, device in known
    ]
    held: tuple[Value, ...] = await fabric.read([operation for _, _, operations in reads for operation in operations])
    at = 0
    for function, device, operations in reads:
        *sent, command = held[at : at + len(operations)]
        set_up = NO_ANSWER if function.physical is not None else command  # zero by rule there (§9.3.4.1.3)
        found[device.function] = find(function, device.identity, tuple(sent), set_up)
        at += len(operations)
    return found


def compare(found: Collection[Finding], *, reseated: bool, latched: bool) -> Identities:
    """Compare a slot with the registry. Functions under a lease further down are not in `found`: their turn comes.

    After a change (`latched`) a function that is not set up any more was out, or reset by nobody who would restore it.
    """
    if found and (reseated or (latched and any(finding.unset for finding in found))):
        return Identities.DIFFERENT
    if any(finding.answers and not finding.same for finding in found):
        return Identities.DIFFERENT
    return Identities.SAME if all(finding.same for finding in found) else Identities.SILENT


@dataclass(frozen=True, slots=True)
class Journals:
    """The coordinator's records of the recoveries of some ports, by port: the newest of each."""

    records: dict[Address, Recovery]

    def unfinished(self, path: Iterable[Address]) -> str | None:
        """Return a recovery along the path whose reset is over, or not, but whose callbacks are not."""
        for record in self._along(path):
            if record.state is RecoveryState.OPEN and record.reach is Reach.RESET:
                return record.lease
        return None

    def counted(self, path: Iterable[Address]) -> tuple[str, ...]:
        """Return the recoveries along the path that are closed: what a new registration need not count."""
        return tuple(record.lease for record in self._along(path) if record.state is RecoveryState.CLOSED)

    def rebound(self, device: Device, path: Iterable[Address]) -> tuple[str, ...]:
        """Return the closed recoveries along the path that bound the driver again and are not counted yet."""
        return tuple(
            record.lease
            for record in self._along(path)
            if record.state is RecoveryState.CLOSED
            and record.verdicts.get(str(device.function)) is Verdict.REBOUND
            and record.lease not in device.rebound
        )

    def _along(self, path: Iterable[Address]) -> tuple[Recovery, ...]:
        return tuple(self.records[port] for port in path if port in self.records)


async def journals(bus: Bus, host: str, ports: Iterable[Address]) -> Journals:
    """Read the journals of these ports."""
    records: dict[Address, Recovery] = {}
    for port in ports:
        entry = await bus.get(subjects.recovery_key(host, port))
        if entry is not None:
            records[port] = decode(entry.value, Recovery)
    return Journals(records)
