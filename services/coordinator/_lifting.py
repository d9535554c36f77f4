"""Ending a quarantine: what is behind the port is brought back, under a lease that inherits what the record owes."""

from __future__ import annotations

import msgspec

from shared.protocol import Message, Refused
from shared.protocol.fabric import Rank, Reach
from shared.protocol.facts import What
from shared.protocol.requests import Accepted, Cause, Lift
from shared.runtime import LeaseHandle

from ._journal import Journal, blank, inherit
from ._port import Port
from ._recovering import RecoveryWork
from ._takeover import with_what_was_left


async def lift(port: Port, asked: Lift) -> Message:
    """Open the lease that ends the quarantine, which the fabric does in the same step; then a recovery follows."""
    works = port.works
    running = works.recovery_on(port.address)
    if running is not None and running.journal.record.cause == Cause.LIFT:
        return Accepted(lease=running.id, joined=True)
    lease_id = works.new_id("l", port.address)
    command = msgspec.structs.replace(port.command(lease_id, Rank.RECOVERY, Cause.LIFT, reach=Reach.RESET), lifts=True)
    reply = await works.fabric.open(command)
    if isinstance(reply, Refused):
        return reply
    works.storms.forget(port.address)
    left = await works.absorbed(reply.absorbed, lease_id, port.address)
    evidence = {"by": asked.by}
    begun = await with_what_was_left(works, blank(reply.lease, evidence=evidence), reply.lease)
    journal = Journal(works.context, inherit(begun, left))
    work = RecoveryWork(works.context, works.fabric, works.topology, LeaseHandle(reply.lease), journal)
    port.launch(work)
    work.say(What.RECOVERY_STARTED, functions=(), reach=Reach.RESET, evidence=evidence)
    return Accepted(lease=lease_id)
