from __future__ import annotations

import asyncio

from services.coordinator._holds import HELD, HoldWork
from services.coordinator._journal import Journal, blank
from shared.protocol.records import RecoveryState, Verdict
from shared.protocol.requests import Cause
from shared.runtime import LeaseHandle
from tests.unit.fabric.fabric_bench import CARD, ROOT
from tests.unit.recovery.forward_bench import BAR0, BAR_VALUE

from .work_bench import InVirtualTime, WorkBench


def hold(rig: WorkBench) -> HoldWork:
    journal = Journal(rig, blank(rig.lease))  # type: ignore[arg-type]
    return HoldWork(rig, rig, rig.bench.topology, LeaseHandle(rig.lease), journal)  # type: ignore[arg-type]


def test_a_hold_lasts_while_its_user_speaks_and_ends_when_he_is_silent(in_virtual_time: InVirtualTime) -> None:
    async def story() -> None:
        rig = WorkBench(cause=Cause.HOLD)
        work = hold(rig)
        running = asyncio.create_task(work.run())
        for _ in range(10):
            await asyncio.sleep(rig.lease.allowed_s * 0.9)
            work.renew()
        held_on = work.open
        assert held_on
        assert rig.records[-1].step == HELD
        await asyncio.sleep(rig.lease.allowed_s * 1.1)
        assert not work.open
        await running
        assert rig.records[-1].state is RecoveryState.CLOSED

    in_virtual_time(story())


def test_p2_whatever_the_program_left_is_rolled_forward(in_virtual_time: InVirtualTime) -> None:
    async def story() -> None:
        rig = WorkBench(cause=Cause.HOLD)
        work = hold(rig)
        running = asyncio.create_task(work.run())
        await asyncio.sleep(1.0)
        rig.bench.trigger(ROOT)
        work.release()
        await running
        assert rig.bench.get(CARD, BAR0, 4) == BAR_VALUE
        assert set(rig.records[-1].verdicts.values()) == {Verdict.KEPT}
        assert rig.story[-2:] == ["close", "journal closed"]

    in_virtual_time(story())
