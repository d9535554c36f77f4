"""A slot in quarantine: its port is held down for good, until an operator releases it or another card is seated.

Nothing is judged and nothing is removed: what the slot held stays registered, and the way to it counts as failed. Only
presence is listened to, and only where it is out of band. In-band presence goes down with the link, so that behind a
port that is held down nobody can see a card come or go: there, the operator decides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from shared.pcie import registers as r
from shared.protocol import Reason, Refused, subjects
from shared.protocol.fabric import Condition, Quarantine
from shared.protocol.facts import Ignored, What
from shared.protocol.requests import AcceptReply, Lift
from shared.runtime import BusError

from ._indicators import clear
from ._presence import Presence

if TYPE_CHECKING:
    from ._actor import SlotActor
    from ._look import Look
    from ._operation import SlotOperation

_BY: Final = "hotplug: another card is seated"
_ANSWER_S: Final = 2.0  # the coordinator answers at once
_AGAIN_S: Final = 1.0  # after a request that nobody answered
_CHANGED: Final = int(r.SlotStatus.PRESENCE_CHANGED)


class Quarantined:
    """What one slot does while its port, or one above, is in quarantine."""

    def __init__(self, actor: SlotActor) -> None:
        self._actor = actor
        self._told: tuple[str, int] | None = None  # the quarantine, and the latched bits, that a fact was told of
        self._emptied: str | None = None  # the quarantine in which the slot was seen without a card
        self._asked: str | None = None  # the quarantine that we have asked to be lifted

    def over(self) -> None:
        """Forget: the slot is judged again."""
        self._told = self._emptied = self._asked = None

    async def look(self, found: Look, quarantine: Quarantine) -> bool:
        """Say what is ignored, and ask for the release if another card is seated. True: look again at once."""
        actor, reading = self._actor, found.reading
        message = f"{quarantine.port} is in quarantine ({quarantine.why}); `{quarantine.release}` ends it"
        await actor.asks.refuse(Reason.QUARANTINED, message)
        if self._told != (quarantine.lease, reading.latched):
            self._told = quarantine.lease, reading.latched
            actor.say(What.SLOT_IGNORED, None, lease=quarantine.lease, **found.ignored(Ignored.QUARANTINED))
        if quarantine.port != actor.port:
            return False
        if await actor.events.overhear(found, quarantine.lease):
            return True
        if not reading.out_of_band:
            return False
        seated, changed = reading.presence is Presence.PRESENT, bool(reading.latched & _CHANGED)
        if not seated:
            # Remembered: a card that comes in while the change is being cleared leaves nothing latched.
            self._emptied = quarantine.lease
        elif not changed and self._emptied != quarantine.lease:
            return False
        if not seated or self._asked not in {None, quarantine.lease}:
            # A card that was taken out; or one whose seating has been answered already, by a release that has failed.
            self._asked = None
            return changed and await actor.operate(lambda operation: self._forget(operation, seated=seated))
        self._asked = quarantine.lease
        await self._lift()
        return False

    async def _forget(self, operation: SlotOperation, *, seated: bool) -> None:
        """Clear the change, so that the next one is an event again; not where it has come in between."""
        unchanged = Condition(port=self._actor.port, present=seated)
        await operation.do(clear(self._actor.function, _CHANGED), provided=(unchanged,))

    async def _lift(self) -> None:
        """Ask once; whoever looks next asks again if nothing has come of it: the change stays latched, or remembered."""
        actor = self._actor
        context = actor.context
        lift = Lift(port=actor.port, by=_BY)
        try:
            reply = await context.bus.request(
                subjects.coordinator(context.host, "lift"), lift, AcceptReply, timeout_s=_ANSWER_S
            )
        except BusError as trouble:
            context.log.warning("release from quarantine not answered", port=str(actor.port), why=str(trouble))
            actor.again(_AGAIN_S)
            return
        if isinstance(reply, Refused):
            context.log.warning("release from quarantine refused", port=str(actor.port), why=reply.message)
