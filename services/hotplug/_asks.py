"""Requests to switch a slot on or off. Each is answered once, on every path.

A request is answered when it is under way, with the state that it has brought about; what becomes of it is the slot's
state and its facts. One that a recovery stands in the way of is refused, naming the lease; one that a recovery
absorbed after its answer is parked, and tried again once that lease has closed.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from shared.pcie import registers as r
from shared.protocol import LeaseRef, Reason, Refused
from shared.protocol.requests import SlotState
from shared.runtime import Request

from ._indicators import has
from ._presence import Presence
from ._slot import OCCUPIED, PARKABLE

if TYPE_CHECKING:
    from ._actor import SlotActor
    from ._look import Look

_ON: Final = "power_on"
_OFF: Final = "switched off by request"


class Asks:
    """The requests to one slot that wait for an answer."""

    def __init__(self, actor: SlotActor) -> None:
        self._actor = actor
        self._waiting: deque[Request] = deque()
        self.parked = False  # a power-off was answered, and absorbed before it was done

    def put(self, request: Request) -> None:
        """Keep a request until the slot has been looked at."""
        self._waiting.append(request)

    async def refuse(self, reason: Reason, message: str, lease: LeaseRef | None = None) -> None:
        """Refuse all that wait."""
        while self._waiting:
            await self._waiting.popleft().answer(Refused(reason=reason, message=message, lease=lease))

    async def handle(self, found: Look) -> bool:
        """Handle one request; tell whether the slot must be looked at again."""
        actor = self._actor
        if self._waiting:
            on = self._waiting[0].subject.endswith(_ON)
            if on:
                # Two requests in a row: the later one counts, as two presses of the button would.
                self.parked = False
                await self._power_on(found)
            else:
                await self._power_off()
            return True
        if self.parked:
            if actor.state in PARKABLE:
                return await actor.switch_off("power off, parked during a recovery", _OFF)
            self.parked = False
        return False

    async def _power_on(self, found: Look) -> None:
        actor = self._actor
        if await self._cancelled(SlotState.BLINKING_OFF) or actor.state in OCCUPIED:
            await self._answer()
        elif has(actor.function, r.SlotCapabilities.MRL_SENSOR) and found.reading.status & r.SlotStatus.MRL_OPEN:
            await self._refuse(Reason.POLICY, "the latch is open: close it first")
        elif not found.reading.link and found.reading.presence is Presence.ABSENT:
            await self._refuse(Reason.ABSENT, "no card is in the slot")
        else:
            await actor.bring_up("power on", begun=self._answer)

    async def _power_off(self) -> None:
        actor = self._actor
        if await self._cancelled(SlotState.BLINKING_ON) or actor.state not in OCCUPIED:
            actor.stay_off(_OFF)
            await self._answer()
        else:
            await actor.switch_off("power off", _OFF, begun=self._park_and_answer)

    async def _park_and_answer(self) -> None:
        self.parked = True
        await self._answer()

    async def _cancelled(self, blinking: SlotState) -> bool:
        """Cancel the opposite request that the button has made."""
        return self._actor.state is blinking and await self._actor.operate(self._actor.events.press)

    async def _answer(self) -> None:
        # A press that was refused has answered everybody already.
        if self._waiting:
            await self._waiting.popleft().answer(self._actor.report())

    async def _refuse(self, reason: Reason, message: str) -> None:
        await self._waiting.popleft().answer(Refused(reason=reason, message=message))
