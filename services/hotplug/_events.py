"""What a slot says besides link and presence: its button, its power, its latch."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from shared.pcie import answered, timing
from shared.pcie import registers as r
from shared.protocol.facts import Ignored, What
from shared.protocol.requests import SlotState
from shared.recovery import read
from shared.runtime import Wake

from ._indicators import clear, control, enables, has, lamps
from ._judge import Verdict
from ._presence import Presence
from ._slot import OCCUPIED, SlotEvent
from ._work import status_of

if TYPE_CHECKING:
    from ._actor import SlotActor
    from ._look import Look
    from ._operation import SlotOperation

_FAULT_SETTLE_S: Final = 0.02  # ours: a fault that lasts has latched again by then (CVE-2021-47617)
_BLINKING: Final = frozenset({SlotState.BLINKING_ON, SlotState.BLINKING_OFF})
_S: Final = r.SlotStatus
_WAIT_S: Final = timing.LINK_TO_FIRST_CONFIG + timing.VENDOR_ID_MAX  # for a device whose link is back


class Events:
    """Handles button, power fault and latch of one slot. Called only while no recovery is concerned."""

    def __init__(self, actor: SlotActor) -> None:
        self._actor = actor
        self._deadline: float | None = None  # when the button's grace is over
        self._faulted = False  # a power fault asserts again whenever it is cleared

    @staticmethod
    def patience(verdict: Verdict) -> float:
        """Return for how many seconds a verdict must last, beyond the grace, before the card is taken away."""
        return _WAIT_S if verdict is Verdict.WAIT else 0.0

    def powered_on(self) -> None:
        """Forget the button: the slot comes up."""
        self._deadline = None

    def rearm(self) -> None:
        """Look again when the button's grace is over."""
        if self._actor.state in _BLINKING and self._deadline is not None:
            self._actor.again(max(0.0, self._deadline - asyncio.get_running_loop().time()))

    async def reconcile(self, found: Look) -> bool:
        """Set the enables that nobody holds; tell whether the slot must be looked at again."""
        return bool(self._missing(found)) and await self._actor.operate(self._enable)

    async def _enable(self, operation: SlotOperation) -> None:
        # Seen once more, under our own lease: it may have been the mask of one that has closed since.
        actor = self._actor
        missing = self._missing(await actor.examine(operation.lease))
        if missing:
            await operation.do(*control(actor.function, mask=missing, value=missing))
            why = "not set, and no lease covers it"
            actor.say(What.SLOT_RECONCILED, None, lease=operation.lease, set=missing, why=why)

    def _missing(self, found: Look) -> int:
        """Return the enables that are off, and not on purpose: a power fault that lasts would block the interrupt."""
        disabled = int(r.SlotControl.POWER_FAULT_ENABLE) if self._faulted else 0
        return 0 if found.reading.silent else enables(self._actor.function) & ~found.reading.control & ~disabled

    async def handle(self, found: Look, wakes: frozenset[Wake]) -> bool:
        """Handle the first of the events; tell whether there was one (then: look again)."""
        status = found.reading.status
        has_button = has(self._actor.function, r.SlotCapabilities.ATTENTION_BUTTON)
        if status & _S.ATTENTION_BUTTON_PRESSED and has_button:
            return await self._actor.operate(self._pressed)
        if status & _S.POWER_FAULT_DETECTED and (not self._faulted or Wake.POLL in wakes):
            return await self._fault()
        if self._faulted and not status & _S.POWER_FAULT_DETECTED:
            self._faulted = False
            self._actor.say(What.SLOT_POWER_FAULT, None, lasts=False, why="the fault is over")
            return True
        if status & _S.MRL_CHANGED:
            return await self._actor.operate(self._latch)
        return await self._expired(found)

    async def overhear(self, found: Look, quarantine: str) -> bool:
        """Clear, in quarantine, what would hold back the interrupt of the next card; tell whether there was anything.

        Nothing can be switched there: a press asks for nothing, then or after the release.
        """
        actor, pressed = self._actor, int(_S.ATTENTION_BUTTON_PRESSED)

        async def ignore(operation: SlotOperation) -> None:
            if await actor.work.clear(operation, pressed):
                about = {"latched": pressed, "why": found.why, "reason": Ignored.QUARANTINED}
                actor.say(What.SLOT_IGNORED, None, lease=quarantine, **about)

        if found.reading.status & pressed:
            return await actor.operate(ignore)
        return bool(found.reading.status & _S.MRL_CHANGED) and await actor.operate(self._latch)

    async def press(self, operation: SlotOperation) -> None:
        """Act as if the button had been pressed: begin to blink, or stop."""
        actor = self._actor
        actor.become(SlotEvent.PRESS, "attention button", operation.lease)
        if actor.state in _BLINKING:
            self._deadline = asyncio.get_running_loop().time() + actor.context.settings.button_s
            indicator = r.Indicator.BLINK
        else:
            self._deadline = None
            indicator = r.Indicator.ON if actor.state in OCCUPIED else r.Indicator.OFF
        await operation.do(*lamps(actor.function, power=indicator, attention=r.Indicator.OFF))

    async def _pressed(self, operation: SlotOperation) -> None:
        actor = self._actor
        if await actor.work.clear(operation, _S.ATTENTION_BUTTON_PRESSED):
            await self.press(operation)
            actor.say(What.SLOT_BUTTON, None, lease=operation.lease, state=actor.state)

    async def _expired(self, found: Look) -> bool:
        actor = self._actor
        if self._deadline is None or actor.state not in _BLINKING:
            return False
        if asyncio.get_running_loop().time() < self._deadline:
            return False
        if actor.state is SlotState.BLINKING_OFF:
            done = await actor.switch_off("attention button", "switched off by its button")
        elif found.reading.link or found.reading.presence is not Presence.ABSENT:
            done = await actor.bring_up("attention button")
        else:
            done = await actor.operate(self._nothing_there)
        if done:
            self._deadline = None
        return done

    async def _nothing_there(self, operation: SlotOperation) -> None:
        await operation.do(*lamps(self._actor.function, power=r.Indicator.OFF))
        self._actor.become(SlotEvent.EMPTY, "the slot is empty", operation.lease)

    async def _fault(self) -> bool:
        """Clear a power fault, and see whether it asserts again. Each that lasts is reported and acted on once."""
        actor = self._actor
        lasts = False

        async def work(operation: SlotOperation) -> None:
            nonlocal lasts
            await operation.do(clear(actor.function, _S.POWER_FAULT_DETECTED))
            await operation.pause(_FAULT_SETTLE_S)
            (status,) = await operation.do(read(actor.port, *status_of(actor.function)))
            lasts = answered(status) and bool(status & _S.POWER_FAULT_DETECTED)
            if lasts and not self._faulted:
                enable = r.SlotControl.POWER_FAULT_ENABLE
                await operation.do(
                    *control(actor.function, mask=enable, value=0),
                    *lamps(actor.function, power=r.Indicator.OFF, attention=r.Indicator.ON),
                )

        if not await actor.operate(work):
            return False
        if self._faulted and lasts:
            return False
        switched = has(actor.function, r.SlotCapabilities.POWER_CONTROLLER)
        fresh, self._faulted = lasts and not self._faulted, lasts
        actor.say(What.SLOT_POWER_FAULT, None, lasts=lasts, power_controller=switched)
        if fresh and switched and actor.state in OCCUPIED:
            await actor.switch_off("power fault", "power fault", surprise=True)
        return True

    async def _latch(self, operation: SlotOperation) -> None:
        actor = self._actor
        cleared = await actor.work.clear(operation, _S.MRL_CHANGED)
        # Read after it: what moves the latch from now on is a change of its own.
        (status,) = await operation.do(read(actor.port, *status_of(actor.function)))
        if cleared and answered(status):
            opened = bool(status & _S.MRL_OPEN)
            actor.say(What.SLOT_LATCH, None, lease=operation.lease, open=opened, state=actor.state)
