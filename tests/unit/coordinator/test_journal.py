"""The journal over a bus that is without its leader for a while."""

from __future__ import annotations

import asyncio

import pytest

from shared.protocol.records import RecoveryState
from shared.recovery import Step
from shared.runtime import WrongRevision
from tests.unit.coordinator.work_bench import InVirtualTime, WorkBench


def test_p2_a_recovery_whose_journal_is_not_answered_goes_on_when_it_is(in_virtual_time: InVirtualTime) -> None:
    async def story() -> None:
        rig = WorkBench()
        rig.loses_writes = 20
        await rig.work().run()
        assert not rig.loses_writes
        assert rig.records[-1].state is RecoveryState.CLOSED
        assert rig.records[0].step != Step.CLOSED

    in_virtual_time(story())


def test_p2_no_step_begins_before_it_is_written(in_virtual_time: InVirtualTime) -> None:
    async def story() -> None:
        rig = WorkBench()
        rig.before_call = lambda call: None if rig.records else pytest.fail(f"{call.step} before its journal")
        rig.loses_writes = 3
        await rig.work().run()

    in_virtual_time(story())


def test_p7_a_journal_is_not_tried_again_by_one_who_was_deposed(in_virtual_time: InVirtualTime) -> None:
    async def story() -> None:
        rig = WorkBench()
        work = rig.work()
        rig.stop_before = Step.OPENED
        with pytest.raises(WrongRevision):
            await work.journal.save()
        assert not rig.records

    in_virtual_time(story())


def test_p7_a_write_that_is_tried_again_does_not_undo_a_later_one(in_virtual_time: InVirtualTime) -> None:
    async def story() -> None:
        rig = WorkBench()
        journal = rig.work().journal
        rig.loses_writes = 1
        first = asyncio.create_task(journal.save())
        await asyncio.sleep(0.1)
        await journal.enter(Step.RESET)
        await first
        assert rig.records[-1].step == Step.RESET

    in_virtual_time(story())
