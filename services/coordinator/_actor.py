"""One actor per lease port: requests about it are judged in order, and what they start runs beside the mailbox.

So a second cause can join while the first is being recovered, and no request waits for a slow driver.
"""

from __future__ import annotations

import asyncio
from typing import Final, TypeAlias

import msgspec

from shared.pcie import Address, answered
from shared.pcie.registers import RRS_VENDOR_ID, VENDOR_ID
from shared.protocol import Message, Reason, Refused
from shared.protocol.fabric import Lease, Open, Opened, Rank, Reach, RetiredLease
from shared.protocol.facts import What
from shared.protocol.records import Recovery
from shared.protocol.requests import Accepted, Cause, Hold, Recover, Release, Reset
from shared.recovery import port_reads, port_view, read
from shared.runtime import Actor, BusError, LeaseHandle, RefusedError, Request

from . import _takeover
from ._holds import HoldWork
from ._journal import Journal, blank, inherit
from ._need import still_needed
from ._plan import PLANS, Chosen, Unable, choose
from ._queue import Move, Pending, combine, judge
from ._recovering import RecoveryWork
from ._resetting import FUNCTION, INSIDE, METHOD, ResetWork
from ._work import Work
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
                reply = await self._reset(asked)
            case Hold():
                reply = await self._hold(asked)
            case Release():
                reply = self._release(asked)
            case _:
                raise AssertionError(f"{type(asked).__name__} is not routed here")
        await request.answer(reply)

    # --- Recoveries ---

    async def _recover(self, asked: Recover) -> Message:
        if asked.cause not in PLANS:
            causes = ", ".join(PLANS)
            return Refused(reason=Reason.POLICY, message=f"{asked.cause} is not recovered; causes are {causes}")
        running = self._works.recovery_on(self.port)
        move = judge(running.running if running else None, self._pending, asked.cause)
        if running is not None and move in {Move.JOIN, Move.ESCALATE}:
            running.join(asked.cause, asked.functions, asked.evidence)
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
        command = self._open(pending.lease, Rank.RECOVERY, pending.cause, reach=PLANS[pending.cause].reach)
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
                return Accepted(lease=other.id, joined=True)
        self._wait(pending, behind)
        return Accepted(lease=pending.lease)

    async def _begin(self, opened: Opened, pending: Pending) -> None:
        left = await self._works.absorbed(opened.absorbed, opened.lease.id, self.port)
        handle = LeaseHandle(opened.lease)
        record = inherit(blank(opened.lease, evidence=pending.evidence), left)
        journal = Journal(self._context, record)
        work = RecoveryWork(self._context, self._fabric, self._works.topology, handle, journal)
        self._launch(work)
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
        if self._trying is not None:
            self._trying.cancel()  # one timer, however often it is hinted that it may be time
        self._trying = asyncio.get_running_loop().call_later(RETRY_S, self.nudge)

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

    # --- Resets ---

    async def _reset(self, asked: Reset) -> Message:
        topology = self._works.topology
        function = topology.get(asked.function)
        chosen = choose(function, topology, asked.method)
        if isinstance(chosen, Unable):
            return Refused(reason=chosen.reason, message=chosen.message)
        if await self._absent(asked.function):
            return Refused(reason=Reason.ABSENT, message=f"{asked.function} is gone: nothing answers there")
        if asked.lease is not None:
            return self._reset_inside(asked, chosen)
        lease_id = self._works.new_id("u", self.port)
        reply = await self._fabric.open(self._open(lease_id, Rank.USER, Cause.USER_RESET, reach=chosen.reach))
        if isinstance(reply, Refused):
            return reply
        await self._works.absorbed(reply.absorbed, lease_id, self.port)
        journal = Journal(self._context, blank(reply.lease, **_details(asked, chosen)))
        handle = LeaseHandle(reply.lease)
        work = ResetWork(self._context, self._fabric, topology, handle, journal, asked.function, chosen)
        self._launch(work)
        work.say(What.RECOVERY_STARTED, functions=(asked.function,), method=chosen.method, reach=chosen.reach)
        return Accepted(lease=lease_id)

    def _reset_inside(self, asked: Reset, chosen: Chosen) -> Message:
        """Reset inside an open hold, whose holder asks for it: he must not wait for himself."""
        hold = self._works.find(asked.lease or "")
        domain = [function.address for function in self._works.topology.domain(self.port)]
        if not isinstance(hold, HoldWork) or not hold.open or hold.port != self.port or asked.function not in domain:
            return Refused(
                reason=Reason.UNKNOWN_LEASE, message=f"{asked.lease} is not an open hold that covers {asked.function}"
            )
        record = blank(hold.handle.lease, **_details(asked, chosen), **{INSIDE: hold.id})
        record = msgspec.structs.replace(
            record, lease=self._works.new_id("u", self.port), cause=Cause.USER_RESET, rank=Rank.USER
        )
        work = ResetWork(
            self._context,
            self._fabric,
            self._works.topology,
            hold.handle,
            Journal(self._context, record),
            asked.function,
            chosen,
        )
        self._works.launch(work, work.run_inside(hold.inside), self.nudge)
        work.say(What.RECOVERY_STARTED, functions=(asked.function,), method=chosen.method, inside=hold.id)
        return Accepted(lease=work.id)

    async def _absent(self, function: Address) -> bool:
        """Tell whether the device is known to be gone (P8): no answer, and its port does not hold the link down."""
        port = self._works.topology.port_above(function)
        reads = () if port is None else port_reads(port)
        held = await self._fabric.read((*reads, read(function, VENDOR_ID.offset, VENDOR_ID.width)))
        if answered(held[-1]) and held[-1] != RRS_VENDOR_ID:
            return False
        view = None if port is None else port_view(port, held[:-1])
        return view is not None and view.looks_gone

    # --- Holds ---

    async def _hold(self, asked: Hold) -> Message:
        if asked.lease is not None:
            hold = self._works.find(asked.lease)
            if not isinstance(hold, HoldWork) or not hold.open:
                return _no_hold(asked.lease)
            hold.renew()
            return Accepted(lease=hold.id, joined=True)
        lease_id = self._works.new_id("x", self.port)
        command = self._open(lease_id, Rank.EXTERNAL, Cause.HOLD, reach=Reach.RESET, holder=asked.holder)
        reply = await self._fabric.open(command)
        if isinstance(reply, Refused):
            return reply
        left = await self._works.absorbed(reply.absorbed, lease_id, self.port)
        journal = Journal(self._context, inherit(blank(reply.lease), left))
        work = HoldWork(self._context, self._fabric, self._works.topology, LeaseHandle(reply.lease), journal)
        self._launch(work)
        work.say(What.RECOVERY_STARTED, functions=(), reach=Reach.RESET, holder=asked.holder)
        return Accepted(lease=lease_id)

    def _release(self, asked: Release) -> Message:
        hold = self._works.find(asked.lease)
        if not isinstance(hold, HoldWork):
            return _no_hold(asked.lease)
        hold.release()
        return Accepted(lease=hold.id, joined=True)

    # --- Common ---

    def _launch(self, work: Work) -> None:
        self._works.launch(work, work.run(), self.nudge)

    def _open(self, lease_id: str, rank: Rank, cause: Cause, *, reach: Reach, holder: str = "") -> Open:
        settings = self._context.settings
        return Open(
            id=lease_id,
            port=self.port,
            rank=rank,
            cause=cause,
            holder=holder or settings.instance,
            reach=reach,
            allowed_s=settings.allowed_s,
        )


def _details(asked: Reset, chosen: Chosen) -> dict[str, str]:
    return {FUNCTION: str(asked.function), METHOD: chosen.method.value}


def _no_hold(lease: str) -> Refused:
    return Refused(reason=Reason.UNKNOWN_LEASE, message=f"{lease} is not a hold of this coordinator, or has ended")


def _unable(error: BusError | RefusedError) -> Refused:
    if isinstance(error, RefusedError):
        return error.refused
    return Refused(reason=Reason.STOPPING, message=f"the fabric does not answer; ask again ({error!r})")
