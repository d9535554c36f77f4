"""One actor per lease port: requests about it are judged in order, and what they start runs beside the mailbox.

So a second cause can join while the first is being recovered, and no request waits for a slow driver.
"""

from __future__ import annotations

import asyncio
from typing import Final, TypeAlias

import msgspec

from shared.pcie import Address
from shared.protocol import Message, Reason, Refused
from shared.protocol.fabric import Lease, Opened, Rank, Reach, RetiredLease
from shared.protocol.facts import What
from shared.protocol.records import Recovery
from shared.protocol.requests import Accepted, Break, Cause, Hold, Lift, Recover, Release, Reset
from shared.runtime import Actor, BusError, LeaseHandle, RefusedError, Request

from . import _takeover
from ._breaking import break_lease
from ._hold_requests import release_hold, take_hold
from ._journal import Journal, blank, inherit
from ._lifting import lift
from ._need import still_needed
from ._plan import ERRORS, PLANS
from ._port import Port
from ._queue import Move, Pending, combine, judge
from ._recovering import RecoveryWork
from ._reset_requests import begin_reset
from ._works import Works

RETRY_S: Final = 0.5  # until a cause that waits is tried again; leases that end are hints to try earlier


class Asked(msgspec.Struct, frozen=True):
    """A request to be answered."""

    request: Request


class Retry(msgspec.Struct, frozen=True):
    """What waited may be possible now."""


class TakeOver(msgspec.Struct, frozen=True):
    """An open lease of the coordinator's role has nobody at work under it."""

    lease: Lease


class Reopen(msgspec.Struct, frozen=True):
    """A journal is open, but its lease is not: the fabric has closed it in our place."""

    record: Recovery
    retired: RetiredLease | None


Mail: TypeAlias = Asked | Retry | TakeOver | Reopen


class RecoveryActor(Actor[Mail]):
    """Everything about recoveries, resets and holds of one port."""

    def __init__(self, port: Address, works: Works) -> None:
        super().__init__(f"coordinator {port}")
        self.port = port
        self._works = works
        self._context = works.context
        self._fabric = works.fabric
        self._port = Port(port, works, self.nudge)
        self._pending: Pending | None = None
        self._trying: asyncio.TimerHandle | None = None  # when what waits is tried again

    @property
    def waiting(self) -> bool:
        """Whether a cause waits here for another's lease to end."""
        return self._pending is not None

    async def started(self) -> None:
        """Nothing to reconcile: works run beside this actor, and leases without work are found by the survey."""
        if self._pending is not None:
            self._retry_later()

    async def receive(self, message: Mail) -> None:
        """Handle one message. What the bus does not answer now is asked again by its asker, or by the survey."""
        if not self._works.owned:
            await self.refused(message)
            return
        try:
            match message:
                case Asked():
                    await self._answer(message.request)
                case Retry():
                    await self._retry()
                case TakeOver():
                    await _takeover.adopt(self._works, message.lease, self.nudge)
                case Reopen():
                    await _takeover.reopen(self._works, message.record, message.retired, self.nudge)
        except (BusError, RefusedError) as error:
            self._context.log.warning("not done", port=str(self.port), error=str(error) or repr(error))
            if isinstance(message, Asked):
                await message.request.answer(_unable(error))
            elif isinstance(message, Retry):
                self._retry_later()

    async def refused(self, message: Mail) -> None:
        """Answer what nobody will handle any more."""
        if isinstance(message, Asked):
            await message.request.answer(
                Refused(reason=Reason.STOPPING, message="the coordinator is stopping; ask again")
            )

    def nudge(self) -> None:
        """Try what waits: a lease has ended somewhere, or a work here."""
        if self._pending is not None:
            self.tell(Retry())

    async def _answer(self, request: Request) -> None:
        asked = request.message
        match asked:
            case Recover():
                reply = await self._recover(asked)
            case Reset():
                reply = await begin_reset(self._port, asked)
            case Hold():
                reply = await take_hold(self._port, asked)
            case Release():
                reply = release_hold(self._port, asked)
            case Break():
                reply = await break_lease(self._port, asked)
            case Lift():
                reply = await lift(self._port, asked)
            case _:
                raise AssertionError(f"{type(asked).__name__} is not routed here")
        await request.answer(reply)

    # --- Recoveries ---

    async def _recover(self, asked: Recover) -> Message:
        if asked.cause not in ERRORS:
            causes = ", ".join(ERRORS)
            return Refused(reason=Reason.POLICY, message=f"{asked.cause} is not recovered; causes are {causes}")
        running = self._works.recovery_on(self.port)
        move = judge(running.running if running else None, self._pending, asked.cause)
        if running is not None and move in {Move.JOIN, Move.ESCALATE}:
            running.join(asked.cause, asked.functions, asked.evidence)
            await running.journal.save()  # before its asker is told: he does not ask again
            return Accepted(lease=running.id, joined=True)
        known = self._pending is not None
        pending = combine(self._pending, asked, self._works.new_id("r", self.port))
        if move is Move.START:
            if not await self._is_needed(pending):
                return Accepted(lease=pending.lease)
            return await self._start(pending)
        self._wait(pending, None if running is None else running.id)
        return Accepted(lease=pending.lease, joined=known)

    async def _start(self, pending: Pending) -> Message:
        """Open the lease and begin; or join, or wait for, whoever stands in the way."""
        command = self._port.command(pending.lease, Rank.RECOVERY, pending.cause, reach=self._reach(pending.cause))
        try:
            reply = await self._fabric.open(command)
        except BusError:
            self._wait(pending, None)  # it may have been opened: the same id is asked for again
            return Accepted(lease=pending.lease)
        if isinstance(reply, Opened):
            self._pending = None
            await self._begin(reply, pending)
            return Accepted(lease=pending.lease)
        if reply.reason is not Reason.HELD:
            self._pending = None
            return reply
        behind = reply.lease.id if reply.lease else None
        other = self._works.find(behind) if behind else None
        if isinstance(other, RecoveryWork):
            running = msgspec.structs.replace(other.running, same_port=other.port == self.port)
            if judge(running, None, pending.cause) in {Move.JOIN, Move.ESCALATE}:
                self._pending = None
                other.join(pending.cause, pending.functions, pending.evidence)
                await other.journal.save()
                return Accepted(lease=other.id, joined=True)
        self._wait(pending, behind)
        return Accepted(lease=pending.lease)

    def _reach(self, cause: Cause) -> Reach:
        """Return how far the lease must reach: nowhere on what has no link above it, whose reset is its own (FLR)."""
        if not self._works.topology.get(self.port).kind.is_bridge:
            return Reach.NOTHING
        return Reach.RESET if self._is_storm() else PLANS[cause].reach

    def _is_storm(self) -> bool:
        """Tell whether the next recovery is one too many; only a port has a link that can be held down."""
        function = self._works.topology.find(self.port)
        over = self._works.storms.is_over(self.port, asyncio.get_running_loop().time())
        return over and function is not None and function.is_port

    async def _begin(self, opened: Opened, pending: Pending) -> None:
        left = await self._works.absorbed(opened.absorbed, opened.lease.id, self.port)
        storm = self._is_storm() and opened.lease.reach is Reach.RESET
        begun = self._works.storms.begin(self.port, asyncio.get_running_loop().time())
        record = msgspec.structs.replace(inherit(blank(opened.lease, evidence=pending.evidence), left), begun=begun)
        if storm:
            why = f"{len(begun)} recoveries within {begun[-1]:.0f} s"
            record = msgspec.structs.replace(record, quarantine=(self.port,), why=why)
        journal = Journal(self._context, record)
        work = RecoveryWork(self._context, self._fabric, self._works.topology, LeaseHandle(opened.lease), journal)
        self._port.launch(work)
        work.say(
            What.RECOVERY_STARTED, functions=pending.functions, reach=opened.lease.reach, evidence=pending.evidence
        )

    def _wait(self, pending: Pending, behind: str | None) -> None:
        if self._pending is None or self._pending.lease != pending.lease or self._pending.cause != pending.cause:
            self._context.facts.say(
                What.RECOVERY_WAITING, self.port, lease=pending.lease, cause=pending.cause, behind=behind
            )
        self._pending = pending
        self._retry_later()

    def _retry_later(self) -> None:
        if self._trying is None:  # one timer, which a flood of requests does not put off
            self._trying = asyncio.get_running_loop().call_later(RETRY_S, self._due)

    def _due(self) -> None:
        self._trying = None
        self.nudge()

    async def _retry(self) -> None:
        """Try what waits, if it still is needed."""
        pending = self._pending
        if pending is None or self._works.recovery_on(self.port) is not None or not await self._is_needed(pending):
            return
        reply = await self._start(pending)
        if isinstance(reply, Refused):
            self._give_up(pending, reply.message)

    async def _is_needed(self, pending: Pending) -> bool:
        """Ask the registers before a port is masked and reset: a request may be late, repeated or forged (P9)."""
        await self._works.look_around()
        if await still_needed(self._fabric, self._works.topology, self.port, pending.cause):
            return True
        self._pending = None
        self._give_up(pending, "nothing is left to recover")
        return False

    def _give_up(self, pending: Pending, why: str) -> None:
        """Say how a cause ended that never had a lease: its asker was told this id."""
        self._context.facts.say(
            What.RECOVERY_CLOSED,
            self.port,
            lease=pending.lease,
            cause=pending.cause,
            verdicts={},
            why=why,
        )


def _unable(error: BusError | RefusedError) -> Refused:
    if isinstance(error, RefusedError):
        return error.refused
    return Refused(reason=Reason.STOPPING, message=f"the fabric does not answer; ask again ({error!r})")
