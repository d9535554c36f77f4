"""One recovery, performed step by step as `_recovery` has it: the journal first, then the drivers and the registers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from shared.pcie import Address, Topology
from shared.protocol import Refused
from shared.protocol.fabric import FunctionOutcome, Open, Reach, Result
from shared.protocol.facts import What
from shared.protocol.requests import Cause, Channel, DriverStep, Vote
from shared.recovery import Step, Verified, settle
from shared.runtime import Context, FabricClient, LeaseHandle

from ._journal import Journal
from ._opening import open_when_free
from ._plan import PLANS
from ._queue import Running
from ._recovery import Situation, entry, following, joinable
from ._votes import gave_up, merge
from ._work import Work

PERM_FAILURE: Final = "perm_failure"  # how the journal calls error_detected with that channel


class RecoveryWork(Work):
    """A recovery after DPC or AER, from the drivers' error_detected to their resume."""

    def __init__(
        self, context: Context, fabric: FabricClient, topology: Topology, handle: LeaseHandle, journal: Journal
    ) -> None:
        super().__init__(context, fabric, topology, handle, journal)
        self._plan = PLANS[Cause(handle.lease.cause)]
        owed = handle.lease.debts  # by whom it absorbed: a link that is held down is a reset, whatever the plan says
        is_down = bool(owed.in_reset or owed.link_disabled or owed.contained)
        self._reset = self._plan.reset or handle.lease.reach is Reach.RESET or is_down
        self._joinable = joinable(Step(journal.record.step))
        self._verified: Verified | None = None
        self._doing = {
            Step.ERROR_DETECTED: self._error_detected,
            Step.MMIO_ENABLED: self._mmio_enabled,
            Step.RESET: self._take_link_down,
            Step.RELEASE: self._roll_forward,
            Step.ERRORS: self._settle,
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
        if PLANS[cause].reset and not self._reset:
            self._reset = True
            self.say(What.RECOVERY_ESCALATED, because=cause)

    # --- The steps ---

    async def perform(self) -> None:
        """Go from step to step, beginning where the journal says that somebody got to."""
        step = entry(Step(self.journal.record.step), reset=self._reset)
        while step is not Step.CLOSE:
            doing = self._doing.get(step)
            if doing is not None:
                await self.enter(step)
                await doing()
            step = following(step, Situation(reset=self._reset, votes=self._votes(step)))

    async def enter(self, step: str, **changes: Any) -> None:
        """Close the door to second causes before anything is written or awaited; once closed it stays so."""
        self._joinable = self._joinable and joinable(Step(step))
        await super().enter(step, **changes)

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
        """Widen the lease, unbind what cannot be told, and reset; unless the link is down for a better reason."""
        if not self._reset:
            self._reset = True
            self.say(What.RECOVERY_ESCALATED, because=Vote.NEED_RESET)
        if self.handle.lease.reach is not Reach.RESET:
            await self._widen()
        await self.tell(DriverStep.UNBIND, self._that(lambda vote: vote is Vote.NO_HANDLER))
        await self.secondary_bus_reset(self.port)

    async def _widen(self) -> None:
        """Ask for the reach of a reset under the same lease: this masks what was not masked, and absorbs those below."""
        lease = self.handle.lease
        command = Open(
            id=lease.id,
            port=lease.port,
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
        await self.journal.enter(Step.RESET, reach=Reach.RESET)

    async def _roll_forward(self) -> None:
        self._verified = await self.roll_forward()

    async def _settle(self) -> None:
        """Nothing was reset: only publish and clear the errors, and look who answers."""
        self._verified = await self.drive(settle(self.handle.lease, self.topology))

    async def _slot_reset(self) -> None:
        """Tell every driver with callbacks of the reset, whatever it voted; never one whose device is another now."""
        await self.tell(DriverStep.ERROR_DETECTED, self._lost(), Channel.PERM_FAILURE, told_as=PERM_FAILURE)
        here = self._here()
        without = frozenset(self._that(lambda vote: vote is Vote.NO_HANDLER))
        await self.tell(DriverStep.SLOT_RESET, tuple(function for function in here if function not in without))
        await self.tell(DriverStep.BIND, tuple(function for function in here if function in without))

    async def _resume(self) -> None:
        """Let drivers go on, but those that have given up: they hear so."""
        here = self._here()
        without = frozenset(self._that(lambda vote: vote is Vote.NO_HANDLER))
        await self.end_preparation(here)
        record = self.journal.record
        given_up = {function for function in here if gave_up(str(function), record.told, self.journal.unanswered)}
        lost = (*self._lost(), *given_up)
        await self.tell(DriverStep.ERROR_DETECTED, lost, Channel.PERM_FAILURE, told_as=PERM_FAILURE)
        going_on = tuple(function for function in here if function not in given_up | without)
        await self.tell(DriverStep.RESUME, going_on)

    async def conclude(self, outcomes: Sequence[FunctionOutcome]) -> None:
        """Judge, as all works do; but a function that was given up is not restored, although it answers by now."""
        seen = self._verified
        await super().conclude(
            [
                FunctionOutcome(function=one.function, result=Result.FAILED)
                if seen is not None and one.result is Result.RECOVERED and seen.result(one.function) is not one.result
                else one
                for one in outcomes
            ]
        )

    # --- Who is meant ---

    def _that(self, voted: Callable[[Vote], bool]) -> tuple[Address, ...]:
        """Return the functions whose error_detected vote is such."""
        told = self.journal.told(DriverStep.ERROR_DETECTED)
        return tuple(one for one in self.functions if str(one) in told and voted(told[str(one)]))

    def _here(self) -> tuple[Address, ...]:
        """Return the functions that answer as who they were."""
        assert self._verified is not None  # RELEASE or ERRORS comes before, also for a successor
        return tuple(one for one in self.functions if self._verified.result(one) is Result.RECOVERED)

    def _lost(self) -> tuple[Address, ...]:
        here = frozenset(self._here())
        return tuple(one for one in self.functions if one not in here)
