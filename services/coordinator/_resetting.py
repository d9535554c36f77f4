"""A reset that a user asked for: reset_prepare, the reset itself, reset_done.

It runs under a lease of its own, or inside a hold that it names (HOLDFAST_LEASE): then the hold keeps its lease, and
this work journals under an id of its own, so that its asker learns its outcome and not that of the hold.
"""

from __future__ import annotations

from typing import Final

from shared.pcie import Address, Topology
from shared.protocol.fabric import FunctionOutcome, Result
from shared.protocol.facts import What
from shared.protocol.requests import Channel, DriverStep
from shared.recovery import Step
from shared.runtime import BusError, Context, FabricClient, Fenced, LeaseHandle, RefusedError

from ._function_resets import IN_FUNCTION, reset_function
from ._holds import HoldWork
from ._journal import Journal, inherit
from ._plan import Chosen
from ._work import Work

FUNCTION: Final = "function"  # in the journal's details: what is reset ...
METHOD: Final = "method"  # ... and how
INSIDE: Final = "inside"  # the hold in whose lease it runs


class ResetWork(Work):
    """One reset. Without `chosen` (a successor that found no journal) it only rolls forward."""

    def __init__(
        self,
        context: Context,
        fabric: FabricClient,
        topology: Topology,
        handle: LeaseHandle,
        journal: Journal,
        chosen: Chosen | None,
    ) -> None:
        super().__init__(context, fabric, topology, handle, journal)
        self._chosen = chosen
        self._outcomes: tuple[FunctionOutcome, ...] = ()  # of rolling forward: the last word only inside a hold

    @property
    def inside(self) -> str | None:
        """The hold in whose lease it runs, if it has none of its own."""
        return self.journal.record.details.get(INSIDE)

    async def run_inside(self, hold: HoldWork) -> None:
        """Do the work inside the lease that a hold keeps and closes, when it is its turn there.

        What the fabric refuses ends it at once: the hold's user waits for this end, and the hold for its user. A lease
        that is another's is gone on with by a successor, and so is this.
        """
        try:
            async with hold.inside:
                try:
                    await self.look_around()
                    await self.perform()
                except RefusedError as refused:
                    self.say(What.RECOVERY_PROGRESS, step=self.journal.record.step, why=str(refused))
                    hold.journal.record = inherit(hold.journal.record, (self.journal.record,))
                    self._outcomes = tuple(FunctionOutcome(function=one, result=Result.FAILED) for one in self._hits())
            await self.conclude(self._outcomes)
        except (Fenced, BusError) as error:
            self.context.log.warning("reset stopped", lease=self.id, error=str(error) or repr(error))

    async def perform(self) -> None:
        """Prepare the drivers, reset, roll forward, tell the drivers.

        A successor finds in the journal whether a reset has been done, or may have been: then it does it (again).
        """
        hits = self._hits()
        record = self.journal.record
        begins = record.step in {Step.OPENED, DriverStep.RESET_PREPARE, Step.RESET} and record.broken is None
        if self._chosen is not None and begins:
            await self.enter(DriverStep.RESET_PREPARE)
            await self.tell(DriverStep.RESET_PREPARE, hits)
            await self.enter(Step.RESET)
            await self._reset(self._chosen)
        verified = await self.roll_forward()
        self._outcomes = verified.outcomes
        here = tuple(one for one in hits if verified.result(one) is Result.RECOVERED)
        lost = tuple(one for one in hits if one not in here)
        await self.enter(DriverStep.RESET_DONE)
        await self.tell(DriverStep.RESET_DONE, here)
        await self.tell(DriverStep.ERROR_DETECTED, lost, Channel.PERM_FAILURE)

    async def _reset(self, chosen: Chosen) -> None:
        self.say(What.RECOVERY_PROGRESS, step=Step.RESET, method=chosen.method)
        function = self.topology.get(chosen.at)
        if chosen.method in IN_FUNCTION:
            await self.drive(reset_function(function, chosen.method))
        else:
            await self.secondary_bus_reset(function.address)

    def _hits(self) -> tuple[Address, ...]:
        """Return the functions whose drivers are told: those that the method hits, and who have prepared for it."""
        hit = () if self._chosen is None else [function.address for function in self._chosen.hits]
        prepared = self.journal.told(DriverStep.RESET_PREPARE)
        return tuple(one for one in self.functions if one in hit or str(one) in prepared)
