"""What this coordinator has under way on one host: every work by its lease's id, and the ids themselves."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Coroutine
from itertools import count
from typing import Any, Final

from shared.pcie import Address, Topology
from shared.protocol.facts import What
from shared.protocol.records import Recovery
from shared.protocol.requests import Cause
from shared.runtime import BusError, Context, FabricClient

from ._journal import inherit, record_of
from ._recovering import RecoveryWork
from ._resetting import ResetWork
from ._storms import Storms
from ._work import Work

ALIKE_MAX: Final = 3  # so often a work may end by the same failure under one lease


class Works:
    """The works of one host. `topology` is as last enumerated."""

    def __init__(self, context: Context, fabric: FabricClient, topology: Topology) -> None:
        self.context = context
        self.fabric = fabric
        self.topology = topology
        self._running: dict[str, tuple[Work, asyncio.Task[None]]] = {}
        assert context.ownership is not None
        self._ownership = context.ownership
        self._count = count(1)
        self._failures: Counter[tuple[str, str]] = Counter()  # (lease, how its work failed) -> how often
        self.storms = Storms(context.settings.storm_recoveries, context.settings.storm_s)

    def new_id(self, kind: str, port: Address) -> str:
        """Return an id that no lease ever had: revisions start again when NATS forgets (K7), a tenure's nonce does not."""
        return f"{kind}-{port.token}-{self._ownership.tenure}-{next(self._count)}"

    @property
    def owned(self) -> bool:
        """Whether the host is ours at this moment: nothing is begun by one who was frozen and finds himself deposed."""
        return self._ownership.held

    async def look_around(self) -> None:
        """Read the topology anew: since the last look a card may have been seated. Raises BusError, RefusedError."""
        self.topology = await self.fabric.topology()

    def find(self, lease: str) -> Work | None:
        """Return the work under this lease, if it is ours and under way."""
        found = self._running.get(lease)
        return None if found is None else found[0]

    def recovery_on(self, port: Address) -> RecoveryWork | None:
        """Return the recovery on this very port, if one is under way."""
        return next(
            (work for work, _ in self._running.values() if isinstance(work, RecoveryWork) and work.port == port), None
        )

    def launch(self, work: Work, running: Coroutine[Any, Any, None], ended: Callable[[], object]) -> None:
        """Start a work; `ended` is called when it is over, whatever way it went."""
        task = asyncio.create_task(running, name=f"{type(work).__name__} {work.id}")
        self._running[work.id] = (work, task)

        def done(task: asyncio.Task[None]) -> None:
            if self._running.get(work.id, (None, None))[1] is task:
                del self._running[work.id]
            failure = work.failure
            if not task.cancelled() and (crash := task.exception()) is not None:
                self.context.log.error("work crashed", lease=work.id, exc_info=crash)
                failure = repr(crash)
            if failure:
                self._failures[work.id, failure] += 1
            if work.finished:
                self._failures = Counter({key: times for key, times in self._failures.items() if key[0] != work.id})
            ended()

        task.add_done_callback(done)

    def hopeless(self, lease: str) -> str | None:
        """Return how the work under this lease failed too often to be tried again, if it did."""
        often = (how for (name, how), times in self._failures.items() if name == lease and times >= ALIKE_MAX)
        return next(often, None)

    async def stop(self, work: Work) -> None:
        """Stop a work in its tracks, and wait until it has."""
        _, task = self._running[work.id]
        task.cancel()
        await asyncio.wait({task})

    async def stop_inside(self, hold: Work) -> None:
        """Stop the resets that run inside a hold: it rolls forward what they leave, and ends what drivers prepared for."""
        for work, _ in tuple(self._running.values()):
            if isinstance(work, ResetWork) and work.inside == hold.id:
                await self.stop(work)
                hold.journal.record = inherit(hold.journal.record, (work.journal.record,))
                work.say(What.RECOVERY_CLOSED, absorbed_by=hold.id, verdicts={})

    async def absorbed(self, leases: tuple[str, ...], heir: str, port: Address) -> tuple[Recovery, ...]:
        """Stop the works whose leases an heir has absorbed, and journal so where the heir's record does not stand.

        Returns their journals: what drivers were told under them is the heir's to finish. Also under those that nobody
        works under here, as they were about to be taken over.
        """
        idle = {lease for lease in leases if lease not in self._running}
        entries = await self.context.bus.keys(f"recovery.{self.context.host}.") if idle else ()
        records = (record_of(self.context, entry) for entry in entries)
        left = [record for record in records if record is not None and record.lease in idle]
        for lease in leases:
            found = self._running.get(lease)
            if found is None:
                continue
            work, task = found
            task.cancel()
            await asyncio.wait({task})
            await self.stop_inside(work)
            left.append(work.journal.record)
            work.say(What.RECOVERY_CLOSED, absorbed_by=heir, verdicts={})
            if work.port != port:
                with contextlib.suppress(BusError):  # whoever next surveys the journals finds it open, and closes it
                    await work.journal.close({}, absorbed_by=heir)
        return tuple(left)

    async def finish(self, within_s: float) -> None:
        """Give what runs time to end, then stop it: ledger and journal hold what a successor needs."""
        tasks = {task for work, task in self._running.values() if work.journal.record.cause != Cause.HOLD}
        if tasks:
            await asyncio.wait(tasks, timeout=within_s)
        left = [task for _, task in self._running.values()]
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left)
