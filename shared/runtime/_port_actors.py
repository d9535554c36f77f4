"""One actor per port that only ever looks at registers: what wakes it, and how it is kept while hardware comes and goes.

A wake says no more than "look". So wakes that arrive while one is pending become one, a lost one costs latency, and
there is nothing to queue (P9).
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from typing import Final

from shared.pcie import Address, Topology
from shared.protocol import Message, Reason, subjects
from shared.protocol.facts import Fact, Interrupt, What

from ._actor import Actor
from ._context import Context
from ._fabric_client import FabricClient, RefusedError
from ._process_gauges import actor_gauges
from .bus import BusError, Incoming, Subscription
from .gauges import Reading

RETRY_FIRST_S: Final = 0.1
RETRY_MAX_S: Final = 5.0
TOPOLOGY_S: Final = 1.0  # for one answer of the fabric: a service that is to stop must not wait for it
CONNECTION_LOOK_S: Final = 1.0  # how often the bus is asked whether it has reconnected
HARDWARE_LOOK_S: Final = 1.0  # how often the fabric is asked while it has not found any hardware

# A lease or a recovery that ends, by whatever way, may leave behind what it was not about.
_ENDINGS: Final = (What.LEASE_CLOSED, What.LEASE_ABSORBED, What.RECOVERY_CLOSED)
# Hotplug has left a link or presence change to whoever recovers there: what contained or reported it may have been said
# by an interrupt that was lost.
_HINTS: Final = (What.SLOT_DEFERRED,)
_CHANGES: Final = (What.DEVICE_ADDED, What.DEVICE_REMOVED)


class Wake(StrEnum):
    """Why an actor looks at its registers: not what it will find there."""

    START = "start"  # the first look, also after a crash
    INTERRUPT = "interrupt"  # the fabric says that the port interrupted, or hotplug that something is for us
    ENDED = "ended"  # a lease or a recovery near the port has ended
    POLL = "poll"  # time has passed, or devices have come or gone
    AGAIN = "again"  # the actor asked for another look


class PortActor(Actor[None]):
    """Looks at one port's registers whenever it is woken."""

    def __init__(self, name: str, port: Address, ports: PortActors) -> None:
        super().__init__(name, limit=1)
        self.port = port
        self.ports = ports
        self.context = ports.context
        self._wakes: set[Wake] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._due_at = 0.0  # loop time of it; a handle of uvloop without a delay does not tell
        self._retry_s = RETRY_FIRST_S
        self._read = False

    @abstractmethod
    async def look(self, wakes: frozenset[Wake]) -> None:
        """Read the registers, and do what they ask for. May run at any time, any number of times."""

    def has_read(self) -> None:
        """Say that the registers have been read once: what is done about them may take long, and is awaited by nobody.

        A look that ends well says it anyway.
        """
        if not self._read:
            self._read = True
            self.ports.has_read(self.port)

    def wake(self, why: Wake) -> None:
        """Ask for a look. Wakes that are pending become one look, which is told all reasons."""
        self._wakes.add(why)
        if self._mailbox.empty():
            self.tell(None)

    def again(self, after_s: float) -> None:
        """Look again in `after_s` seconds, or earlier if an earlier look is due."""
        loop = asyncio.get_running_loop()
        due_at = loop.time() + after_s
        if self._timer is not None and self._due_at <= due_at:
            return
        self.rest()
        self._timer, self._due_at = loop.call_later(after_s, self._due), due_at

    def retry(self) -> None:
        """Look again after a pause that doubles with every retry in a row."""
        self.again(self._retry_s)
        self._retry_s = min(2 * self._retry_s, RETRY_MAX_S)

    def progressed(self) -> None:
        """Make the next pause a short one again: what had to be retried has been done."""
        self._retry_s = RETRY_FIRST_S

    def rest(self) -> None:
        """Forget a look that was asked for."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def started(self) -> None:
        """Look at the start."""
        await self._guarded(frozenset({Wake.START}))

    async def receive(self, message: None) -> None:  # noqa: ARG002 - what woke us stands in _wakes
        """Look once for all wakes so far."""
        wakes = frozenset(self._wakes)
        self._wakes.clear()
        await self._guarded(wakes)

    async def run(self) -> None:
        """Run until cancelled."""
        try:
            await super().run()
        finally:
            self.rest()

    def _due(self) -> None:
        self._timer = None
        self.wake(Wake.AGAIN)

    async def _guarded(self, wakes: frozenset[Wake]) -> None:
        try:
            await self.look(wakes)
            self.has_read()
        except (BusError, RefusedError) as trouble:
            self.context.log.warning("look postponed", port=str(self.port), why=str(trouble) or repr(trouble))
            if isinstance(trouble, RefusedError) and trouble.refused.reason is Reason.UNKNOWN_PORT:
                self.ports.changed()  # a device has gone, and nobody has told us yet
            # The reasons are kept: a look for a START that failed is still to be made.
            self._wakes |= wakes
            self.retry()
        self.ports.tell_ready()


class PortActors:
    """The actors of one service on one host, one for each port that it wants; `topology` as last enumerated."""

    def __init__(
        self,
        context: Context,
        service: str,
        fabric: FabricClient,
        wanted: Callable[[Topology], Iterable[Address]],
        make: Callable[[Address, PortActors], PortActor],
    ) -> None:
        self.context = context
        self.fabric = fabric
        self.topology = Topology()
        self._service = service
        self._wanted = wanted
        self._make = make
        self._running: dict[Address, tuple[PortActor, asyncio.Task[None]]] = {}
        self._changed = asyncio.Event()
        self._unread: set[Address] | None = None  # of the ports found first, those not read yet; None: none found yet

    async def run(self) -> None:
        """Keep the actors until the service stops. Ends in bounded time, as no actor holds anything."""
        subscriptions = await self._subscribe()
        try:
            with self.context.metrics.reading(self._gauges):
                while not self.context.stopping.is_set():
                    self._changed.clear()
                    await self._refresh()
                    await self._pause()
        finally:
            await self._end(tuple(self._running))
            for subscription in subscriptions:
                await subscription.close()

    def has_read(self, port: Address) -> None:
        """Hear that a port's registers have been read. The service is ready once all that it found first have been."""
        if self._unread is not None:
            self._unread.discard(port)
        self.tell_ready()

    def changed(self) -> None:
        """Say that the topology may have changed."""
        self._changed.set()

    def _gauges(self) -> Iterator[Reading]:
        return actor_gauges(self.context.host, "port", (actor.statistics() for actor, _ in self._running.values()))

    async def _subscribe(self) -> tuple[Subscription, ...]:
        bus, host = self.context.bus, self.context.host
        found = [await bus.subscribe(subjects.irq(host, "*", self._service), Interrupt, self._interrupt)]
        found += [await bus.watch_facts(subjects.fact(host, "*", what), self._ended) for what in _ENDINGS]
        found += [await bus.watch_facts(subjects.fact(host, "*", what), self._hinted) for what in _HINTS]
        found += [await bus.watch_facts(subjects.fact(host, "*", what), self._change) for what in _CHANGES]
        return tuple(found)

    async def _refresh(self) -> None:
        """Read the topology, begin and end actors accordingly, and have the others look."""
        try:
            self.topology = await self.fabric.topology(timeout_s=TOPOLOGY_S)
        except (BusError, RefusedError) as trouble:
            self.context.log.warning("topology unknown", why=str(trouble) or repr(trouble))
            self.tell_ready()
            asyncio.get_running_loop().call_later(RETRY_MAX_S if self._running else RETRY_FIRST_S, self.changed)
            return
        if self._unread is None and not tuple(self.topology):
            self.context.wait("the fabric has not found any hardware yet")
            asyncio.get_running_loop().call_later(HARDWARE_LOOK_S, self.changed)
            return
        wanted = frozenset(self._wanted(self.topology))
        await self._end(tuple(port for port in self._running if port not in wanted))
        for actor, _ in self._running.values():
            actor.wake(Wake.POLL)
        for port in sorted(wanted - self._running.keys()):
            actor = self._make(port, self)
            self._running[port] = (actor, asyncio.create_task(actor.run(), name=actor.name))
        self._unread = set(wanted) if self._unread is None else self._unread & wanted
        self.tell_ready()

    def tell_ready(self) -> None:
        """Say whether registers can be read, and those of all ports found first have been; else, what is missing.

        Called after each reading: how soon a fabric that has gone is noticed is up to who reads.
        """
        if not self.fabric.answers:
            self.context.wait("the fabric does not answer")
        elif self._unread:
            self.context.wait(f"not read yet: {', '.join(str(port) for port in sorted(self._unread))}")
        elif self._unread is not None:
            self.context.ready()

    async def _pause(self) -> None:
        """Wait until the topology may have changed, the bus is back, the poll is due, or the service stops."""
        loop = asyncio.get_running_loop()
        due = loop.time() + self.context.settings.reconcile_s
        reconnects = self.context.bus.statistics().reconnects
        waits = [
            asyncio.create_task(self._changed.wait()),
            asyncio.create_task(self.context.stopping.wait()),
        ]
        try:
            while not any(wait.done() for wait in waits) and loop.time() < due:
                if self.context.bus.statistics().reconnects != reconnects:
                    return  # hints were lost in between
                left = max(0.0, due - loop.time())
                await asyncio.wait(waits, timeout=min(left, CONNECTION_LOOK_S), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _end(self, ports: tuple[Address, ...]) -> None:
        tasks = [self._running.pop(port)[1] for port in ports]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _interrupt(self, incoming: Incoming) -> None:
        message = incoming.message
        if not isinstance(message, Interrupt):
            return
        if message.port in self._running:
            self._running[message.port][0].wake(Wake.INTERRUPT)
        else:
            self.changed()  # hardware that was not there when the topology was read

    def _ended(self, incoming: Incoming) -> None:
        self._wake_around(incoming.message, Wake.ENDED)

    def _hinted(self, incoming: Incoming) -> None:
        self._wake_around(incoming.message, Wake.INTERRUPT)

    def _wake_around(self, fact: Message, why: Wake) -> None:
        """Wake the actors below the same root port as the fact's."""
        if not isinstance(fact, Fact):
            return
        root = self.topology.root_port(fact.port)
        for port, (actor, _) in self._running.items():
            if root is None or self.topology.root_port(port) == root:
                actor.wake(why)

    def _change(self, incoming: Incoming) -> None:
        if isinstance(incoming.message, Fact):
            self.changed()
