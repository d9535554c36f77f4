"""One host: an actor for each hotplug slot, and one for the functions of each root port outside of slots."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

from shared.pcie import Address, AddressError, Topology
from shared.pcie.registers import DeviceType
from shared.protocol import Reason, Refused, subjects
from shared.protocol.fabric import Role
from shared.protocol.facts import Fact, What
from shared.protocol.requests import SlotReport, SlotRequest
from shared.runtime import Context, FabricClient, Incoming, PortActor, PortActors, Request, Subscription, Wake

from ._actor import SlotActor
from ._drivers import Drivers
from ._keeper import Keeper, Shop
from ._registry import Registry
from ._survey import chain

SERVICE: Final = "hotplug"
_QUESTIONS: Final = ("power_on", "power_off", "status")
_LAST_ANSWERS_S: Final = 1.0  # for answers under way when the service stops
# Beside the hints that PortActors follows: a lease that opens freezes channels, and may have absorbed our own.
_OPENINGS: Final = (What.LEASE_OPENED, What.LEASE_ABSORBED, What.LEASE_ADOPTED)


def wanted(topology: Topology) -> Iterable[Address]:
    """Return the ports to keep: every hotplug slot, and all that stands on a root bus."""
    return tuple(
        function.address
        for function in topology
        if function.hotplug_capable
        or (function.parent is None and function.kind is not DeviceType.ROOT_COMPLEX_EVENT_COLLECTOR)
    )


class Host:
    """The keepers of one host, and what the bus tells them."""

    def __init__(self, context: Context) -> None:
        self._context = context
        fabric = FabricClient(context.bus, context.host, Role.HOTPLUG, context.settings.instance)
        self._actors = PortActors(context, SERVICE, fabric, wanted, self._make)
        self._shop = Shop(context, fabric, self._actors, Registry(context), Drivers(context))
        self._keepers: dict[Address, Keeper] = {}
        self._answers: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve until the service stops."""
        await self._shop.registry.load()
        subscriptions = await self._subscribe()
        try:
            await self._actors.run()
        finally:
            for subscription in subscriptions:
                await subscription.close()
            if self._answers:
                await asyncio.wait(self._answers, timeout=_LAST_ANSWERS_S)

    async def _subscribe(self) -> tuple[Subscription, ...]:
        bus, host = self._context.bus, self._context.host
        found = [await bus.watch_facts(subjects.fact(host, "*", what), self._opened) for what in _OPENINGS]
        endpoints = {subjects.slot(host, "*", question): (SlotRequest, self._asked) for question in _QUESTIONS}
        found.append(await bus.serve(SERVICE, endpoints))
        return tuple(found)

    def _make(self, port: Address, actors: PortActors) -> PortActor:
        function = actors.topology.get(port)
        keeper = SlotActor(port, self._shop) if function.hotplug_capable else Keeper(port, self._shop)
        self._keepers[port] = keeper
        return keeper

    def _opened(self, incoming: Incoming) -> None:
        """Hear of a lease: whoever holds one nearby asks whether it still is his, and all concerned look."""
        fact = incoming.message
        if not isinstance(fact, Fact):
            return
        topology = self._actors.topology
        for port, keeper in self._keepers.items():
            ours = fact.lease is not None and fact.lease.startswith(f"slot-{port.token}-")
            if ours and fact.what is What.LEASE_OPENED:
                continue
            if fact.port in chain(port, topology) or port in chain(fact.port, topology):
                keeper.doubt()
                keeper.wake(Wake.AGAIN)

    def _asked(self, request: Request) -> None:
        port = _port_of(request.subject)
        keeper = None if port is None else self._keepers.get(port)
        if not isinstance(keeper, SlotActor) or self._actors.topology.find(keeper.port) is None:
            text = f"{port or request.subject} is no hotplug slot of host {self._context.host}"
            self._answer(request, Refused(reason=Reason.UNKNOWN_PORT, message=text))
        elif self._context.stopping.is_set():
            self._answer(request, Refused(reason=Reason.STOPPING, message="the service is stopping"))
        elif request.subject.endswith("status"):
            self._answer(request, keeper.report())
        else:
            keeper.ask(request)

    def _answer(self, request: Request, reply: Refused | SlotReport) -> None:
        task = asyncio.create_task(request.answer(reply))
        self._answers.add(task)
        task.add_done_callback(self._answers.discard)


def _port_of(subject: str) -> Address | None:
    """Return the port in `pcie.<host>.<port>.slot.<question>`."""
    try:
        return Address.parse(subject.split(".")[2])
    except (AddressError, IndexError):
        return None


async def host(context: Context) -> None:
    """Serve one host until the service stops."""
    await Host(context).run()
