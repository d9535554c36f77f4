"""A whole coordinator's works on the bench of one lease: what is begun, broken, taken over and given up there."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import msgspec

from services.coordinator import _takeover
from services.coordinator._breaking import break_lease
from services.coordinator._holds import HoldWork
from services.coordinator._journal import Journal, blank
from services.coordinator._plan import Chosen
from services.coordinator._port import Port
from services.coordinator._resetting import ResetWork
from services.coordinator._works import Works
from shared.protocol import Refused, encode
from shared.protocol.fabric import LeaseList, Rank
from shared.protocol.requests import Accepted, Break, Cause, ResetMethod
from shared.runtime import Entry, LeaseHandle
from tests.unit.fabric.fabric_bench import CARD, NESTED, ROOT
from tests.unit.recovery.forward_bench import BRIDGE_CONTROL, SBR

from .work_bench import WorkBench


class Ward(WorkBench):
    """A bench with a whole coordinator's works on it: its fabric lists the one lease, and lets it be adopted."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.ownership = SimpleNamespace(held=True, tenure="t")
        self.listed = True
        self.adopted = 0
        self.kept: tuple[Entry, ...] = ()  # the journals of all ports
        self.works = Works(self, self, self.bench.topology)  # type: ignore[arg-type]
        self.port = Port(ROOT, self.works, lambda: None)

    async def leases(self) -> LeaseList:
        return LeaseList(leases=(self.lease,) if self.listed else ())

    async def adopt(self, lease_id: str) -> LeaseHandle:
        assert lease_id == self.lease.id
        self.adopted += 1
        self.story.append("adopt")
        self.lease = msgspec.structs.replace(self.lease, token=self.lease.token + 1)
        return LeaseHandle(self.lease)

    async def get(self, _key: str) -> Entry | None:
        if not self.records:
            return None
        return Entry("recovery", encode(self.records[-1]), 1)

    async def keys(self, _prefix: str) -> tuple[Entry, ...]:
        return self.kept

    async def breaks(self) -> Accepted | Refused:
        reply = await break_lease(self.port, Break(lease=self.lease.id, by="ann"))
        assert isinstance(reply, Accepted | Refused)
        return reply

    async def ends(self) -> None:
        """Wait until nothing is under way."""
        for _, task in tuple(self.works._running.values()):
            await asyncio.wait({task})

    def says(self, what: str) -> list[dict[str, Any]]:
        return [data for said, data in self.said if said == what]


async def adopt(rig: Ward) -> None:
    """Do as the survey does when a lease has fallen silent."""
    await _takeover.adopt(rig.works, rig.lease, lambda: None)
    await rig.ends()


def hold_work(rig: Ward) -> HoldWork:
    journal = Journal(rig, blank(rig.lease))  # type: ignore[arg-type]
    return HoldWork(rig, rig, rig.bench.topology, LeaseHandle(rig.lease), journal)  # type: ignore[arg-type]


def reset_work(rig: Ward, **fields: Any) -> ResetWork:
    chosen = Chosen(ResetMethod.BUS, ROOT, tuple(rig.bench.topology.get(one) for one in (CARD, NESTED)))
    record = msgspec.structs.replace(blank(rig.lease), rank=Rank.USER, cause=Cause.USER_RESET, **fields)
    journal = Journal(rig, record)  # type: ignore[arg-type]
    return ResetWork(rig, rig, rig.bench.topology, LeaseHandle(rig.lease), journal, chosen)  # type: ignore[arg-type]


def sets_reset(rig: Ward) -> bool:
    return any(line.endswith(f"{BRIDGE_CONTROL:#x} {SBR:#x}") for line in rig.story)
