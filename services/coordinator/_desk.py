"""One host: takes requests, routes them to the actor of their lease port, and surveys what nobody works on.

The survey runs before the first request is taken, so that a holder who renews finds his hold adopted, and then at a
third of `allowed`: a lease that has been silent for longer is adopted.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

from shared.pcie import Address, timing
from shared.protocol import Message, Reason, Refused, subjects
from shared.protocol.fabric import Role
from shared.protocol.facts import What
from shared.protocol.records import RecoveryState
from shared.protocol.requests import Break, Hold, Lift, Recover, Release, Reset
from shared.runtime import (
    Actor,
    BusError,
    Context,
    Entry,
    FabricClient,
    Incoming,
    Reading,
    RefusedError,
    Request,
    Subscription,
    actor_gauges,
)

from ._actor import Asked, RecoveryActor, Reopen, TakeOver
from ._breaking import breakable
from ._journal import record_of
from ._takeover import count_on
from ._work import TOOK
from ._works import Works

FINISH_S: Final = 4.0  # for works under way when we are told to stop; less than the process gives us
# Each takeover of a lease waits twice as long as the one before, but a mask for which nobody else comes is not given up
# (P2).
_DOUBLINGS_MAX: Final = 6
_TOPOLOGY_S: Final = 1.0  # for one answer of the fabric: who is to stop must not wait for it
_FIRST_ANSWER_S: Final = 0.2  # until the fabric is asked again at the start


async def host(context: Context) -> None:
    """Coordinate one host until told to stop."""
    fabric = FabricClient(context.bus, context.host, Role.COORDINATOR, context.settings.instance)
    while not context.stopping.is_set():
        try:
            works = Works(context, fabric, await fabric.topology(timeout_s=_TOPOLOGY_S))
        except (BusError, RefusedError) as error:
            context.log.info("waiting for the fabric", error=str(error) or repr(error))
            await _pause(context)
            continue
        await Desk(works).run_host()


async def _pause(context: Context) -> None:
    """Wait until the fabric is asked again at the start."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_FIRST_ANSWER_S):
            await context.stopping.wait()


class Desk(Actor[Request]):
    """Routes requests. One per host."""

    def __init__(self, works: Works) -> None:
        super().__init__(f"desk {works.context.host}")
        self._works = works
        self._context = works.context
        self._fabric = works.fabric
        self._actors: dict[Address, tuple[RecoveryActor, asyncio.Task[None]]] = {}
        self._taken: Counter[str] = Counter()
        self._first = True
        self._lease_ended = False
        self._journals_due = 0.0  # loop time

    async def run_host(self) -> None:
        """Survey, serve, and finish in bounded time when told to stop."""
        while not await self._survey() and not self._context.stopping.is_set():
            await _pause(self._context)
        subscriptions = await self._serve()
        routing = asyncio.create_task(self.run(), name=self.name)
        surveying = asyncio.create_task(self._survey_on(), name=f"survey {self._context.host}")
        stopping = asyncio.create_task(self._context.stopping.wait())
        self._context.ready()
        try:
            with self._context.metrics.reading(self._gauges):
                await asyncio.wait({routing, surveying, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if surveying.done():
                surveying.result()
            await self._works.finish(FINISH_S)
        finally:
            for subscription in subscriptions:
                await subscription.close()
            tasks = {routing, surveying, stopping, *(task for _, task in self._actors.values())}
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await self._works.finish(0.0)

    def _gauges(self) -> Iterator[Reading]:
        host, actors = self._context.host, tuple(actor.statistics() for actor, _ in self._actors.values())
        yield from actor_gauges(host, "desk", (self.statistics(),))
        yield from actor_gauges(host, "recovery", actors)

    async def _serve(self) -> tuple[Subscription, ...]:
        bus, name = self._context.bus, self._context.host

        def take(request: Request) -> None:
            self.tell(request)

        kinds: dict[str, type[Message]] = {
            "recover": Recover,
            "reset": Reset,
            "hold": Hold,
            "release": Release,
            "break": Break,
            "lift": Lift,
        }
        endpoints = {subjects.coordinator(name, what): (kind, take) for what, kind in kinds.items()}
        return (
            await bus.serve(f"coordinator-{name}", endpoints),
            await bus.watch_facts(subjects.fact(name, "*", What.LEASE_CLOSED), self._ended),
        )

    def _ended(self, incoming: Incoming) -> None:  # noqa: ARG002 - a hint that some lease has ended, no more
        self._lease_ended = True
        for actor, _ in self._actors.values():
            actor.nudge()

    # --- Routing ---

    async def started(self) -> None:
        """Nothing to reconcile: the survey does."""

    async def receive(self, message: Request) -> None:
        """Hand one request to the actor of its port, or refuse it."""
        if self._context.stopping.is_set():
            await self.refused(message)
            return
        if not self._works.owned:
            await message.answer(Refused(reason=Reason.NOT_OWNER, message="the host is another's now; ask again"))
            return
        found = await self._port_of(message.message)
        if isinstance(found, Refused):
            await message.answer(found)
            return
        if not self._actor(found).tell(Asked(message)):
            await message.answer(Refused(reason=Reason.STOPPING, message=f"too many requests for {found}; ask again"))

    async def refused(self, message: Request) -> None:
        """Answer what is not taken any more."""
        await message.answer(Refused(reason=Reason.STOPPING, message="the coordinator is stopping; ask again"))

    async def _port_of(self, asked: Message) -> Address | Refused:
        """Return the port whose actor handles the request."""
        match asked:
            case Recover():
                return await self._lease_port(asked.port, itself=True)
            case Hold(lease=None):
                return await self._lease_port(asked.port)
            case Lift():
                found = await self._lease_port(asked.port)
                if found == asked.port or isinstance(found, Refused):
                    return found
                return Refused(reason=Reason.UNKNOWN_PORT, message=f"{asked.port} is not a port: name {found}")
            case Reset():
                found = await self._lease_port(asked.function, itself=True)
                work = self._works.find(asked.lease) if asked.lease is not None else None
                return work.port if work is not None and isinstance(found, Address) else found
            case Hold(lease=str(lease)) | Release(lease=lease) | Break(lease=lease):
                work = self._works.find(lease)  # None also where its port's actor is about to take it over
                return await self._port_of_lease(lease) if work is None else work.port
            case _:
                raise AssertionError(f"{type(asked).__name__} is not served here")

    async def _port_of_lease(self, lease_id: str) -> Address | Refused:
        """Return the port of a lease that nobody works under here."""
        try:
            listed = await self._fabric.leases()
        except (BusError, RefusedError) as error:
            return Refused(reason=Reason.STOPPING, message=f"the fabric does not answer; ask again ({error!r})")
        lease = breakable(next((one for one in listed.leases if one.id == lease_id), None), lease_id)
        return lease if isinstance(lease, Refused) else lease.port

    async def _lease_port(self, address: Address, *, itself: bool = False) -> Address | Refused:
        """Return the port that a lease for `address` is taken on; `itself` where no port is above, if that will do."""
        if self._works.topology.find(address) is None:
            with contextlib.suppress(BusError, RefusedError):
                await self._works.look_around()
        if self._works.topology.find(address) is None:
            return Refused(reason=Reason.UNKNOWN_PORT, message=f"there is no function {address} on this host")
        port = self._works.topology.lease_port(address)
        if port is not None:
            return port.address
        if itself:
            return address
        return Refused(reason=Reason.UNSUPPORTED, message=f"no port is above {address}: it can only be reset by FLR")

    def _actor(self, port: Address) -> RecoveryActor:
        if port not in self._actors:
            actor = RecoveryActor(port, self._works)
            self._actors[port] = (actor, asyncio.create_task(actor.run(), name=actor.name))
        return self._actors[port][0]

    # --- Survey ---

    async def _survey_on(self) -> None:
        while True:
            await asyncio.sleep(self._context.settings.allowed_s / timing.LEASE_BEATS_PER_ALLOWED)
            if await self._survey():
                self._context.ready()

    async def _journals(self) -> tuple[Entry, ...]:
        """Read the journals, where one may stand open without a lease: at the start, after a lease has ended, at times."""
        now = asyncio.get_running_loop().time()
        if not (self._first or self._lease_ended) and now < self._journals_due:
            return ()
        self._lease_ended = False
        self._journals_due = now + self._context.settings.reconcile_s
        return await self._context.bus.keys(f"recovery.{self._context.host}.")

    async def _survey(self) -> bool:
        """Find leases without work, and open journals without a lease; hand each to the actor of its port.

        False if they could not be read: until they can, nobody is ready to take over what falls silent.
        """
        try:
            listed = await self._fabric.leases()
            entries = await self._journals()
        except (BusError, RefusedError) as error:
            self._context.log.warning("survey postponed", error=str(error) or repr(error))
            self._context.wait("its leases and journals cannot be read")
            return False
        for lease in listed.leases:
            ours = lease.role is Role.COORDINATOR and self._works.find(lease.id) is None
            patience = lease.allowed_s * 2 ** min(self._taken[lease.id], _DOUBLINGS_MAX)
            if ours and (self._first or lease.silent_s > patience):
                self._taken[lease.id] += 1
                self._actor(lease.port).tell(TakeOver(lease))
        known: dict[str, Any] = {lease.id: None for lease in listed.leases}
        retired = {one.lease.id: one for one in listed.retired}
        for entry in entries:
            record = record_of(self._context, entry)
            if record is None or record.lease in known:
                continue
            if record.state is RecoveryState.CLOSED:
                if self._first and record.lease in listed.ended_s:
                    count_on(self._works, record, record.details.get(TOOK, 0.0) + listed.ended_s[record.lease])
                continue
            if self._works.find(record.lease) is None:
                self._actor(record.port).tell(Reopen(record, retired.get(record.lease)))
        self._first = False
        return True
