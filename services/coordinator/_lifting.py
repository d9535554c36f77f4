"""Ending a quarantine: what is behind the port is brought back, under a lease that inherits what the record owes."""

from __future__ import annotations

import msgspec

from shared.protocol import Message, Refused
from shared.protocol.fabric import Rank, Reach
from shared.protocol.facts import What
from shared.protocol.records import Recovery
from shared.protocol.requests import Accepted, Cause, Lift
from shared.runtime import LeaseHandle

from ._journal import Journal, blank, inherit, record_of
from ._port import Port
from ._recovering import RecoveryWork


async def lift(port: Port, asked: Lift) -> Message:
    """Open the lease that ends the quarantine, which the fabric does in the same step; then a recovery follows."""
    works = port.works
    running = works.recovery_on(port.address)
    if running is not None and running.journal.record.cause == Cause.LIFT:
        return Accepted(lease=running.id, joined=True)
    lease_id = works.new_id("l", port.address)
    command = msgspec.structs.replace(port.command(lease_id, Rank.RECOVERY, Cause.LIFT, reach=Reach.RESET), lifts=True)
    # Under the lease that began the quarantine drivers without callbacks were unbound; they are bound again now (P3).
    before = await _journal_behind(port)
    reply = await works.fabric.open(command)
    if isinstance(reply, Refused):
        return reply
    works.storms.forget(port.address)
    left = await works.absorbed(reply.absorbed, lease_id, port.address)
    evidence = {"by": asked.by}
    begun = (blank(reply.lease, evidence=evidence), (*left, *([] if before is None else [before])))
    journal = Journal(works.context, inherit(*begun))
    work = RecoveryWork(works.context, works.fabric, works.topology, LeaseHandle(reply.lease), journal)
    port.launch(work)
    work.say(What.RECOVERY_STARTED, functions=(), reach=Reach.RESET, evidence=evidence)
    return Accepted(lease=lease_id)


async def _journal_behind(port: Port) -> Recovery | None:
    """Return the journal of the lease under which the port was put into quarantine, if nobody has written over it."""
    works = port.works
    lease = next((one.lease for one in (await works.fabric.leases()).quarantines if one.port == port.address), None)
    entries = () if lease is None else await works.context.bus.keys(f"recovery.{works.context.host}.")
    records = (record_of(works.context, entry) for entry in entries)
    return next((one for one in records if one is not None and one.lease == lease), None)
