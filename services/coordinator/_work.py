"""What is done under one lease, from open to close, and how it is driven: the base of recoveries, resets and holds.

The lease is kept alive by beats as long as the work runs. When the lease is lost (absorbed by a recovery above, or
adopted), the work stops at once: whoever holds it now goes on from the registers and the journal. When the bus is
lost, it stops as well; the lease falls silent, and its mask lasts until a coordinator is back and adopts it.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Final, TypeVar

from shared.pcie import Address, Topology, timing
from shared.pcie.registers import BRIDGE_CONTROL, BridgeControl
from shared.protocol import Reason, Refused
from shared.protocol.fabric import Closed, Condition, FunctionOutcome
from shared.protocol.facts import What
from shared.protocol.records import Verdict
from shared.protocol.requests import Channel, DriverStep, Vote
from shared.recovery import (
    Bounds,
    Do,
    Logic,
    Note,
    Pause,
    PortView,
    Step,
    Verified,
    modify,
    port_reads,
    port_view,
    roll_forward,
)
from shared.runtime import BusError, Context, FabricClient, Fenced, LeaseHandle, RefusedError, WrongRevision, keep_alive

from ._callbacks import Call, Drivers, Heard
from ._holding_down import left_alone
from ._journal import Journal
from ._votes import verdict

TOOK: Final = "took_s"  # in the journal's details: seconds from the lease's opening to its end
BROKEN_DRIVER_S: Final = 5.0  # for one callback under a lease that was broken: enough for a driver that works

R = TypeVar("R")

_TO_BE_PUT_RIGHT: Final = frozenset({Reason.IN_RESET, Reason.CONDITION, Reason.POLICY})  # what close refuses for

# Why work ends before its end: most special first.
_STOPPED: Final = (
    (Fenced, "the lease is another's"),
    (RefusedError, "the fabric refused"),
    (WrongRevision, "the host is another's"),
    (BusError, "no answer from the bus"),
)


class Work(ABC):
    """One lease at work. Subclasses say what is done; `run` keeps the lease and handles its loss."""

    def __init__(
        self, context: Context, fabric: FabricClient, topology: Topology, handle: LeaseHandle, journal: Journal
    ) -> None:
        self.context = context
        self.fabric = fabric
        self.topology = topology
        self.handle = handle
        self.journal = journal
        self.finished = False  # the lease has been closed; false after a stop in the middle
        self.closing = False  # the fabric has been asked to close, and finishes it
        self.failure = ""  # what the fabric refused, and ended the work by it
        self._drivers = Drivers(context)
        self._telling = ""  # the callback under way, as the journal calls it
        self._began = asyncio.get_running_loop().time() - handle.lease.age_s

    @property
    def id(self) -> str:
        """What the journal and the facts call this work: the lease's id, unless it runs inside another's lease."""
        return self.journal.record.lease

    @property
    def _keys(self) -> dict[str, str]:
        return {"lease": self.id, "port": str(self.port)}

    @property
    def port(self) -> Address:
        """The port of the lease."""
        return self.handle.lease.port

    @abstractmethod
    async def perform(self) -> None:
        """Do the work, up to where the lease can be closed."""

    async def run(self) -> None:
        """Do the work while the lease is ours, close it, and journal the end. Never raises what another will finish."""
        try:
            async with keep_alive(self.fabric, self.handle):
                outcomes = await self._until_lost()
            if outcomes is not None:
                await self.conclude(outcomes)
        except (Fenced, RefusedError, BusError) as error:
            why = next(text for kind, text in _STOPPED if isinstance(error, kind))
            self.failure = str(error) if isinstance(error, RefusedError) else ""
            self.context.log.warning("work stopped", **self._keys, why=why, error=str(error) or repr(error))

    async def _until_lost(self) -> tuple[FunctionOutcome, ...] | None:
        """Perform and close; None if the lease was lost before. Once close has begun, its answer is waited for."""
        working = asyncio.create_task(self._to_the_end(), name=f"work {self.id}")
        losing = asyncio.create_task(self.handle.lost.wait(), name=f"loss {self.id}")
        try:
            await asyncio.wait({working, losing}, return_when=asyncio.FIRST_COMPLETED)
            if working.done() or self.closing:
                return await working
            self.context.log.warning("work stopped", **self._keys, why="the lease is lost")
            return None
        finally:
            losing.cancel()
            working.cancel()
            await asyncio.wait({working, losing})

    async def _to_the_end(self) -> tuple[FunctionOutcome, ...]:
        await self.look_around()
        await self.perform()
        await self.enter(Step.CLOSE)
        self.closing = True
        return await self._close()

    async def look_around(self) -> None:
        """Read the topology that the lease was opened over: the one we were made with may be a card behind (P3)."""
        self.topology = await self.fabric.topology()

    async def _close(self) -> tuple[FunctionOutcome, ...]:
        """Have the fabric verify, drain, unmask and retire. What it refuses for is put right first, once."""
        reply = await self._ask_to_close()
        if isinstance(reply, Refused) and reply.reason in _TO_BE_PUT_RIGHT:
            await self.make_closable()
            await self.enter(Step.CLOSE)
            reply = await self._ask_to_close()
        if isinstance(reply, Refused):
            raise RefusedError(reply)
        return reply.outcomes

    async def _ask_to_close(self) -> Closed | Refused:
        record = self.journal.record
        return await self.fabric.close(self.handle, record.quarantine, record.why)

    async def make_closable(self) -> None:
        """Clear reset bits that are still set."""
        await self.roll_forward()

    async def conclude(self, outcomes: Sequence[FunctionOutcome]) -> None:
        """Journal and say what became of every function."""
        self.finished = True
        record = self.journal.record
        verdicts = {
            str(one.function): verdict(str(one.function), one.result, record.told, self.journal.unanswered)
            for one in outcomes
        }
        slower = {str(one.function) for one in outcomes if one.degraded}
        degraded = tuple(one for one in verdicts if one in slower and verdicts[one] in {Verdict.KEPT, Verdict.REBOUND})
        took = round(asyncio.get_running_loop().time() - self._began, 3)
        await self.journal.close(verdicts, **{TOOK: took})
        self.say(What.RECOVERY_CLOSED, verdicts=verdicts, degraded=degraded, took_s=took)

    # --- What all work is made of ---

    def say(self, what: What, port: Address | None = None, **data: Any) -> None:
        """State a fact about this work."""
        record = self.journal.record
        self.context.facts.say(what, port or self.port, lease=record.lease, cause=record.cause, **data)

    async def enter(self, step: str, **changes: Any) -> None:
        """Journal a step, then say so: only then may it begin."""
        await self.journal.enter(step, **changes)
        self.say(What.RECOVERY_STEP, step=step)

    async def drive(self, logic: Logic[R]) -> R:
        """Run recovery logic over the bus, under our token."""
        loop = asyncio.get_running_loop()
        sent: Any = None
        while True:
            try:
                effect = logic.send(sent)
            except StopIteration as done:
                result: R = done.value
                return result
            match effect:
                case Do():
                    sent = await self.fabric.execute(self.handle, effect.operations, effect.provided)
                case Pause():
                    await asyncio.sleep(effect.seconds)
                    sent = loop.time()
                case Note():
                    await self.noted(effect)
                    sent = None

    async def noted(self, note: Note) -> None:
        """Journal the steps of the lease's own port; turn everything else that is worth it into facts."""
        detail = dict(note.detail)
        port = Address.parse(detail.pop("port")) if detail.get("port") else self.port
        if "degraded" in detail or "from" in detail:
            why = f"the link came back with {detail['to']}, and had {detail['from']}"
            state = "degraded" if detail.get("degraded") else None
            self.say(What.RECOVERY_PROGRESS, port, step=note.step, retrain=detail.get("retrain"), state=state, why=why)
        elif "released" in detail:
            self.say(What.CONTAINMENT_RELEASED, port, **detail)
        elif "waited_s" in detail:
            self.say(What.RECOVERY_PROGRESS, port, step=note.step, **detail)
        elif "errors" in detail:
            for function, errors in detail["errors"].items():
                self.say(What.RECOVERY_ERRORS, Address.parse(function), **errors)
        elif detail:
            self.say(What.RECOVERY_PROGRESS, port, step=note.step, **detail)
        if port == self.port and note.step != self.journal.record.step:
            await self.enter(note.step)

    async def roll_forward(self) -> Verified:
        """Take the lease's domain from wherever it is to restored and verified; not what is to be held down."""
        settings, record, lease = self.context.settings, self.journal.record, self.handle.lease
        # Whoever breaks a lease does not wait for what is slow either: such a function fails.
        ready_s = settings.ready_s if record.broken is None else min(settings.ready_s, timing.VENDOR_ID_MAX)
        bounds = Bounds(link_s=min(settings.link_s, ready_s), ready_s=ready_s)
        return await self.drive(
            roll_forward(left_alone(lease, record.quarantine, self.topology), self.topology, bounds)
        )

    async def secondary_bus_reset(self, address: Address) -> None:
        """Set Secondary Bus Reset of a port of the domain; rolling forward clears it. Not over containment.

        And not for a card that is gone (P8): presence is a condition of the very step that writes the bit.
        """
        port = self.topology.get(address)
        view = port_view(port, await self.fabric.execute(self.handle, port_reads(port)))
        spared = _spared(view)
        if spared:
            self.say(What.RECOVERY_PROGRESS, step=Step.RESET, skipped=spared)
            return
        bit = int(BridgeControl.SECONDARY_BUS_RESET)
        reset = modify(address, BRIDGE_CONTROL.offset, BRIDGE_CONTROL.width, mask=bit, value=bit)
        provided = () if port.slot is None else (Condition(port=address, present=True),)
        try:
            await self.fabric.execute(self.handle, (reset,), provided)
        except RefusedError as refused:
            if refused.refused.reason is not Reason.CONDITION:
                raise
            self.say(What.RECOVERY_PROGRESS, step=Step.RESET, skipped="no card is present")

    async def tell(
        self,
        step: DriverStep,
        functions: Sequence[Address],
        channel: Channel = Channel.NORMAL,
        *,
        told_as: str | None = None,
    ) -> None:
        """Call the drivers of `functions`, but those that have been told already or hang in an earlier callback."""
        key = told_as or step
        skip = {*self.journal.told(key), *self.journal.unanswered}
        asked = tuple(function for function in functions if str(function) not in skip)
        if not asked:
            return

        async def hear(answers: Sequence[Heard]) -> None:
            for heard in answers:
                self.journal.note(key, heard.function, heard.vote, answered=heard.answered)
                self.say(
                    What.RECOVERY_VOTE,
                    heard.function,
                    function=heard.function,
                    step=key,
                    vote=heard.vote,
                    driver=heard.driver,
                    took_s=round(heard.took_s, 3),
                    answered=heard.answered,
                )
            await self.journal.save()

        def waiting(call: Call, functions: Sequence[Address], waited_s: float) -> None:
            names = [str(function) for function in functions]
            self.say(What.RECOVERY_PROGRESS, step=call.step, waiting=names, waited_s=round(waited_s, 3))

        within_s = None if self.journal.record.broken is None else BROKEN_DRIVER_S
        call = Call(step, asked, channel, self.id, self.handle.token, within_s)
        self._telling = key
        await self._drivers.call(call, hear, waiting)

    def give_up_waiting(self) -> None:
        """Note that whoever is in a callback now has not answered. For a work that was stopped."""
        for function in sorted(self._drivers.busy):
            self.journal.note(self._telling, function, Vote.DISCONNECT, answered=False)

    async def end_preparation(self, functions: Sequence[Address]) -> None:
        """Tell reset_done to those who heard reset_prepare of a reset whose lease this one has absorbed."""
        prepared = self.journal.told(DriverStep.RESET_PREPARE)
        await self.tell(DriverStep.RESET_DONE, tuple(one for one in functions if str(one) in prepared))

    @property
    def functions(self) -> tuple[Address, ...]:
        """The functions that drivers may be bound to: all that the lease found, but bridges."""
        return tuple(
            saved.address
            for saved in self.handle.lease.functions
            if (function := self.topology.find(saved.address)) is not None and not function.kind.is_bridge
        )


def _spared(view: PortView | None) -> str:
    """Return why a port is not reset, or nothing."""
    if view is None:
        return "the port does not answer"
    if view.contained:
        return "containment was the reset"
    return "the card is gone" if view.looks_gone else ""
