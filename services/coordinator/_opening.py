"""Opening a lease that somebody may stand in the way of."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from shared.pcie import Address, Topology
from shared.protocol import Reason, Refused
from shared.protocol.fabric import Open, Opened
from shared.runtime import FabricClient, RefusedError

POLL_S: Final = 0.25  # until the fabric is asked again; the end of a lease is only ever a hint (P9)


def named(port: Address, topology: Topology) -> Address:
    """Return the address by which the fabric is asked for a lease on `port`.

    A bridge to a conventional bus is named by what is behind it: its own lease would be that of the port above it.
    """
    function = topology.find(port)
    if function is None or not function.is_conventional_bridge:
        return port
    return next((behind.address for behind in topology.children(port)), port)


async def open_when_free(fabric: FabricClient, command: Open, waiting: Callable[[Refused], None]) -> Opened:
    """Open, waiting for whoever stands in the way; `waiting` is told of each of them once. Raises RefusedError."""
    behind: str | None = None
    while True:
        reply = await fabric.open(command)
        if isinstance(reply, Opened):
            return reply
        if reply.reason is not Reason.HELD:
            raise RefusedError(reply)
        blocker = reply.lease.id if reply.lease else ""
        if blocker != behind:
            behind = blocker
            waiting(reply)
        await asyncio.sleep(POLL_S)
