"""Asking a fabric on the bench, as its holders do."""

from __future__ import annotations

from itertools import count
from typing import Any

from shared.pcie import Address
from shared.pcie import registers as reg
from shared.protocol import Reason, Refused
from shared.protocol.fabric import (
    Condition,
    Execute,
    Lease,
    Open,
    Opened,
    Operation,
    Rank,
    Reach,
    Role,
)  # fmt: skip

from .fabric_bench import (
    Rig,
)

SBR = int(reg.BridgeControl.SECONDARY_BUS_RESET)
BRIDGE_CONTROL = reg.BRIDGE_CONTROL.offset
DISABLE = int(reg.LinkControl.LINK_DISABLE)
TRIGGER = int(reg.DpcStatus.TRIGGER)
_ids = count(1)


def request(port: Address, rank: Rank = Rank.RECOVERY, reach: Reach = Reach.RESET, **more: Any) -> Open:
    if rank is Rank.SLOT_OPERATION:
        reach = Reach.NOTHING
    given: dict[str, Any] = {"id": f"lease-{next(_ids)}", "cause": "test", "holder": "me"} | more
    return Open(port=port, rank=rank, reach=reach, **given)


def role_of(rank: Rank) -> Role:
    return Role.HOTPLUG if rank is Rank.SLOT_OPERATION else Role.COORDINATOR


async def opened(rig: Rig, port: Address, rank: Rank = Rank.RECOVERY, reach: Reach = Reach.RESET, **more: Any) -> Lease:
    reply = await rig.ask(request(port, rank, reach, **more), role_of(rank))
    assert isinstance(reply, Opened), reply
    lease: Lease = reply.lease
    return lease


async def do(rig: Rig, lease: Lease, n: int, *operations: Operation, provided: tuple[Condition, ...] = ()) -> Any:
    message = Execute(token=lease.token, n=n, operations=operations, provided=provided)
    return await rig.ask(message, lease.role)


def reason(reply: Any) -> Reason:
    assert isinstance(reply, Refused), reply
    return reply.reason
