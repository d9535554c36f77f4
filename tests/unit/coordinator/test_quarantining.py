"""Ports that do not come up: reset again inside the same lease, then held down for good; whoever dies in between."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from services.coordinator._journal import blank
from shared.pcie import Address, Value
from shared.pcie import registers as reg
from shared.protocol.fabric import Operation
from shared.protocol.records import Recovery, RecoveryState, Verdict
from shared.protocol.requests import Cause, Channel, DriverCall, DriverStep, Vote
from shared.recovery import Step
from tests.unit.fabric.fabric_bench import CARD, DOWN, DPC, DPC_STATUS, LINK_CONTROL, NESTED, ROOT, SLOT_CONTROL
from tests.unit.recovery.forward_bench import (
    BRIDGE_CONTROL,
    COMMAND,
    COMMAND_VALUE,
    DISABLE,
    OUT_OF_BAND,
    SBR,
    TRIGGER,
)

from .work_bench import InVirtualTime, WorkBench

BOTH = [CARD, NESTED]
NEVER = 1e9
RESET_AGAIN = f"write {DOWN} {BRIDGE_CONTROL:#x} {SBR:#x}"
RETRIES = ("reset", "release", "verify")


def never_ready() -> WorkBench:
    """What is behind 02:00.0 does not answer after the reset of 00:01.0: only that port is in question."""
    rig = WorkBench()
    rig.bench.trigger(ROOT)
    rig.bench.ready_s = dict.fromkeys(BOTH, NEVER)
    return rig


def failures_told(rig: WorkBench) -> list[Address]:
    return [call.function for call in rig.calls if call.channel is Channel.PERM_FAILURE]


def quarantined(rig: WorkBench, port: Address) -> None:
    """Assert the end: that port is held down, its drivers know, and close was told."""
    closes = [line for line in rig.story if line.startswith("close")]
    assert closes[-1].startswith(f"close, quarantine {port}: ")
    held = rig.bench.get(port, DPC_STATUS) & TRIGGER or rig.bench.get(port, LINK_CONTROL) & DISABLE
    assert held
    assert not rig.bench.get(port, BRIDGE_CONTROL) & SBR
    since = rig.story[rig.story.index("journal quarantine") :]
    assert f"write {port} {LINK_CONTROL:#x} 0x0" not in since, "it was let up in between"
    assert not [line for line in since if line.startswith(f"write {port} {DPC_STATUS:#x}")]
    assert failures_told(rig) == BOTH
    assert rig.told(DriverStep.SLOT_RESET) == rig.told(DriverStep.RESUME) == []
    last = rig.records[-1]
    assert last.state is RecoveryState.CLOSED
    assert [last.verdicts[str(one)] for one in BOTH] == [Verdict.QUARANTINED] * 2
    assert last.verdicts[str(ROOT)] is Verdict.KEPT


def test_what_never_answers_is_reset_twice_more_and_then_put_into_quarantine(in_virtual_time: InVirtualTime) -> None:
    async def story() -> None:
        rig = never_ready()
        began = asyncio.get_running_loop().time()
        await rig.work().run()
        assert asyncio.get_running_loop().time() - began > 3 * rig.settings.ready_s + 1 + 2
        assert rig.story.count(RESET_AGAIN) == 2
        quarantined(rig, DOWN)
        assert rig.records[-1].why == "3 failures in a row"

    in_virtual_time(story())


def test_p3_a_port_that_comes_up_at_the_second_try_is_recovered_and_nobody_hears_of_the_first(
    in_virtual_time: InVirtualTime,
) -> None:
    async def story() -> None:
        rig = never_ready()
        rig.bench.at.append((rig.settings.ready_s + 0.8, rig.bench.ready_s.clear))
        await rig.work().run()
        assert rig.story.count(RESET_AGAIN) == 1
        assert "close" in rig.story
        for step in (DriverStep.ERROR_DETECTED, DriverStep.SLOT_RESET, DriverStep.RESUME):
            assert rig.told(step) == BOTH
        assert set(rig.records[-1].verdicts.values()) == {Verdict.KEPT}

    in_virtual_time(story())


def test_p3_a_link_that_fell_unseen_after_it_was_restored_is_tried_again_before_anybody_resumes(
    in_virtual_time: InVirtualTime,
) -> None:
    async def story() -> None:
        rig = WorkBench()
        rig.bench.trigger(ROOT)
        rig.bench.link_s = 0.0
        falls = [lambda: rig.bench.take_down(DOWN)]
        put = rig.put_owned

        async def fell(key: str, record: Recovery) -> int:
            if record.step == Step.VERIFY and falls:
                falls.pop()()
            return await put(key, record)

        rig.put_owned = fell  # type: ignore[method-assign,assignment]
        await rig.work().run()
        assert rig.story.count(RESET_AGAIN) == 1
        assert rig.bench.get(CARD, COMMAND) == COMMAND_VALUE
        first = rig.story.index(f"slot_reset {CARD} normal")
        assert rig.story.index(RESET_AGAIN) < first
        assert rig.told(DriverStep.SLOT_RESET) == rig.told(DriverStep.RESUME) == BOTH
        assert set(rig.records[-1].verdicts.values()) == {Verdict.KEPT}

    in_virtual_time(story())


def test_p8_a_card_that_is_pulled_between_two_tries_ends_them_at_once(in_virtual_time: InVirtualTime) -> None:
    async def story() -> None:
        rig = never_ready()
        pulled_at = rig.settings.ready_s + 0.4  # the wait for another try has begun
        rig.bench.at.append((pulled_at, lambda: rig.bench.pull(DOWN)))
        began = asyncio.get_running_loop().time()
        await rig.work().run()
        assert RESET_AGAIN not in rig.story
        assert rig.story[-2:] == ["close", "journal closed"]
        assert asyncio.get_running_loop().time() - began < pulled_at + rig.settings.link_s + 0.4

    in_virtual_time(story())


def test_a_link_that_never_trains_is_not_tried_again(in_virtual_time: InVirtualTime) -> None:
    async def story() -> None:
        rig = WorkBench()
        rig.bench.trigger(ROOT)
        rig.bench.stuck = {DOWN}
        await rig.work().run()
        assert RESET_AGAIN not in rig.story
        assert "close" in rig.story
        assert failures_told(rig) == BOTH

    in_virtual_time(story())


def test_a_sibling_that_recovered_is_resumed_and_its_port_is_not_reset_again(in_virtual_time: InVirtualTime) -> None:
    async def story() -> None:
        rig = never_ready()
        del rig.bench.ready_s[CARD]
        await rig.work().run()
        assert RESET_AGAIN not in rig.story
        assert "close" in rig.story
        assert rig.told(DriverStep.RESUME) == [CARD]
        assert failures_told(rig) == [NESTED]

    in_virtual_time(story())


@pytest.mark.parametrize(
    "steps", [*((step, 2) for step in RETRIES), ("quarantine", 1), ("slot_reset", 1), ("close", 1)]
)
def test_p2_a_successor_goes_on_with_retries_and_with_the_quarantine(
    in_virtual_time: InVirtualTime, steps: tuple[str, int]
) -> None:
    """The coordinator dies before it enters `step` for the n-th time; what is counted is in the journal."""

    async def story() -> None:
        step, times = steps
        rig = never_ready()
        left = times
        put = rig.put_owned

        async def dies(key: str, record: Recovery) -> int:
            nonlocal left
            before = rig.records[-1].step if rig.records else ""
            if record.step == step and before != step and left:
                left -= 1
                rig.stop_before = step if not left else ""
            return await put(key, record)

        rig.put_owned = dies  # type: ignore[method-assign,assignment]
        await rig.work().run()
        assert not left
        assert not [line for line in rig.story if line.startswith("close")], "the first one dies before"
        rig.stop_before = ""
        await rig.work(rig.records[-1]).run()
        quarantined(rig, DOWN)
        assert rig.told(DriverStep.ERROR_DETECTED) == [*BOTH, *BOTH], "once frozen, once as permanent failure"

    in_virtual_time(story())


def test_a_storm_is_contained_before_any_driver_is_asked_anything(in_virtual_time: InVirtualTime) -> None:
    async def story() -> None:
        rig = WorkBench(cause=Cause.AER_FATAL)
        record = msgspec.structs.replace(blank(rig.lease), quarantine=(ROOT,), why="6 recoveries within 30 s")
        await rig.work(record).run()
        quarantined(rig, ROOT)
        assert rig.bench.get(ROOT, LINK_CONTROL) & DISABLE
        assert rig.story.index("journal quarantine") == 0
        disabled = next(
            place for place, line in enumerate(rig.story) if line.startswith(f"write {ROOT} {LINK_CONTROL:#x}")
        )
        assert disabled < next(place for place, line in enumerate(rig.story) if line.startswith("error_detected"))

    in_virtual_time(story())


def test_a_port_that_is_in_reset_is_disabled_before_its_reset_ends(in_virtual_time: InVirtualTime) -> None:
    async def story() -> None:
        rig = WorkBench(cause=Cause.AER_FATAL)
        rig.bench.set(ROOT, BRIDGE_CONTROL, SBR)
        await rig.work(msgspec.structs.replace(blank(rig.lease), quarantine=(ROOT,), why="a storm")).run()
        quarantined(rig, ROOT)
        writes = [line for line in rig.story if line.startswith("write")]
        assert writes == [
            f"write {ROOT} {LINK_CONTROL:#x} {DISABLE:#x}",
            f"write {ROOT} {BRIDGE_CONTROL:#x} 0x0",
        ]

    in_virtual_time(story())


def test_a_storm_of_a_port_that_is_contained_leaves_it_contained(in_virtual_time: InVirtualTime) -> None:
    async def story() -> None:
        rig = WorkBench()
        rig.bench.trigger(ROOT)
        await rig.work(msgspec.structs.replace(blank(rig.lease), quarantine=(ROOT,), why="a storm")).run()
        quarantined(rig, ROOT)
        assert rig.bench.get(ROOT, DPC_STATUS) & TRIGGER
        assert not [line for line in rig.story if line.startswith("write")]

    in_virtual_time(story())


@pytest.mark.parametrize("contained", [True, False])
def test_p8_a_storm_of_a_card_that_is_gone_ends_in_its_removal_and_not_in_quarantine(
    in_virtual_time: InVirtualTime, contained: bool
) -> None:
    async def story() -> None:
        rig = WorkBench(cause=Cause.DPC if contained else Cause.AER_FATAL)
        rig.bench.set(ROOT, SLOT_CONTROL, rig.bench.get(ROOT, SLOT_CONTROL) | OUT_OF_BAND)
        if contained:
            rig.bench.trigger(ROOT)
        rig.bench.pull(ROOT)
        await rig.work(msgspec.structs.replace(blank(rig.lease), quarantine=(ROOT,), why="a storm")).run()
        assert rig.story[-2:] == ["close", "journal closed"]
        assert not rig.bench.get(ROOT, DPC_STATUS) & TRIGGER
        assert not rig.bench.get(ROOT, LINK_CONTROL) & DISABLE
        assert failures_told(rig) == BOTH

    in_virtual_time(story())


@pytest.mark.parametrize("contained", [True, False])
def test_p2_where_firmware_comes_first_the_link_is_disabled_for_nobody_could_release_containment_later(
    in_virtual_time: InVirtualTime, contained: bool
) -> None:
    async def story() -> None:
        rig = WorkBench(cause=Cause.EDR)
        rig.bench.topology = msgspec.structs.replace(rig.bench.topology, firmware_first=True)
        rig.bench.set(ROOT, DPC + reg.DPC_CAPABILITIES.offset, int(reg.DpcCapabilities.SOFTWARE_TRIGGERING))
        rig.bench.set(ROOT, DPC + reg.DPC_CONTROL.offset, int(reg.DpcControl.TRIGGER_ON_FATAL))
        if contained:
            rig.bench.trigger(ROOT)
        else:
            rig.bench.stick(ROOT)
        await rig.work(msgspec.structs.replace(blank(rig.lease), quarantine=(ROOT,), why="a storm")).run()
        writes = [line for line in rig.story if line.startswith("write")]
        released = [f"write {ROOT} {DPC_STATUS:#x} {TRIGGER | reg.DpcStatus.INTERRUPT:#x}"]
        assert writes == [f"write {ROOT} {LINK_CONTROL:#x} {DISABLE:#x}", *(released if contained else [])]
        assert not rig.bench.get(ROOT, DPC_STATUS) & TRIGGER
        assert rig.bench.get(ROOT, LINK_CONTROL) & DISABLE
        assert rig.records[-1].verdicts[str(CARD)] is Verdict.QUARANTINED

    in_virtual_time(story())


def test_containment_that_the_firmware_keeps_is_left_to_it_and_the_link_disabled_all_the_same(
    in_virtual_time: InVirtualTime,
) -> None:
    async def story() -> None:
        rig = WorkBench(cause=Cause.EDR)
        rig.bench.topology = msgspec.structs.replace(rig.bench.topology, firmware_first=True)
        rig.lease = msgspec.structs.replace(rig.lease, firmware_owned=True)
        rig.bench.trigger(ROOT)
        await rig.work(msgspec.structs.replace(blank(rig.lease), quarantine=(ROOT,), why="a storm")).run()
        writes = [line for line in rig.story if line.startswith("write")]
        assert writes == [f"write {ROOT} {LINK_CONTROL:#x} {DISABLE:#x}"]
        assert rig.bench.get(ROOT, DPC_STATUS) & TRIGGER

    in_virtual_time(story())


@pytest.mark.parametrize(("enabled", "holds"), [(True, "dpc"), (False, "link_disable")], ids=["on", "off"])
def test_a_port_with_dpc_is_contained_by_software_unless_its_trigger_is_off(
    in_virtual_time: InVirtualTime, enabled: bool, holds: str
) -> None:
    async def story() -> None:
        rig = WorkBench(cause=Cause.AER_FATAL)
        control = DPC + reg.DPC_CONTROL.offset
        rig.bench.set(ROOT, DPC + reg.DPC_CAPABILITIES.offset, int(reg.DpcCapabilities.SOFTWARE_TRIGGERING))
        rig.bench.set(ROOT, control, int(reg.DpcControl.TRIGGER_ON_FATAL) if enabled else 0)
        access = rig.bench._access

        def contains(operation: Operation) -> Value:
            if operation.offset == control and operation.value & reg.DpcControl.SOFTWARE_TRIGGER:
                rig.bench.trigger(ROOT)
            return access(operation)

        rig.bench._access = contains  # type: ignore[method-assign]
        await rig.work(msgspec.structs.replace(blank(rig.lease), quarantine=(ROOT,), why="a storm")).run()
        quarantined(rig, ROOT)
        contained = bool(rig.bench.get(ROOT, DPC_STATUS) & TRIGGER)
        disabled = bool(rig.bench.get(ROOT, LINK_CONTROL) & DISABLE)
        assert (contained, disabled) == (holds == "dpc", holds == "link_disable")

    in_virtual_time(story())


def test_a_port_that_came_up_before_it_was_closed_is_held_down_again(in_virtual_time: InVirtualTime) -> None:
    async def story() -> None:
        rig = WorkBench(cause=Cause.AER_FATAL)
        let_go = [lambda: rig.bench.set(ROOT, LINK_CONTROL, 0)]

        def somebody_lets_go(call: DriverCall) -> None:
            if call.channel is Channel.PERM_FAILURE and let_go:
                let_go.pop()()

        rig.before_call = somebody_lets_go
        await rig.work(msgspec.structs.replace(blank(rig.lease), quarantine=(ROOT,), why="a storm")).run()
        assert len([line for line in rig.story if line.startswith("close")]) == 2
        quarantined(rig, ROOT)

    in_virtual_time(story())


def test_p3_the_lifting_of_a_quarantine_resumes_drivers_that_are_not_told_of_an_error_again(
    in_virtual_time: InVirtualTime,
) -> None:
    async def story() -> None:
        rig = WorkBench(cause=Cause.LIFT)
        rig.bench.trigger(ROOT)
        rig.votes = {(CARD, DriverStep.SLOT_RESET): Vote.NO_HANDLER}
        await rig.work().run()
        assert rig.told(DriverStep.ERROR_DETECTED) == []
        assert rig.told(DriverStep.SLOT_RESET) == BOTH
        assert rig.told(DriverStep.UNBIND) == rig.told(DriverStep.BIND) == [CARD]
        assert rig.told(DriverStep.RESUME) == [NESTED]
        verdicts = rig.records[-1].verdicts
        assert (verdicts[str(CARD)], verdicts[str(NESTED)]) == (Verdict.REBOUND, Verdict.KEPT)
        assert Step.RESET not in [record.step for record in rig.records]

    in_virtual_time(story())
