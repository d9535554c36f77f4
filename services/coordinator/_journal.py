"""The journal of one piece of work: what the fabric cannot know, written before each step (DESIGN 4, "The record").

One key per port, conditional on our ownership of the host. What drivers answer is noted in memory at once and saved
with the next write; a vote that is lost with us is asked again by our successor, under another token.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from shared.pcie import Address
from shared.protocol import ProtocolError, decode, subjects
from shared.protocol.fabric import Lease
from shared.protocol.records import Recovery, RecoveryState, Verdict
from shared.protocol.requests import DriverStep, Vote
from shared.recovery import Step
from shared.runtime import BusUnreachable, Context, Entry, Unanswered

_AGAIN_S: Final = 0.2  # until a journal entry that was not written is tried again
_UNANSWERED: Final = "unanswered"  # in details: functions whose driver did not come back from a callback ...
_ESCALATED: Final = "escalated"  # ... and that a reset was decided on, which the cause alone does not ask for


class Journal:
    """The record of one lease, as last written or about to be."""

    def __init__(self, context: Context, record: Recovery) -> None:
        self.record = record
        self._context = context
        self._key = subjects.recovery_key(context.host, record.port)
        self._saved: Recovery | None = None

    @property
    def unanswered(self) -> tuple[str, ...]:
        """Functions whose driver did not answer in time: not asked again, as it still may be busy with the first."""
        return tuple(self.record.details.get(_UNANSWERED, ()))

    @property
    def escalated(self) -> bool:
        """Whether a reset was decided on, by a vote or by a second cause."""
        return _ESCALATED in self.record.details

    def escalate(self) -> None:
        """Note that a reset was decided on; `save` makes it durable."""
        self.detail(**{_ESCALATED: True})

    def told(self, step: str) -> Mapping[str, Vote]:
        """Return who has answered in a step, and what."""
        return self.record.told.get(step, {})

    def note(self, step: str, function: Address, vote: Vote, *, answered: bool = True) -> None:
        """Note one answer; `save` makes it durable."""
        told = {**self.record.told, step: {**self.told(step), str(function): vote}}
        self.change(told=told)
        if not answered:
            self.detail(**{_UNANSWERED: [*self.unanswered, str(function)]})

    def detail(self, **details: Any) -> None:
        """Note details; `save` makes them durable."""
        self.change(details={**self.record.details, **details})

    def change(self, **fields: Any) -> None:
        """Note fields of the record; `save` makes them durable."""
        self.record = msgspec.structs.replace(self.record, **fields)

    async def enter(self, step: str, **changes: Any) -> None:
        """Write that a step begins. Only when this has returned may the step begin."""
        self.change(step=step, **changes)
        await self.save()

    async def save(self) -> None:
        """Write what has been noted, unless it is written already. Raises WrongRevision where the host is another's.

        A bus that changes its leader does not answer for seconds, in which the lease lives on by its beats. So a write
        is tried again for as long as the host is ours; a lease that is lost meanwhile ends the work from outside.
        """
        while (record := self.record) is not self._saved:
            try:
                await self._context.put_owned(self._key, record)
            except (BusUnreachable, Unanswered) as error:
                self._context.log.debug("journal not written, trying again", lease=record.lease, error=str(error))
                await asyncio.sleep(_AGAIN_S)
            else:
                self._saved = record

    async def close(self, verdicts: Mapping[str, Verdict], **details: Any) -> None:
        """Write the end."""
        self.detail(**details)
        await self.enter(Step.CLOSED, state=RecoveryState.CLOSED, verdicts=dict(verdicts))


def blank(lease: Lease, **details: Any) -> Recovery:
    """Return the record of a lease that nothing has been done under yet."""
    return Recovery(
        lease=lease.id,
        port=lease.port,
        cause=lease.cause,
        rank=lease.rank,
        reach=lease.reach,
        state=RecoveryState.OPEN,
        step=Step.OPENED,
        details=details,
    )


def inherit(record: Recovery, absorbed: Iterable[Recovery]) -> Recovery:
    """Return an heir's record, with what those whom it absorbed began with drivers and did not end.

    A driver that was unbound, because it has no callbacks, would otherwise never be bound again (P3): nobody drives
    its function now, so nobody says so any more. One that prepared for a reset hears of its end.
    """
    told = {step: dict(votes) for step, votes in record.told.items()}
    for one in absorbed:
        for begun, ended in ((DriverStep.UNBIND, DriverStep.BIND), (DriverStep.RESET_PREPARE, DriverStep.RESET_DONE)):
            done = one.told.get(ended, {})
            left = {function: vote for function, vote in one.told.get(begun, {}).items() if function not in done}
            if not left:
                continue
            told.setdefault(begun, {}).update(left)
            if begun is DriverStep.UNBIND:
                told.setdefault(DriverStep.ERROR_DETECTED, {}).update(dict.fromkeys(left, Vote.NO_HANDLER))
    return msgspec.structs.replace(record, told=told)


def record_of(context: Context, entry: Entry | None) -> Recovery | None:
    """Read a journal record; None where there is none, or none that can be read, which is logged."""
    if entry is None:
        return None
    try:
        record: Recovery = decode(entry.value, Recovery)
    except ProtocolError as error:
        context.log.warning("malformed journal", key=entry.key, error=str(error))
        return None
    return record
