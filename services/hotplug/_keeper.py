"""What is kept of the functions of one port, slot or not: they are registered, compared, frozen and rebound.

A keeper stands for the functions below a root port (or for a root-complex endpoint, which is its own) up to the next
hotplug slot, and the actor of a slot for those below it. Leases that end are judged here, latched or not: every
function that the registry shows is asked who it is (P3, P4).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from shared.pcie import Address, Function, Topology, answered, timing
from shared.pcie import registers as r
from shared.protocol.fabric import Reach
from shared.protocol.records import Device
from shared.protocol.requests import Channel
from shared.recovery import Finding, read
from shared.runtime import Context, FabricClient, PortActor, PortActors, RefusedError, Wake

from ._drivers import Drivers
from ._registry import Registry, belongs
from ._survey import Journals, Leases, anchor, behind, chain, findings, journals, recovered, removed_by

_BRIDGE_CLASS: Final = 0x06  # PCI Code and ID Assignment r1.11 §1.7
_DEFERRED_LOOK_S: Final = timing.VENDOR_ID_MAX  # while a lease covers the port, if no hint should tell of its end
_RUNNING: Final = r.Command.MEMORY_SPACE | r.Command.BUS_MASTER
_WHY_START: Final = "found at start"


@dataclass(slots=True)
class Shop:
    """What the actors of one host share."""

    context: Context
    fabric: FabricClient
    actors: PortActors
    registry: Registry
    drivers: Drivers
    opened: int = 0  # slot operations, for their ids
    judged: set[tuple[str, Address]] = field(default_factory=set)  # ended leases, and the functions compared for them

    @property
    def topology(self) -> Topology:
        """The host's functions as last enumerated."""
        return self.actors.topology

    async def refresh(self) -> Topology:
        """Read the topology again, after an enumeration."""
        topology = await self.fabric.topology()
        if topology != self.actors.topology:
            self.actors.topology = topology
            self.actors.changed()
        return topology

    def lease_id(self, port: Address) -> str:
        """Return an id that no lease has had: revisions start again when NATS forgets (K7), a tenure's nonce does not."""
        assert self.context.ownership is not None
        self.opened += 1
        return f"slot-{port.token}-{self.context.ownership.tenure}-{self.opened}"


def has_driver(device: Device) -> bool:
    """Tell whether a driver may be bound to it: not to a bridge."""
    return device.identity.class_code >> 16 != _BRIDGE_CLASS


def _works(finding: Finding | None) -> bool:
    """Tell whether a device may be spoken to: what a recovery could not bring back stays frozen until one can.

    Not judged: a lease covers it that leaves its link up.
    """
    return finding is None or (finding.answers and not finding.unset)


@dataclass(frozen=True, slots=True)
class Survey:
    """The functions of one keeper, compared."""

    leases: Leases
    findings: dict[Address, Finding]  # of registered functions that no lease covers and no quarantine holds


class Keeper(PortActor):
    """Keeps the functions of one port that has no hotplug slot."""

    def __init__(self, port: Address, shop: Shop) -> None:
        super().__init__(f"hotplug {port}", port, shop.actors)
        self.shop = shop
        self._accepted: dict[Address, str] = {}  # what a lease lately accepted as different, to be said once

    def doubt(self) -> None:
        """Hear that a lease may have been absorbed. A keeper holds none."""

    # --- What it keeps ---

    def devices(self) -> tuple[Device, ...]:
        """Return the registered functions that are kept here and present."""
        topology = self.shop.topology
        return tuple(d for d in self.shop.registry.present() if anchor(d.function, topology) == self.port)

    def behind(self) -> tuple[Device, ...]:
        """Return all registered functions that are present behind the port, those of slots further down included."""
        function = self.shop.topology.get(self.port)
        return tuple(d for d in self.shop.registry.present() if behind(d.function, function))

    def newcomers(self) -> tuple[Function, ...]:
        """Return the functions kept here that the registry does not show."""
        topology, registry = self.shop.topology, self.shop.registry
        found = []
        for function in topology:
            if belongs(function) and anchor(function.address, topology) == self.port:
                device = registry.device(function.address)
                if device is None or not device.present:
                    found.append(function)
        return tuple(found)

    async def survey(self, ours: str | None = None) -> Survey:
        """Read the leases, and ask every function that none covers who it is. `ours`: our own slot operation."""
        leases = Leases(await self.shop.fabric.leases(), self.shop.topology, ours)
        await self._take_over(leases)
        uncovered = [device for device in self.devices() if not leases.concern(device.function)]
        found = Survey(leases, await findings(self.shop.fabric, self.shop.topology, uncovered))
        self.has_read()  # a slot may now be brought up, which takes as long as its device takes
        return found

    async def _take_over(self, leases: Leases) -> None:
        """Take over what a lease has accepted as different: the same devices say something else of themselves now."""
        judged = self.shop.judged
        intended = [
            (device, retired.accepted)
            for device in self.devices()
            for retired in leases.ended(device.function)
            if retired.accepted and (retired.lease.id, device.function) not in judged and recovered(retired, device)
        ]
        if not intended:
            return
        topology = await self.shop.refresh()  # the fabric keeps the new identity
        for device, accepted in intended:
            function = topology.find(device.function)
            differs = frozenset() if function is None else device.identity.differences(function.identity)
            if function is not None and differs and differs <= set(accepted):
                await self.shop.registry.identify(device.function, function.identity)
                self._accepted[device.function] = f"; it accepts what differs: {', '.join(sorted(differs))}"

    # --- What it does ---

    async def look(self, wakes: frozenset[Wake]) -> None:
        """Compare, and act on what the registers say; there is no slot whose link and presence would count."""
        survey = await self.survey()
        for device in self.devices():
            finding = survey.findings.get(device.function)
            if finding is None:
                if survey.leases.over(device.function) is not None:
                    self.again(_DEFERRED_LOOK_S)
            elif finding.answers and not finding.same:
                why = f"another device answers: {', '.join(sorted(finding.differs))}"
                await self.forget(device, lease=None, why=why)
            elif not finding.answers and removed_by(survey.leases.ended(device.function), device.function):
                await self.forget(device, lease=None, why="gone after its lease")
        await self.welcome(survey, _WHY_START if Wake.START in wakes else "found")
        self.compared(survey)
        await self.follow_recoveries(survey)

    async def forget(self, device: Device, *, lease: str | None, why: str, token: int = 0) -> None:
        """Remove a function that is gone: the registry first, as its driver may take its time."""
        if await self.shop.registry.remove(device.function, lease=lease, why=why) and has_driver(device):
            await self.shop.drivers.unbind(device.function, lease, Channel.PERM_FAILURE, token)

    async def welcome(self, survey: Survey, why: str) -> None:
        """Register newcomers that run already, without touching them: firmware, or we before a restart, set them up."""
        for function in self.newcomers():
            if survey.leases.over(function.address) is None and await self.runs(function):
                driver = None if function.kind.is_bridge else await self.shop.drivers.bind(function.address, None)
                await self.register(function, driver=driver, lease=None, why=why)

    async def register(self, function: Function, *, driver: str | None, lease: str | None, why: str) -> None:
        """Add a function to the registry, under the port above it."""
        topology = self.shop.topology
        above = topology.port_above(function.address)
        path = chain(function.address, topology)
        known = await journals(self.context.bus, self.context.host, path)
        await self.shop.registry.add(
            function.address,
            self.port if above is None else above.address,
            function.identity,
            driver=driver,
            counted=known.counted(path),
            lease=lease,
            why=why,
        )
        # Leases that have ended before a device was added say nothing about it.
        leases = Leases(await self.shop.fabric.leases(), topology)
        self.shop.judged |= {(retired.lease.id, function.address) for retired in leases.ended(function.address)}

    async def runs(self, function: Function) -> bool:
        """Tell whether the function answers, decodes its addresses and may master the bus.

        A virtual function decodes as soon as its physical one lets it; its own bit is zero by rule (§9.3.4.1.3).
        """
        if function.physical is not None:
            register = r.REVISION_AND_CLASS
            (value,) = await self.shop.fabric.read((read(function.address, register.offset, register.width),))
            return answered(value)
        command = await self.command(function)
        return command is not None and command & _RUNNING == _RUNNING

    async def command(self, function: Function) -> int | None:
        """Read the command register; None where nothing answers."""
        (value,) = await self.shop.fabric.read((read(function.address, r.COMMAND.offset, r.COMMAND.width),))
        return value if answered(value) else None

    def compared(self, survey: Survey) -> frozenset[Address]:
        """Say, once per lease that has ended, which functions are still the same; return those."""
        judged, told = self.shop.judged, set()
        for device in self.devices():
            finding = survey.findings.get(device.function)
            if finding is None:
                continue
            ended = [retired.lease for retired in survey.leases.ended(device.function)]
            fresh = [lease for lease in ended if (lease.id, device.function) not in judged]
            if fresh and finding.same:
                why = f"the same device answers after {fresh[0].cause}{self._accepted.pop(device.function, '')}"
                self.shop.registry.kept(device, lease=fresh[0].id, why=why)
                told.add(device.function)
            # The fabric tells of the last leases only: what it has forgotten is forgotten here.
            judged -= {pair for pair in judged if pair[1] == device.function}
            judged |= {(lease.id, device.function) for lease in ended}
        return frozenset(told)

    async def follow_recoveries(self, survey: Survey, *, thaw: bool = True) -> None:
        """Freeze what a recovery covers, thaw what none does any more, and count the drivers that it bound again.

        Without `thaw` nothing becomes normal: who froze it may be right, as nobody could look.
        """
        topology = self.shop.topology
        paths = {device.function: chain(device.function, topology) for device in self.devices()}
        # A journal stands under the port of its lease: below a port, no other function has one.
        holders = {one: topology.lease_port(one) for path in paths.values() for one in path}
        ports = [one for one, port in holders.items() if port is None or port.address == one]
        known = await journals(self.context.bus, self.context.host, ports)
        for device in self.devices():
            path = paths[device.function]
            await self._channel(device, survey, known, path, thaw=thaw)
            fresh = known.rebound(device, path)
            if fresh:
                await self.shop.registry.rebound(device.function, known.counted(path), lease=fresh[0])

    async def _channel(
        self, device: Device, survey: Survey, known: Journals, path: tuple[Address, ...], *, thaw: bool
    ) -> None:
        lease, quarantine = survey.leases.over(device.function), survey.leases.quarantine(device.function)
        unfinished = known.unfinished(path)
        if quarantine is not None:
            why = f"quarantined: {quarantine.why}"
            await self.set_channel(device, Channel.PERM_FAILURE, lease=quarantine.lease, why=why)
        elif lease is not None and lease.reach is Reach.RESET:
            await self.set_channel(device, Channel.FROZEN, lease=lease.id, why="a lease covers it")
        elif unfinished is not None:
            await self.set_channel(device, Channel.FROZEN, lease=unfinished, why="its callbacks are not finished")
            self.again(_DEFERRED_LOOK_S)
        elif thaw and _works(survey.findings.get(device.function)):
            await self.set_channel(device, Channel.NORMAL, lease=None, why="nothing covers it")

    async def set_channel(self, device: Device, channel: Channel, *, lease: str | None, why: str) -> None:
        """Set the state of the way to a device."""
        await self.shop.registry.channel(device.function, channel, lease=lease, why=why)

    async def adopt_orphans(self, leases: Leases) -> bool:
        """Close slot operations that a predecessor left open: they mask nothing and owe nothing."""
        orphans = leases.orphans(self.port)
        for orphan in orphans:
            try:
                await self.shop.fabric.close(await self.shop.fabric.adopt(orphan))
            except RefusedError as refused:
                self.context.log.info("orphan not adopted", port=str(self.port), lease=orphan, why=str(refused))
        return bool(orphans)
