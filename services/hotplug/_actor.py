"""The actor of one slot: look, judge, act, and look again until nothing is left to act on.

Whatever woke it, it reads the registers and judges what they say (P9). After each act it reads again: an MSI comes
only when a status that was zero becomes set (scenario 11), so no event may be left behind, unless it is deferred.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from shared.pcie import Address, Function
from shared.pcie.registers import SlotStatus
from shared.protocol import LeaseRef, Reason
from shared.protocol.fabric import Condition
from shared.protocol.facts import Ignored, What
from shared.protocol.requests import Channel, SlotReport, SlotState
from shared.runtime import Fenced, RefusedError, Request, Wake

from ._asks import Asks
from ._events import Events
from ._indicators import clear
from ._judge import Row, Verdict, View, judge
from ._keeper import Keeper, Shop, Survey
from ._look import Look
from ._operation import Held, SlotOperation, slot_operation
from ._presence import Pins, Presence
from ._quarantine import Quarantined
from ._reading import CHANGES, look, seen
from ._slot import OCCUPIED, PARKABLE, SlotEvent, following
from ._survey import compare
from ._work import NotReady, Work

_ROUNDS_MAX: Final = 8  # in one go; a slot that still has events then is looked at again a little later
_LATER_S: Final = 0.1
_DEFERRED_LOOK_S: Final = 1.0  # while events are deferred, if no hint should tell of the lease's end
_BEFORE_US: Final = CHANGES | SlotStatus.ATTENTION_BUTTON_PRESSED  # as pciehp clears them when it starts
_WORKING: Final = frozenset({SlotState.POWER_ON, SlotState.POWER_OFF})
_UNDECIDED: Final = frozenset({Verdict.READ_AGAIN, Verdict.DEFER, Verdict.LEAVE})


class SlotActor(Keeper):
    """Keeps one hotplug-capable slot and the functions in it."""

    def __init__(self, port: Address, shop: Shop) -> None:
        super().__init__(port, shop)
        self.state = SlotState.OFF
        self.work = Work(self)
        self.resting: str | None = None  # why only a new change brings the slot up; None if anything may
        self.covered_by: LeaseRef | None = None
        self.asks = Asks(self)
        self.events = Events(self)
        self._quarantined = Quarantined(self)
        self._function = shop.topology.get(port)
        self._begun = self._deferring = False
        self._decided = False  # the last look could judge the slot, and so may thaw its channels
        self._operation: SlotOperation | None = None
        self._pins = Pins()
        self._cleared = False  # a change was, and perhaps another with it: nobody has seen since that all is set up
        self._retry_at: float | None = None  # when a card that was silent is tried again
        self._retry_after = self.context.settings.reconcile_s

    # --- What others may ask at any time ---

    @property
    def function(self) -> Function:
        """The port, as last enumerated; as it was, if it has vanished with a switch card."""
        self._function = self.shop.topology.find(self.port) or self._function
        return self._function

    def report(self) -> SlotReport:
        """Return the slot as it is known now: one that will go off, once a recovery is over, is going off (scenario 12)."""
        parked = self.asks.parked and self.state in PARKABLE
        return SlotReport(
            port=self.port,
            slot_number=self.function.slot_number,
            state=SlotState.POWER_OFF if parked else self.state,
            devices=tuple(device.function for device in self.behind()),
            lease=None if self.covered_by is None else self.covered_by.id,
        )

    def ask(self, request: Request) -> None:
        """Take a power request: answered as soon as the slot has been looked at."""
        self.asks.put(request)
        self.wake(Wake.AGAIN)

    def doubt(self) -> None:
        """Have the operation in progress, if any, ask whether its lease is still ours."""
        if self._operation is not None:
            self._operation.doubt()

    async def run(self) -> None:
        """Run until cancelled; nobody is left waiting for an answer."""
        try:
            await super().run()
        finally:
            await self.asks.refuse(Reason.STOPPING, "the slot is no longer served by this instance")

    # --- Looking ---

    async def look(self, wakes: frozenset[Wake]) -> None:
        """Judge and act until nothing is left to do."""
        if self.shop.topology.find(self.port) is None:
            return
        for _ in range(_ROUNDS_MAX):
            survey = await self._round(wakes)
            if survey is not None:
                break
        else:
            survey = await self.survey()
            self.again(_LATER_S)
        await self.follow_recoveries(survey, thaw=self._decided)
        self.progressed()
        self.events.rearm()

    async def examine(self, ours: str | None = None) -> Look:
        """Read everything and judge it. `ours` is our own slot operation, which covers nothing."""
        topology = self.shop.topology
        port, above = topology.get(self.port), topology.ancestors(self.port)
        reading = seen(port, above, await self.shop.fabric.read(look(port, above)))
        survey = await self.survey(ours)
        lease = survey.leases.over(self.port)
        quarantine = survey.leases.quarantine(self.port)
        self.covered_by = None if lease is None else lease.ref
        row = judge(
            View(
                quarantined=quarantine is not None,
                silent=reading.silent,
                contained=bool(reading.contained),
                fatal=bool(reading.fatal) and not topology.firmware_first,  # else nobody here will ever clear it
                covered=lease is not None,
                on=self.on,
                link=reading.link,
                resting=self.resting is not None,
                card=reading.presence is Presence.PRESENT,
                latched=bool(reading.latched),
                identity=compare(
                    survey.findings.values(),
                    reseated=self._pins.reseated(slot_status=reading.status, slot_control=reading.control),
                    latched=bool(reading.latched) or self._cleared,
                ),
            )
        )
        particulars = (*reading.contained, *reading.fatal) if quarantine is None else (quarantine.why,)
        return Look(reading, survey, row, f"{row.because}: {'; '.join(particulars)}" if particulars else row.because)

    @property
    def on(self) -> bool:
        """Whether the slot counts as occupied; during an operation the registry tells."""
        return bool(self.devices()) if self.state in _WORKING else self.state in OCCUPIED

    async def _round(self, wakes: frozenset[Wake]) -> Survey | None:
        """Look once and act on it; return what was seen, or None to look again at once."""
        if not self._begun:
            await self._begin()
        self._follow_registry("the registry says so")
        found = await self.examine()
        verdict = found.row.verdict
        self._decided = verdict not in _UNDECIDED
        if await self.adopt_orphans(found.survey.leases):
            return None
        quarantine = found.survey.leases.quarantine(self.port)
        if quarantine is not None:
            return None if await self._quarantined.look(found, quarantine) else found.survey
        if not self._decided:
            await self._defer(found)
            return found.survey
        self._deferring = False
        self._quarantined.over()
        events = self.events
        if await events.reconcile(found) or await events.handle(found, wakes) or await self.asks.handle(found):
            return None
        return None if await self._act(found) else found.survey

    async def _defer(self, found: Look) -> None:
        """Leave everything latched; say so once per episode, if there is anything to say."""
        self.again(_DEFERRED_LOOK_S)
        reading = found.reading
        silent = found.row.verdict is Verdict.READ_AGAIN
        lease = self.covered_by
        message = found.why if lease is None else f"lease {lease.id} ({lease.cause}) of {lease.holder} covers the slot"
        await self.asks.refuse(Reason.ABSENT if silent else Reason.HELD, message, lease)
        changed = not silent and (reading.latched or self.on != reading.link)
        if changed and not self._deferring:
            self._deferring = True
            self.say(What.SLOT_DEFERRED, self.covered_by, why=found.why, latched=reading.latched, row=found.row.name)

    async def _begin(self) -> None:
        """Find the state at start: what the registry shows is on; what runs already is registered as it is (P3)."""
        if not self.devices():
            found = await self.examine()
            if found.row.verdict in _UNDECIDED:
                return
            if found.reading.link:
                await self._find_running(found)
        if self.devices():
            self.become(SlotEvent.FOUND, "found at start")
        elif self.shop.registry.switched_off(self.port):
            self.resting = "switched off before the restart"
        self._begun = True

    async def _find_running(self, found: Look) -> None:
        known = any(self.shop.registry.device(function.address) is not None for function in self.newcomers())
        await self.welcome(found.survey, "found at start")
        if self.devices() and found.reading.status & _BEFORE_US and not known:
            # What latched before anybody was there to see the slot is older than its first registration.
            self._cleared = True
            await self.operate(lambda operation: self.work.clear(operation, _BEFORE_US))

    # --- Acting ---

    async def _act(self, found: Look) -> bool:
        match found.row.verdict:
            case Verdict.KEEP:
                return await self.operate(self._keep)
            case Verdict.WAIT | Verdict.REMOVE:
                return await self._grace(found)
            case Verdict.REPLACE:
                return await self._remove(found.row)
            case Verdict.BRING_UP:
                return await self.bring_up(found.why)
            case Verdict.CLEAR:
                return await self.operate(self._clear)
            case _:
                return await self._rest(found)

    async def _rest(self, found: Look) -> bool:
        """Nothing has changed in the slot: see to functions that a lease left unregistered, and try slow cards again."""
        self._cleared &= not all(finding.answers for finding in found.survey.findings.values())
        self.compared(found.survey)
        if self.on and found.reading.link:
            await self.welcome(found.survey, "found in the slot")
        # Without power no link can show that the card is ready by now.
        unseen = found.reading.presence is Presence.PRESENT and not found.reading.powered
        if self._retry_at is not None and not self.on and (found.reading.link or unseen):
            if asyncio.get_running_loop().time() >= self._retry_at:
                return await self.bring_up("trying again")
            self.again(self._retry_at - asyncio.get_running_loop().time())
        return False

    async def _keep(self, operation: SlotOperation) -> None:
        """Clear what latched, in the step that checks the link: the same device answers; and say so (P3, P10)."""
        found = await self.examine(operation.lease)
        if found.row.verdict is not Verdict.KEEP:
            return
        latched = found.reading.latched
        self._cleared = True
        await operation.do(clear(self.function, latched), provided=(self._provided(link=True),))
        self.say(What.SLOT_IGNORED, None, lease=operation.lease, **found.ignored(Ignored.SAME_DEVICE))
        told = self.compared(found.survey)
        for device in (one for one in self.devices() if one.function in found.survey.findings.keys() - told):
            self.shop.registry.kept(device, lease=operation.lease, why=found.why)

    async def _clear(self, operation: SlotOperation) -> None:
        """Clear a change that left nothing behind."""
        found = await self.examine(operation.lease)
        if found.row.verdict is not Verdict.CLEAR:
            return
        await operation.do(clear(self.function, found.reading.latched), provided=(self._provided(link=False),))
        self.resting = self._retry_at = None
        self.say(What.SLOT_IGNORED, None, lease=operation.lease, **found.ignored(Ignored.NOTHING_LEFT))

    async def _grace(self, found: Look) -> bool:
        """Freeze the channels and look again later: a recovery may be about to speak, or the device to answer."""
        settings = self.context.settings
        for device in self.behind():
            await self.set_channel(device, Channel.FROZEN, lease=None, why=found.why)
        until = asyncio.get_running_loop().time() + self.events.patience(found.row.verdict)
        while True:
            await asyncio.sleep(settings.removal_grace_s)
            now = await self.examine()
            if now.row.verdict is not found.row.verdict:
                return True
            if asyncio.get_running_loop().time() >= until:
                return await self._remove(found.row)

    async def _remove(self, row: Row) -> bool:
        """Take the card away, under a lease that no recovery holds; what is there afterwards is judged afresh (P4)."""

        async def work(operation: SlotOperation) -> None:
            found = await self.examine(operation.lease)
            if found.row.verdict is not row.verdict:
                return
            down = not found.reading.link
            await operation.do(
                clear(self.function, found.reading.latched), provided=(self._provided(link=found.reading.link),)
            )
            self.become(SlotEvent.DISABLE, found.why, operation.lease)
            if down:
                self.say(What.LINK_DOWN, None, lease=operation.lease, presence=found.reading.presence)
            await self.work.take_away(operation, found.why)
            self.resting = self._retry_at = None

        return await self.operate(work)

    async def bring_up(self, why: str, *, begun: Callable[[], Awaitable[None]] | None = None) -> bool:
        """Bring the card up; `begun` is called once nobody stands in the way."""

        async def work(operation: SlotOperation) -> None:
            self.become(SlotEvent.ENABLE, why, operation.lease)
            self.events.powered_on()
            if begun is not None:
                await begun()
            try:
                await self.work.bring_in(operation, why)
            except NotReady as failure:
                self._give_up(failure)
            else:
                self.resting = self._retry_at = None
                self._retry_after = self.context.settings.reconcile_s

        return await self.operate(work)

    def _give_up(self, failure: NotReady) -> None:
        self.resting = str(failure)
        self._retry_at = None
        if failure.silent:
            # A card that is only slow is tried again, ever more rarely.
            self._retry_at = asyncio.get_running_loop().time() + self._retry_after
            self._retry_after *= 2

    async def switch_off(
        self, why: str, resting: str, *, surprise: bool = False, begun: Callable[[], Awaitable[None]] | None = None
    ) -> bool:
        """Switch the slot off on purpose; `begun` is called once nobody stands in the way."""

        async def work(operation: SlotOperation) -> None:
            self.become(SlotEvent.DISABLE, why, operation.lease)
            if begun is not None:
                await begun()
            if surprise:
                await self.work.take_away(operation, why, on_purpose=True)
            else:
                await self.work.switch_off(operation, why)
            self.stay_off(resting)
            self.asks.parked = False

        return await self.operate(work)

    def stay_off(self, why: str) -> None:
        """Have only a new change bring the slot up."""
        self.resting, self._retry_at = why, None

    # --- Under a lease ---

    async def operate(self, work: Callable[[SlotOperation], Awaitable[object]]) -> bool:
        """Do something under a slot operation. True: look again; False: somebody else goes first (P5)."""
        lease_id = self.shop.lease_id(self.port)
        try:
            async with slot_operation(self.shop.fabric, self.port, lease_id, self.context.settings) as operation:
                self._operation = operation
                await work(operation)
        except Held as held:
            self.again(_DEFERRED_LOOK_S)
            self.covered_by = held.refused.lease
            await self.asks.refuse(held.refused.reason, held.refused.message, held.refused.lease)
            if held.refused.reason is not Reason.QUARANTINED:  # which the next look says itself
                self._say_deferred(f"refused: {held}")
            return False
        except Fenced as fenced:
            self.again(_LATER_S)
            self._say_deferred(f"absorbed: {fenced}")
            return False
        except RefusedError as refused:
            if refused.refused.reason is not Reason.CONDITION:
                raise
        finally:
            self._operation = None
            self._follow_registry("the operation has ended")
        return True

    def _say_deferred(self, why: str) -> None:
        if not self._deferring:
            self._deferring = True
            self.say(What.SLOT_DEFERRED, self.covered_by, why=why)

    def _provided(self, *, link: bool) -> Condition:
        return Condition(port=self.port, link_active=link if self.function.link_active_reporting else None)

    def become(self, event: SlotEvent, why: str, lease: str | None = None) -> None:
        """Change the state; each change is a fact."""
        before, self.state = self.state, following(self.state, event)
        if self.state is not before:
            self.say(What.SLOT_STATE, None, lease=lease, **{"from": before}, to=self.state, why=why)

    def _follow_registry(self, why: str) -> None:
        """Let the registry decide where an operation has ended, or that an actor further up took the card away."""
        occupied = bool(self.devices())
        if self.state in _WORKING or (self.state in OCCUPIED and not occupied):
            self.become(SlotEvent.FOUND if occupied else SlotEvent.EMPTY, why)

    def say(self, what: What, covering: LeaseRef | None, *, lease: str | None = None, **data: Any) -> None:
        """State a fact about the slot."""
        known = lease if covering is None else covering.id
        cause = None if covering is None else covering.cause
        self.context.facts.say(what, self.port, lease=known, cause=cause, slot=self.function.slot_number, **data)
