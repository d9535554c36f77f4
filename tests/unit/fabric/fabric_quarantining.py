"""Putting ports of the bench into quarantine, and lifting it, as the coordinator does."""

from __future__ import annotations

from typing import Any

from shared.pcie import Address
from shared.pcie import registers as reg
from shared.protocol.fabric import (
    Close,
    Lease,
    LeaseList,
    Leases,
)
from shared.recovery import modify

from .fabric_asking import DISABLE, TRIGGER, do, opened, request
from .fabric_bench import (
    CARD,
    DOWN,
    DPC_CONTROL,
    DPC_STATUS,
    LINK_CONTROL,
    NESTED,
    OTHER,
    OTHER_CARD,
    ROOT,
    UP,
    Rig,
)

PDCE = int(reg.SlotControl.PRESENCE_CHANGED_ENABLE)
DLLSCE = int(reg.SlotControl.LINK_STATE_CHANGED_ENABLE)
SOFTWARE_TRIGGER = int(reg.DpcControl.SOFTWARE_TRIGGER)
PDC = int(reg.SlotStatus.PRESENCE_CHANGED)
IN_BAND_DISABLE = int(reg.SlotControl.IN_BAND_PRESENCE_DISABLE)


async def contain(rig: Rig, lease: Lease, n: int, port: Address, *below: Address) -> None:
    """Trigger containment in software, as the coordinator does; the bench is told what hardware does then."""
    await do(rig, lease, n, modify(port, DPC_CONTROL, 2, mask=SOFTWARE_TRIGGER, value=SOFTWARE_TRIGGER))
    rig.bench.set(port, DPC_STATUS, TRIGGER)
    rig.bench.take_down(port, *below)


async def disable(rig: Rig, lease: Lease, n: int, port: Address, *below: Address) -> None:
    await do(rig, lease, n, modify(port, LINK_CONTROL, 2, mask=DISABLE, value=DISABLE))
    rig.bench.take_down(port, *below)


HOLDS = {"dpc": contain, "link_disable": disable}


async def quarantined(rig: Rig, port: Address = DOWN, by: str = "dpc", why: str = "three failures in a row") -> Any:
    lease = await opened(rig, port)
    below = {DOWN: (CARD, NESTED), ROOT: (UP, DOWN, CARD, NESTED), OTHER: (OTHER_CARD,)}[port]
    await HOLDS[by](rig, lease, 1, port, *below)
    return await rig.ask(Close(token=lease.token, quarantine=(port,), why=why))


async def listed(rig: Rig, port: Address | None = None) -> LeaseList:
    reply = await rig.ask(Leases(port=port), None)
    assert isinstance(reply, LeaseList)
    return reply


async def lifted(rig: Rig, port: Address = DOWN, **more: Any) -> Any:
    return await rig.ask(request(port, cause="lift", lifts=True, **more))
