"""Ending a lease against its holder's will. It is rolled forward and closed all the same: nothing stays masked (P2).

A hold's program may still run, and must not write behind the back of whoever comes next (P7): its holder hears at his
next renewal that it is over, and the hold ends when he has released it, or has been silent for `allowed`. Of recoveries
and resets the work is stopped; whoever is in a driver's callback is not waited for any more; a successor goes on under a
new token, so that what the stopped one still sends is refused.
"""

from __future__ import annotations

import msgspec

from shared.protocol import Message, Reason, Refused
from shared.protocol.fabric import Lease, Role
from shared.protocol.facts import What
from shared.protocol.requests import Accepted, Break

from . import _takeover
from ._holds import HoldWork
from ._journal import Journal
from ._port import Port
from ._resetting import ResetWork


async def break_lease(port: Port, asked: Break) -> Message:
    """End the lease; the answer comes as soon as that is under way. Raises RefusedError where it has ended meanwhile."""
    works = port.works
    work = works.find(asked.lease)
    if work is None:
        return await _break_left(port, asked)
    ended = Accepted(lease=asked.lease, joined=True)
    if isinstance(work, ResetWork) and work.inside is not None:
        return Refused(reason=Reason.POLICY, message=f"{asked.lease} runs inside the hold {work.inside}: break that")
    if work.closing:
        return ended
    was_broken = work.journal.record.broken is not None
    gently = isinstance(work, HoldWork) and work.waiting
    if gently and was_broken:
        return ended
    work.say(What.RECOVERY_BROKEN, by=asked.by, step=work.journal.record.step)
    work.journal.change(broken=asked.by)
    await works.stop_inside(work)
    if gently:
        await work.journal.save()
        return ended
    await works.stop(work)
    work.give_up_waiting()
    await work.journal.save()
    await _takeover.adopt(works, work.handle.lease, port.ended)
    return ended


async def _break_left(port: Port, asked: Break) -> Message:
    """End a lease that nobody works under here: its coordinator is dead, or has just lost the host."""
    works = port.works
    lease = await find_lease(port, asked.lease)
    if isinstance(lease, Refused):
        return lease
    record = msgspec.structs.replace(await _takeover.record_under(works, lease), broken=asked.by)
    await Journal(works.context, record).save()
    works.context.facts.say(
        What.RECOVERY_BROKEN, lease.port, lease=lease.id, cause=lease.cause, by=asked.by, step=record.step
    )
    await _takeover.adopt(works, lease, port.ended)
    return Accepted(lease=lease.id, joined=True)


async def find_lease(port: Port, lease_id: str) -> Lease | Refused:
    """Return an open lease that can be broken, or say why there is none."""
    found = next((one for one in (await port.works.fabric.leases()).leases if one.id == lease_id), None)
    return breakable(found, lease_id)


def breakable(lease: Lease | None, lease_id: str) -> Lease | Refused:
    """Return the lease if it may be broken, else the refusal."""
    if lease is None:
        return Refused(reason=Reason.UNKNOWN_LEASE, message=f"{lease_id} is not an open lease of this host")
    if lease.role is not Role.COORDINATOR:
        return Refused(
            reason=Reason.POLICY,
            message=f"{lease_id} is a slot operation: a recovery absorbs it, and it ends by itself",
            lease=lease.ref,
        )
    return lease
