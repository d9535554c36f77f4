"""Interrupts are edges: one when a level rises, none until it has fallen."""

from __future__ import annotations

import asyncio
import itertools

from services.machine._interrupts import aer_level, dpc_level, hotplug_level
from shared.pcie import registers as r
from shared.protocol.requests import Injection
from tests.unit.machine.machine_bench import PORT, Bench, on_bench

SLOT_EVENTS = r.SlotStatus.LINK_STATE_CHANGED | r.SlotStatus.PRESENCE_CHANGED


@on_bench()
async def test_more_events_raise_nothing_until_all_are_cleared(bench: Bench) -> None:
    bench.turn(PORT, r.LINK_CONTROL, r.LinkControl.LINK_DISABLE, on=True)
    assert bench.vectors() == [0]
    bench.turn(PORT, r.LINK_CONTROL, r.LinkControl.LINK_DISABLE, on=False)
    await asyncio.sleep(1.0)
    assert bench.vectors() == []
    bench.put(PORT, r.SLOT_STATUS, r.SlotStatus.LINK_STATE_CHANGED)
    assert bench.vectors() == []
    bench.put(PORT, r.SLOT_STATUS, r.SlotStatus.PRESENCE_CHANGED)
    bench.turn(PORT, r.LINK_CONTROL, r.LinkControl.LINK_DISABLE, on=True)
    assert bench.vectors() == [0]


@on_bench()
async def test_p2_a_masked_event_latches_and_fires_when_its_enable_is_restored(bench: Bench) -> None:
    bench.turn(PORT, r.SLOT_CONTROL, r.SLOT_MASKED, on=False)
    bench.turn(PORT, r.LINK_CONTROL, r.LinkControl.LINK_DISABLE, on=True)
    assert bench.vectors() == []
    assert bench.slot_status() == SLOT_EVENTS
    bench.turn(PORT, r.SLOT_CONTROL, r.SLOT_MASKED, on=True)
    assert bench.vectors() == [0]


@on_bench()
async def test_p2_an_enable_over_a_drained_status_fires_nothing(bench: Bench) -> None:
    bench.turn(PORT, r.SLOT_CONTROL, r.SLOT_MASKED, on=False)
    bench.turn(PORT, r.LINK_CONTROL, r.LinkControl.LINK_DISABLE, on=True)
    bench.put(PORT, r.SLOT_STATUS, SLOT_EVENTS)
    bench.turn(PORT, r.SLOT_CONTROL, r.SLOT_MASKED, on=True)
    assert bench.vectors() == []


@on_bench()
async def test_an_interrupt_may_be_late_and_a_foreign_one_may_come(bench: Bench) -> None:
    bench.inject(Injection.INTERRUPT_DELAY, PORT, service="dpc", for_s=0.5)
    bench.inject(Injection.DPC, PORT, reason="uncorrectable")
    assert bench.vectors() == [0]
    await asyncio.sleep(0.6)
    assert bench.vectors() == [2]
    bench.inject(Injection.INTERRUPT, PORT, service="aer")
    assert bench.vectors() == [1]


def test_the_hotplug_level_needs_the_interrupt_enable_and_the_events_own() -> None:
    pairs = (
        (r.SlotControl.ATTENTION_BUTTON_ENABLE, r.SlotStatus.ATTENTION_BUTTON_PRESSED),
        (r.SlotControl.POWER_FAULT_ENABLE, r.SlotStatus.POWER_FAULT_DETECTED),
        (r.SlotControl.MRL_CHANGED_ENABLE, r.SlotStatus.MRL_CHANGED),
        (r.SlotControl.PRESENCE_CHANGED_ENABLE, r.SlotStatus.PRESENCE_CHANGED),
        (r.SlotControl.COMMAND_COMPLETED_ENABLE, r.SlotStatus.COMMAND_COMPLETED),
        (r.SlotControl.LINK_STATE_CHANGED_ENABLE, r.SlotStatus.LINK_STATE_CHANGED),
    )
    for (enable, _), (_, status) in itertools.product(pairs, pairs):
        matches = (enable, status) in pairs
        assert hotplug_level(enable | r.SlotControl.HOTPLUG_INTERRUPT_ENABLE, status) is matches
        assert not hotplug_level(enable, status)
    assert not hotplug_level(0xFFFF, r.SlotStatus.PRESENCE | r.SlotStatus.MRL_OPEN)


def test_the_other_levels_need_status_and_enable() -> None:
    assert aer_level(r.RootErrorCommand.FATAL_ENABLE, r.RootErrorStatus.FATAL_RECEIVED)
    assert not aer_level(r.RootErrorCommand.NONFATAL_ENABLE, r.RootErrorStatus.FATAL_RECEIVED)
    assert dpc_level(r.DpcControl.INTERRUPT_ENABLE, r.DpcStatus.INTERRUPT)
    assert not dpc_level(r.DpcControl.INTERRUPT_ENABLE, r.DpcStatus.TRIGGER)
    assert not dpc_level(0, r.DpcStatus.INTERRUPT)
