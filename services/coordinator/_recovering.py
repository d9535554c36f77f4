"""One recovery, performed step by step as `_recovery` has it: the journal first, then the drivers and the registers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from shared.pcie import Address, Topology
from shared.protocol import Refused
from shared.protocol.fabric import Open, Reach, Result
from shared.protocol.facts import What
from shared.protocol.requests import Cause, Channel, DriverStep, ResetMethod, Vote
from shared.recovery import Step, Verified, hopeless, port_reads, port_view, settle
from shared.runtime import Context, FabricClient, LeaseHandle, RecoveryPolicy

from ._function_resets import reset_function
from ._holding_down import hold_down, port_alone, wait_for_retry
from ._journal import Journal
from ._opening import named, open_when_free
from ._plan import PLANS
from ._queue import Running
from ._recovery import Situation, entry, following, joinable
from ._storms import FAILURES_MAX, delay_s, judge_failures
from ._votes import gave_up, merge
from ._work import Work

PERM_FAILURE: Final = "perm_failure"  # how the journal calls error_detected with that channel
_NO_FLR: Final = "it has no Function Level Reset, and no port above it"


class RecoveryWork(Work):
    """A recovery after DPC, EDR or AER, or the lifting of a quarantine: to where the drivers have resumed."""

    def __init__(
        self, context: Context, fabric: FabricClient, topology: Topology, handle: LeaseHandle, journal: Journal
    ) -> None:
        super().__init__(context, fabric, topology, handle, journal)
        self._cause = Cause(handle.lease.cause)
        self._plan = PLANS[self._cause]
        owed = handle.lease.debts  # by whom it absorbed: a link that is held down is a reset, whatever the plan says
        self._is_down = bool(owed.in_reset or owed.link_disabled or owed.contained)
        self._reset = self._plan.reset or handle.lease.reach is Reach.RESET or self._is_down or journal.escalated
        self._joinable = joinable(Step(journal.record.step))
        self._idle = False  # there is nothing to recover: nobody is told, and nothing is reset
        self._verified: Verified | None = None
        self._doing = {
            Step.ERROR_DETECTED: self._error_detected,
            Step.MMIO_ENABLED: self._mmio_enabled,
            Step.RESET: self._take_link_down,
            Step.RELEASE: self._roll_forward,
            Step.ERRORS: self._settle,
            Step.QUARANTINE: self._hold_down,
            Step.SLOT_RESET: self._slot_reset,
            Step.RESUME: self._resume,
        }

    # --- Joining ---

    @property
    def running(self) -> Running:
        """What a second cause needs to know of this recovery."""
        return Running(lease=self.id, reset=self._reset, joinable=self._joinable)

    def join(self, cause: Cause, functions: tuple[Address, ...], evidence: dict[str, Any]) -> None:
        """Take a second cause in, and escalate if it needs a reset."""
        assert self._joinable
        self.say(What.RECOVERY_JOINED, second=cause, functions=functions, evidence=evidence)
        if PLANS[cause].reset:
            self._escalate(cause)

    def _escalate(self, because: str) -> None:
        """Decide on a reset, and note it: a successor would resume drivers without it."""
        if not self._reset:
            self._reset = True
            self.journal.escalate()
            self.say(What.RECOVERY_ESCALATED, because=because)

    # --- The steps ---

    async def perform(self) -> None:
        """Go from step to step, beginning where the journal says that somebody got to."""
        if await self._is_nothing():
            self._idle, self._reset, self._joinable = True, False, False
            self.journal.change(quarantine=(), why="")  # however often it is said: the port is well
        step = entry(Step(self.journal.record.step), reset=self._reset)
        while step is not Step.CLOSE:
            doing = self._doing.get(step)
            if doing is not None:
                await self.enter(step)
                await doing()
            step = following(step, self._situation(step))

    def _situation(self, step: Step) -> Situation:
        record = self.journal.record
        return Situation(
            reset=self._reset,
            votes=self._votes(step),
            retry=bool(record.retrying),
            quarantine=bool(record.quarantine),
            lift=self._cause is Cause.LIFT,
            idle=self._idle,
        )

    async def enter(self, step: str, **changes: Any) -> None:
        """Close the door to second causes before anything is written or awaited; once closed it stays so."""
        self._joinable = self._joinable and joinable(Step(step))
        await super().enter(step, **changes)

    async def _is_nothing(self) -> bool:
        """Tell whether firmware speaks of a containment that is not there: it is answered, and that is all."""
        early = Step(self.journal.record.step) in {Step.OPENED, Step.ERRORS, Step.VERIFY}
        begun = self._is_down or not early or self.journal.told(DriverStep.ERROR_DETECTED)
        port = self.topology.find(self.port)
        if self._cause is not Cause.EDR or begun or port is None or not port.is_port:
            return False
        view = port_view(port, await self.fabric.execute(self.handle, port_reads(port)))
        up = view is not None and (view.link_active or not port.link_active_reporting)
        return view is not None and up and not view.contained

    def _votes(self, step: Step) -> Vote:
        """Return what the drivers asked for in the callbacks before the reset, as far as `step` has got."""
        told = self.journal.told(Step.MMIO_ENABLED if step is Step.MMIO_ENABLED else Step.ERROR_DETECTED)
        return merge(told.values()) if step in {Step.ERROR_DETECTED, Step.MMIO_ENABLED} else Vote.NONE

    async def _error_detected(self) -> None:
        await self.tell(DriverStep.ERROR_DETECTED, self.functions, self._plan.channel)

    async def _mmio_enabled(self) -> None:
        can = self._that(lambda vote: vote is Vote.CAN_RECOVER)
        await self.tell(DriverStep.MMIO_ENABLED, can)

    async def _take_link_down(self) -> None:
        """Widen the lease, unbind who will not hear slot_reset, and reset; unless the link is down for a better reason."""
        self._escalate(Vote.NEED_RESET)
        await self._widen()
        if self.journal.record.retrying:
            await self._reset_again()
            return
        everybody = self.context.settings.recovery is RecoveryPolicy.REENUMERATE
        without = self.functions if everybody else self._that(lambda vote: vote is Vote.NO_HANDLER)
        await self.tell(DriverStep.UNBIND, without)
        if not self._integrated:
            await self.secondary_bus_reset(self.port)
        elif self._resettable:
            await self.drive(reset_function(self.topology.get(self.port), ResetMethod.FLR))
        else:
            self.say(What.RECOVERY_PROGRESS, step=Step.RESET, skipped=_NO_FLR)

    async def _widen(self) -> None:
        """Ask for the reach of a reset under the same lease: this masks what was not masked, and absorbs those below."""
        lease = self.handle.lease
        if lease.reach is Reach.RESET or self._integrated:
            return
        command = Open(
            id=lease.id,
            port=named(lease.port, self.topology),
            rank=lease.rank,
            cause=lease.cause,
            holder=lease.holder,
            reach=Reach.RESET,
            allowed_s=lease.allowed_s,
        )

        def waiting(refused: Refused) -> None:
            self.say(What.RECOVERY_WAITING, behind=refused.lease.id if refused.lease else None, why=refused.message)

        opened = await open_when_free(self.fabric, command, waiting)
        if opened.lease.token != lease.token:
            self.handle.n = opened.lease.last_n
        self.handle.lease = opened.lease
        await self.journal.enter(self.journal.record.step, reach=Reach.RESET)

    async def _reset_again(self) -> None:
        """Wait, then reset exactly the ports that did not come up. Nobody waits for a card that is gone (P8)."""
        record = self.journal.record
        ports = tuple(port for one in record.retrying if (port := self.topology.find(one)) is not None)
        seconds = delay_s(record.failures, record.retrying)
        again = max(record.failures[str(port)] for port in record.retrying)
        why = f"failure {again} of {FAILURES_MAX}; reset again in {seconds:g} s"
        self.say(What.RECOVERY_PROGRESS, step=Step.RESET, waiting=record.retrying, why=why)
        await self.drive(wait_for_retry(ports, seconds))
        for port in ports:
            await self.secondary_bus_reset(port.address)

    async def _roll_forward(self) -> None:
        """Bring everything up that can be; count what cannot, and decide whether it is tried again."""
        self._verified = await self.roll_forward()
        record = self.journal.record
        if record.broken is not None:  # nobody tries again for whom nobody waits
            self.journal.change(retrying=())
            return
        failed = tuple(
            port for port in hopeless(self._verified, self.handle.lease, self.topology) if port not in record.quarantine
        )
        judged = judge_failures(record.failures, failed)
        self.journal.change(failures=judged.failures, retrying=judged.retrying)
        if judged.quarantine:
            why = f"{FAILURES_MAX} failures in a row"
            self.journal.change(quarantine=(*record.quarantine, *judged.quarantine), why=why)

    async def _settle(self) -> None:
        """Nothing was reset: only publish and clear the errors, and look who answers."""
        self._verified = await self.drive(settle(self.handle.lease, self.topology))

    async def _hold_down(self) -> None:
        """Hold the ports of the quarantine down; whom nothing holds down is not in it, but rolled forward like others."""
        await self._widen()
        record = self.journal.record
        firmware = {
            "firmware_first": self.topology.firmware_first,
            "firmware_owned": self.handle.lease.firmware_owned,
        }
        held = []
        for address in record.quarantine:
            port = self.topology.find(address)
            if port is not None and await self.drive(hold_down(port, **firmware)):
                held.append(address)
            else:
                self.say(What.RECOVERY_PROGRESS, address, step=Step.QUARANTINE, skipped="nothing holds it down")
        if len(held) != len(record.quarantine):
            await self.journal.enter(Step.QUARANTINE, quarantine=tuple(held))
            self._verified = await self.roll_forward()
        self._verified = self._verified or port_alone(self.port)

    async def make_closable(self) -> None:
        """Hold down again what came up, and roll the rest forward."""
        if self.journal.record.quarantine:
            await self.enter(Step.QUARANTINE)
            await self._hold_down()
        await super().make_closable()

    async def _slot_reset(self) -> None:
        """Tell every driver with callbacks of the reset, whatever it voted; never one whose device is another now.

        Who turns out to have no callbacks only now (nobody asked him when a quarantine began) is bound anew, too.
        """
        await self.tell(DriverStep.ERROR_DETECTED, self._lost(), Channel.PERM_FAILURE, told_as=PERM_FAILURE)
        here = self._here()
        unbound = self.journal.told(DriverStep.UNBIND)
        await self.tell(DriverStep.SLOT_RESET, tuple(one for one in here if str(one) not in unbound))
        heard = self.journal.told(DriverStep.SLOT_RESET)
        await self.tell(DriverStep.UNBIND, tuple(one for one in here if heard.get(str(one)) is Vote.NO_HANDLER))
        unbound = self.journal.told(DriverStep.UNBIND)
        await self.tell(DriverStep.BIND, tuple(one for one in here if str(one) in unbound))

    async def _resume(self) -> None:
        """Let drivers go on, but those that have given up: they hear so."""
        here = self._here()
        without = {*self._that(lambda vote: vote is Vote.NO_HANDLER), *self._bound_anew()}
        await self.end_preparation(here)
        record = self.journal.record
        given_up = {function for function in here if gave_up(str(function), record.told, self.journal.unanswered)}
        given_up -= self._bound_anew()
        lost = (*self._lost(), *given_up)
        await self.tell(DriverStep.ERROR_DETECTED, lost, Channel.PERM_FAILURE, told_as=PERM_FAILURE)
        going_on = tuple(function for function in here if function not in given_up | without)
        await self.tell(DriverStep.RESUME, going_on)

    # --- Who is meant ---

    @property
    def _integrated(self) -> bool:
        """Whether the lease is on a function of the root complex itself: no link above it that could be taken down."""
        function = self.topology.find(self.port)
        return function is not None and not function.kind.is_bridge

    @property
    def _resettable(self) -> bool:
        function = self.topology.find(self.port)
        return function is not None and (function.kind.is_bridge or function.flr)

    def _seen(self, function: Address) -> Result:
        """Return what became of a function.

        What needed a reset that nobody could do has failed, and so has whose driver was told that it is lost: that is
        its last word, although it answers by now.
        """
        assert self._verified is not None  # RELEASE, ERRORS or QUARANTINE comes before, also for a successor
        failed = (self._reset and not self._resettable) or str(function) in self.journal.told(PERM_FAILURE)
        return Result.FAILED if failed else self._verified.result(function)

    def _that(self, voted: Callable[[Vote], bool]) -> tuple[Address, ...]:
        """Return the functions whose error_detected vote is such."""
        told = self.journal.told(DriverStep.ERROR_DETECTED)
        return tuple(one for one in self.functions if str(one) in told and voted(told[str(one)]))

    def _bound_anew(self) -> set[Address]:
        told = self.journal.told(DriverStep.BIND)
        return {one for one in self.functions if str(one) in told and str(one) not in self.journal.unanswered}

    def _here(self) -> tuple[Address, ...]:
        """Return the functions that answer as who they were."""
        return tuple(one for one in self.functions if self._seen(one) is Result.RECOVERED)

    def _lost(self) -> tuple[Address, ...]:
        here = frozenset(self._here())
        return tuple(one for one in self.functions if one not in here)
