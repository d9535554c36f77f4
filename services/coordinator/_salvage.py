"""What is left to do where a work fails in the same way again and again: free the port, and call nobody.

It would be adopted for ever otherwise, and its mask never end (P2). Drivers that were told of an error and not that
they may go on are left frozen: their functions have failed, and who sees to that function sees to its driver.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from shared.pcie import Topology
from shared.protocol.fabric import FunctionOutcome, Result
from shared.protocol.facts import What
from shared.protocol.requests import DriverStep
from shared.recovery import Step
from shared.runtime import Context, FabricClient, LeaseHandle, RefusedError

from ._journal import Journal
from ._work import Work

BY: Final = "holdfast"  # who breaks it
_PAIRS: Final = (
    (DriverStep.ERROR_DETECTED, DriverStep.RESUME),
    (DriverStep.RESET_PREPARE, DriverStep.RESET_DONE),
)


class Salvage(Work):
    """Roll forward and close. `failure` is how the work before failed."""

    def __init__(
        self,
        context: Context,
        fabric: FabricClient,
        topology: Topology,
        handle: LeaseHandle,
        journal: Journal,
        failure: str,
    ) -> None:
        super().__init__(context, fabric, topology, handle, journal)
        self._failed_by = failure

    async def perform(self) -> None:
        """Give the work up, then roll forward."""
        record = self.journal.record
        self.journal.change(broken=BY, quarantine=())
        self.say(
            What.RECOVERY_BROKEN,
            by=f"{BY}: it failed the same way again and again: {self._failed_by}",
            step=record.step,
        )
        await self.enter(Step.RELEASE)
        try:
            await self.roll_forward()
        except RefusedError as refused:  # again and again, as before: what close does not refuse for is left as it is
            self.say(What.RECOVERY_PROGRESS, step=Step.RELEASE, why=refused.refused.message)

    async def conclude(self, outcomes: Sequence[FunctionOutcome]) -> None:
        """Judge, as all works do; but whose driver was left frozen, or prepared for a reset, has failed."""
        left = {
            function
            for begun, ended in _PAIRS
            for function in self.journal.told(begun).keys() - self.journal.told(ended).keys()
        }
        await super().conclude(
            [
                FunctionOutcome(function=one.function, result=Result.FAILED)
                if one.result is Result.RECOVERED and str(one.function) in left
                else one
                for one in outcomes
            ]
        )
