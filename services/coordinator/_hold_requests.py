"""Holds: taken, renewed and released."""

from __future__ import annotations

import msgspec

from shared.protocol import Message, Refused
from shared.protocol.fabric import Rank, Reach
from shared.protocol.facts import What
from shared.protocol.requests import Accepted, Cause, Hold, Release
from shared.runtime import LeaseHandle

from ._holds import HoldWork
from ._journal import Journal, blank, inherit
from ._port import Port, no_hold


async def take_hold(port: Port, asked: Hold) -> Message:
    """Take a hold, or renew the one that is named."""
    works = port.works
    if asked.lease is not None:
        hold = works.find(asked.lease)
        if not isinstance(hold, HoldWork) or not hold.open:
            return no_hold(asked.lease)
        hold.renew()
        return Accepted(lease=hold.id, joined=True)
    lease_id = works.new_id("x", port.address)
    command = msgspec.structs.replace(
        port.command(lease_id, Rank.EXTERNAL, Cause.HOLD, reach=Reach.RESET, holder=asked.holder),
        accept=asked.accept,
        quiet_errors=asked.quiet_errors,
    )
    reply = await works.fabric.open(command)
    if isinstance(reply, Refused):
        return reply
    left = await works.absorbed(reply.absorbed, lease_id, port.address)
    journal = Journal(works.context, inherit(blank(reply.lease), left))
    work = HoldWork(works.context, works.fabric, works.topology, LeaseHandle(reply.lease), journal)
    port.launch(work)
    work.say(What.RECOVERY_STARTED, functions=(), reach=Reach.RESET, holder=asked.holder)
    return Accepted(lease=lease_id)


def release_hold(port: Port, asked: Release) -> Message:
    """End a hold; one that is broken is released like any other, and hears it."""
    hold = port.works.find(asked.lease)
    if not isinstance(hold, HoldWork):
        return no_hold(asked.lease)
    hold.release()
    return Accepted(lease=hold.id, joined=True)
