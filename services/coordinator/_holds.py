"""A hold: an external lease, kept for a program that resets the device behind our back.

The coordinator beats for it only while its user says, within `allowed`, that he lives. When he is silent or releases
it, the port is rolled forward from whatever the program left, and closed. One that is broken refuses what its user says
next: he ends his program and releases, or falls silent, and only then the lease goes on to its end.
"""

from __future__ import annotations

import asyncio
from typing import Final

from shared.pcie import Topology
from shared.protocol.fabric import Result
from shared.protocol.facts import What
from shared.recovery import Step
from shared.runtime import Context, FabricClient, LeaseHandle

from ._journal import Journal
from ._work import Work

HELD: Final = "held"  # how the journal calls the step in which the program runs


class HoldWork(Work):
    """One hold. Whoever takes it over gives its user `allowed` to be heard again."""

    def __init__(
        self, context: Context, fabric: FabricClient, topology: Topology, handle: LeaseHandle, journal: Journal
    ) -> None:
        super().__init__(context, fabric, topology, handle, journal)
        self._heard = asyncio.get_running_loop().time()
        self._released = asyncio.Event()
        self._waiting = False  # its user's program may still run
        self.inside = asyncio.Lock()  # one reset inside the hold at a time

    @property
    def open(self) -> bool:
        """Whether the user still may renew, or run something inside."""
        return not self._released.is_set() and self.journal.record.broken is None

    @property
    def waiting(self) -> bool:
        """Whether the user's program may still run: the lease must not end under it (P7)."""
        return self._waiting

    def renew(self) -> None:
        """Note that the user lives."""
        self._heard = asyncio.get_running_loop().time()

    def release(self) -> None:
        """End the hold."""
        self._released.set()

    async def perform(self) -> None:
        """Hold until released or silent; then roll forward."""
        if self.journal.record.step == Step.OPENED:
            await self.enter(HELD)
        if self.journal.record.step == HELD:
            self._waiting = True
            await self._await_end()
            self._waiting = False
        async with self.inside:  # a reset inside the hold ends first: it owes the hardware its own roll forward
            verified = await self.roll_forward()
        here = tuple(one for one in self.functions if verified.result(one) is Result.RECOVERED)
        await self.end_preparation(here)

    async def _await_end(self) -> None:
        loop = asyncio.get_running_loop()
        allowed = self.handle.allowed_s
        while not self._released.is_set():
            left = self._heard + allowed - loop.time()
            if left <= 0:
                self.say(What.RECOVERY_PROGRESS, step=HELD, why="its user is silent", silent_s=round(allowed, 3))
                self._released.set()
                return
            try:
                async with asyncio.timeout(left):
                    await self._released.wait()
            except TimeoutError:
                continue
