from __future__ import annotations

import asyncio
from typing import Any

from services.coordinator._recovery import STEPS
from shared.protocol import Refused
from shared.protocol.fabric import Closed, Reach
from shared.protocol.records import RecoveryState, Verdict
from shared.protocol.requests import Cause, Channel, DriverCall, DriverStep, Vote
from shared.recovery import Step
from shared.runtime import LeaseHandle
from tests.unit.fabric.fabric_bench import CARD, DPC_STATUS, NESTED, ROOT
from tests.unit.recovery.forward_bench import BAR0, BAR_VALUE, BRIDGE_CONTROL, SBR, TRIGGER

from .work_bench import HANGS, InVirtualTime, WorkBench

BOTH = [CARD, NESTED]


def place(story: list[str], start: str) -> int:
    return next(number for number, line in enumerate(story) if line.startswith(start))


def test_containment_from_mask_to_resume(in_virtual_time: InVirtualTime) -> None:
    async def story() -> None:
        rig = WorkBench()
        rig.bench.trigger(ROOT)
        await rig.work().run()
        last = rig.records[-1]
        assert last.state is RecoveryState.CLOSED
        assert set(last.verdicts.values()) == {Verdict.KEPT}
        assert rig.bench.get(CARD, BAR0, 4) == BAR_VALUE
        assert not rig.bench.get(ROOT, DPC_STATUS) & TRIGGER
        for step in (DriverStep.ERROR_DETECTED, DriverStep.SLOT_RESET, DriverStep.RESUME):
            assert rig.told(step) == BOTH
        assert not [line for line in rig.story if line.startswith(f"write {ROOT} {BRIDGE_CONTROL:#x}")]

    in_virtual_time(story())


def test_every_step_is_journalled_before_it_begins(in_virtual_time: InVirtualTime) -> None:
    async def story() -> None:
        rig = WorkBench()
        rig.bench.trigger(ROOT)
        await rig.work().run()
        told = rig.story
        steps = [line.removeprefix("journal ") for line in told if line.startswith("journal ")]
        assert steps == [step for step in STEPS if step not in {Step.OPENED, Step.MMIO_ENABLED, Step.QUARANTINE}]
        assert place(told, "journal error_detected") < place(told, "error_detected")
        assert place(told, "journal release") < place(told, f"write {ROOT}")
        assert place(told, "journal restore") < place(told, "write 0000:01:00.0")
        assert place(told, "journal verify") < place(told, "journal slot_reset") < place(told, "slot_reset")
        assert place(told, "journal close") < place(told, "close") < place(told, "journal closed")

    in_virtual_time(story())


def test_a_fatal_error_is_reset_by_the_bus(in_virtual_time: InVirtualTime) -> None:
    async def story() -> None:
        rig = WorkBench(cause=Cause.AER_FATAL)
        await rig.work().run()
        assert f"write {ROOT} {BRIDGE_CONTROL:#x} {SBR:#x}" in rig.story
        assert f"write {ROOT} {BRIDGE_CONTROL:#x} 0x0" in rig.story
        assert rig.told(DriverStep.SLOT_RESET) == BOTH
        assert set(rig.records[-1].verdicts.values()) == {Verdict.KEPT}

    in_virtual_time(story())


def test_p8_a_card_that_is_gone_is_not_reset_and_its_driver_hears_so(in_virtual_time: InVirtualTime) -> None:
    async def story() -> None:
        rig = WorkBench(cause=Cause.AER_FATAL)
        rig.bench.pull(ROOT)
        await rig.work().run()
        assert not [line for line in rig.story if line.startswith(f"write {ROOT} {BRIDGE_CONTROL:#x}")]
        assert rig.told(DriverStep.SLOT_RESET) == rig.told(DriverStep.RESUME) == []
        failures = [call.function for call in rig.calls if call.channel is Channel.PERM_FAILURE]
        assert failures == BOTH

    in_virtual_time(story())


def test_a_nonfatal_error_that_drivers_handle_resets_nothing(in_virtual_time: InVirtualTime) -> None:
    async def story() -> None:
        rig = WorkBench(cause=Cause.AER_NONFATAL, reach=Reach.CALLBACKS)
        rig.votes = {(card, DriverStep.ERROR_DETECTED): Vote.CAN_RECOVER for card in BOTH}
        await rig.work().run()
        assert rig.told(DriverStep.MMIO_ENABLED) == rig.told(DriverStep.RESUME) == BOTH
        assert rig.told(DriverStep.SLOT_RESET) == []
        assert not [line for line in rig.story if line.startswith(("write", "open"))]

    in_virtual_time(story())


def test_one_need_reset_escalates_and_then_everybody_hears_slot_reset(in_virtual_time: InVirtualTime) -> None:
    async def story() -> None:
        rig = WorkBench(cause=Cause.AER_NONFATAL, reach=Reach.CALLBACKS)
        rig.votes = {(CARD, DriverStep.ERROR_DETECTED): Vote.CAN_RECOVER}
        await rig.work().run()
        assert place(rig.story, "open reset") < place(rig.story, f"write {ROOT} {BRIDGE_CONTROL:#x}")
        assert rig.told(DriverStep.SLOT_RESET) == BOTH
        assert rig.records[-1].reach is Reach.RESET

    in_virtual_time(story())


def test_a_second_cause_that_joins_in_time_escalates(in_virtual_time: InVirtualTime) -> None:
    async def story() -> None:
        rig = WorkBench(cause=Cause.AER_NONFATAL, reach=Reach.CALLBACKS)
        rig.votes = {(card, DriverStep.ERROR_DETECTED): Vote.RECOVERED for card in BOTH}
        work = rig.work()

        def joins(call: DriverCall) -> None:
            if call.function == NESTED and call.step is DriverStep.ERROR_DETECTED:
                assert work.running.joinable
                work.join(Cause.AER_FATAL, (CARD,), {})
            if call.step is DriverStep.SLOT_RESET:
                assert not work.running.joinable

        rig.before_call = joins
        await work.run()
        assert rig.told(DriverStep.SLOT_RESET) == BOTH
        assert "recovery.escalated" in [what for what, _ in rig.said]

    in_virtual_time(story())


def test_p3_a_driver_without_callbacks_is_rebound_and_its_sibling_is_not(in_virtual_time: InVirtualTime) -> None:
    async def story() -> None:
        rig = WorkBench()
        rig.bench.trigger(ROOT)
        rig.votes = {(CARD, DriverStep.ERROR_DETECTED): Vote.NO_HANDLER}
        await rig.work().run()
        assert rig.told(DriverStep.UNBIND) == rig.told(DriverStep.BIND) == [CARD]
        assert rig.told(DriverStep.SLOT_RESET) == rig.told(DriverStep.RESUME) == [NESTED]
        verdicts = rig.records[-1].verdicts
        assert (verdicts[str(CARD)], verdicts[str(NESTED)]) == (Verdict.REBOUND, Verdict.KEPT)

    in_virtual_time(story())


def test_a_driver_that_hangs_costs_time_and_nothing_else(in_virtual_time: InVirtualTime) -> None:
    async def story() -> None:
        rig = WorkBench()
        rig.bench.trigger(ROOT)
        rig.votes = {(CARD, DriverStep.ERROR_DETECTED): HANGS}
        await rig.work().run()
        verdicts = rig.records[-1].verdicts
        assert (verdicts[str(CARD)], verdicts[str(NESTED)]) == (Verdict.FAILED, Verdict.KEPT)
        assert rig.told(DriverStep.SLOT_RESET) == [NESTED]
        waited = [data for what, data in rig.said if what == "recovery.progress" and "waiting" in data]
        assert len(waited) >= 9

    in_virtual_time(story())


def test_p4_no_driver_resumes_on_another_device(in_virtual_time: InVirtualTime) -> None:
    async def story() -> None:
        rig = WorkBench()
        rig.bench.trigger(ROOT)
        rig.bench.swap(CARD, serial=0x99)
        await rig.work().run()
        assert rig.told(DriverStep.SLOT_RESET) == rig.told(DriverStep.RESUME) == [NESTED]
        assert [call.function for call in rig.calls if call.channel is Channel.PERM_FAILURE] == [CARD]

    in_virtual_time(story())


def test_p2_a_successor_finishes_from_every_step_and_tells_nobody_twice(in_virtual_time: InVirtualTime) -> None:
    async def story() -> None:
        never = {Step.OPENED, Step.MMIO_ENABLED, Step.QUARANTINE, Step.CLOSED}
        for step in [step for step in STEPS if step not in never]:
            rig = WorkBench()
            rig.bench.trigger(ROOT)
            rig.stop_before = step
            await rig.work().run()
            assert "close" not in rig.story, "the first one dies before"
            record = rig.records[-1] if rig.records else None
            rig.stop_before = ""
            await rig.work(record).run()
            assert rig.records[-1].state is RecoveryState.CLOSED, step
            assert set(rig.records[-1].verdicts.values()) == {Verdict.KEPT}, step
            for told in (DriverStep.ERROR_DETECTED, DriverStep.SLOT_RESET, DriverStep.RESUME):
                assert rig.told(told) == BOTH, f"{told} after dying before {step}"

    in_virtual_time(story())


def test_p7_a_deposed_holder_stops_at_once(in_virtual_time: InVirtualTime) -> None:
    async def story() -> None:
        rig = WorkBench()
        rig.bench.trigger(ROOT)
        rig.votes = {(CARD, DriverStep.ERROR_DETECTED): HANGS}

        def absorb(call: DriverCall) -> None:
            rig.fenced = call.function == CARD

        rig.before_call = absorb
        work = rig.work()
        await work.run()
        assert not work.finished
        assert rig.records[-1].state is RecoveryState.OPEN
        assert not [line for line in rig.story if line.startswith(("write", "close"))]

    in_virtual_time(story())


def test_p10_a_beat_that_the_close_overtook_does_not_keep_the_end_from_being_told(
    in_virtual_time: InVirtualTime,
) -> None:
    """The fabric has retired the lease, so it refuses the beat; the answer to the close is still on its way."""

    async def story() -> None:
        rig = WorkBench()
        rig.bench.trigger(ROOT)
        close = rig.close

        async def close_and_answer_late(handle: LeaseHandle, *_: Any) -> Closed | Refused:
            closed = await close(handle)
            rig.fenced = True
            await handle.lost.wait()
            await asyncio.sleep(1)
            return closed

        rig.close = close_and_answer_late  # type: ignore[method-assign,assignment]
        work = rig.work()
        await work.run()
        assert work.finished
        assert rig.records[-1].state is RecoveryState.CLOSED

    in_virtual_time(story())
