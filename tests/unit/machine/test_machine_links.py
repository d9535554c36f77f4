"""Links: what takes them down, what that resets, when they are back, what latches."""

from __future__ import annotations

import asyncio

import pytest

from shared.pcie import registers as r
from shared.protocol.requests import Injection
from tests.unit.machine.machine_bench import (
    CARD,
    DISK,
    LONG_S,
    NESTED,
    PORT,
    READY_S,
    SWITCH,
    TRAINING_S,
    UPPER,
    Bench,
    on_bench,
)

SBR = r.BridgeControl.SECONDARY_BUS_RESET


@on_bench()
async def test_firmware_leaves_links_up_and_nothing_latched(bench: Bench) -> None:
    for port in (PORT, NESTED):
        assert bench.link_active(port)
        assert bench.slot_status(port) == r.SlotStatus.PRESENCE
    assert bench.raised == []
    assert bench.get(DISK, r.BAR[0]) >= 0x8000_0000


@on_bench()
async def test_a_secondary_bus_reset_takes_the_link_down_and_latches_without_surprise(bench: Bench) -> None:
    bench.turn(PORT, r.BRIDGE_CONTROL, SBR, on=True)

    assert not bench.link_active()
    assert not bench.answers(DISK)
    assert r.SlotStatus.LINK_STATE_CHANGED in bench.slot_status()
    assert r.SlotStatus.PRESENCE not in bench.slot_status()
    assert bench.get(PORT, r.UNCORRECTABLE_STATUS) == 0
    await asyncio.sleep(LONG_S)
    assert not bench.link_active()


@on_bench()
async def test_the_link_trains_for_its_time_and_the_card_answers_later_still(bench: Bench) -> None:
    bench.turn(PORT, r.BRIDGE_CONTROL, SBR, on=True)
    bench.turn(PORT, r.BRIDGE_CONTROL, SBR, on=False)

    assert bench.get(PORT, r.LINK_STATUS) & r.LinkStatus.LINK_TRAINING
    await asyncio.sleep(TRAINING_S + 0.001)
    assert bench.link_active()
    assert bench.machine.read(DISK, 0, 4) == b"\x01\x00\xff\xff"
    assert bench.machine.read(DISK, 4, 2) == b"\xff\xff"
    await asyncio.sleep(READY_S)
    assert bench.answers(DISK)


@on_bench()
async def test_a_hot_reset_takes_what_is_not_sticky(bench: Bench) -> None:
    bench.put(DISK, r.UNCORRECTABLE_MASK, r.Uncorrectable.ECRC)
    bench.turn(PORT, r.BRIDGE_CONTROL, SBR, on=True)
    bench.turn(PORT, r.BRIDGE_CONTROL, SBR, on=False)
    await asyncio.sleep(LONG_S)

    assert bench.get(DISK, r.COMMAND) == 0
    assert bench.get(DISK, r.BAR[0]) == 0
    assert bench.get(DISK, r.UNCORRECTABLE_MASK) == r.Uncorrectable.ECRC


@on_bench()
async def test_link_disable_keeps_the_link_down_until_it_is_cleared(bench: Bench) -> None:
    bench.turn(PORT, r.LINK_CONTROL, r.LinkControl.LINK_DISABLE, on=True)
    await asyncio.sleep(LONG_S)
    assert not bench.link_active()
    assert bench.get(PORT, r.UNCORRECTABLE_STATUS) == 0

    bench.turn(PORT, r.LINK_CONTROL, r.LinkControl.LINK_DISABLE, on=False)
    await asyncio.sleep(LONG_S)
    assert bench.answers(DISK)


@on_bench()
async def test_after_a_reset_of_the_switch_its_bus_numbers_are_zero_and_what_is_below_is_lost(bench: Bench) -> None:
    assert bench.answers(CARD)
    bench.turn(UPPER, r.BRIDGE_CONTROL, SBR, on=True)
    bench.turn(UPPER, r.BRIDGE_CONTROL, SBR, on=False)
    await asyncio.sleep(LONG_S)

    assert bench.answers(SWITCH)
    assert bench.get(SWITCH, r.SECONDARY_BUS) == 0
    assert not bench.answers(NESTED)
    bench.put(SWITCH, r.SECONDARY_BUS, 3)
    bench.put(SWITCH, r.SUBORDINATE_BUS, 4)
    assert bench.answers(NESTED)
    assert not bench.answers(CARD)
    bench.put(NESTED, r.SECONDARY_BUS, 4)
    bench.put(NESTED, r.SUBORDINATE_BUS, 4)
    assert bench.answers(CARD)


@on_bench()
async def test_a_nested_port_is_reset_with_its_switch_and_its_link_trains_after_the_upper_one(bench: Bench) -> None:
    bench.turn(UPPER, r.BRIDGE_CONTROL, SBR, on=True)
    bench.turn(UPPER, r.BRIDGE_CONTROL, SBR, on=False)
    bench.raised.clear()
    await asyncio.sleep(LONG_S)
    bench.put(SWITCH, r.SECONDARY_BUS, 3)
    bench.put(SWITCH, r.SUBORDINATE_BUS, 4)

    assert bench.link_active(NESTED)
    assert bench.get(NESTED, r.SLOT_CONTROL) & r.SLOT_MASKED == 0
    assert r.SlotStatus.LINK_STATE_CHANGED in bench.slot_status(NESTED)
    assert bench.vectors(NESTED) == []


@on_bench()
async def test_a_reset_inside_the_switch_resets_its_downstream_ports(bench: Bench) -> None:
    bench.turn(SWITCH, r.BRIDGE_CONTROL, SBR, on=True)
    assert not bench.answers(NESTED)
    await asyncio.sleep(LONG_S)
    bench.turn(SWITCH, r.BRIDGE_CONTROL, SBR, on=False)

    assert not bench.link_active(NESTED)
    assert bench.get(NESTED, r.SECONDARY_BUS) == 0
    assert bench.link_active(UPPER)


@on_bench(dpc=False)
async def test_an_unexpected_loss_is_a_surprise_down(bench: Bench) -> None:
    bench.inject(Injection.LINK_DOWN, PORT)

    assert bench.get(PORT, r.UNCORRECTABLE_STATUS) == r.Uncorrectable.SURPRISE_DOWN
    assert bench.get(PORT, r.ROOT_ERROR_STATUS) & r.RootErrorStatus.FATAL_RECEIVED
    assert r.SlotStatus.PRESENCE in bench.slot_status()
    bench.inject(Injection.LINK_UP, PORT)
    await asyncio.sleep(LONG_S)
    assert bench.answers(DISK)


@on_bench(dpc=False)
async def test_p1_a_masked_surprise_down_is_logged_and_not_reported(bench: Bench) -> None:
    bench.put(PORT, r.UNCORRECTABLE_MASK, r.Uncorrectable.SURPRISE_DOWN)
    bench.inject(Injection.LINK_FLAP, PORT)

    assert bench.get(PORT, r.UNCORRECTABLE_STATUS) == r.Uncorrectable.SURPRISE_DOWN
    assert bench.get(PORT, r.ROOT_ERROR_STATUS) & 0x7F == 0


@on_bench(dpc=False)
async def test_a_flap_comes_back_by_itself(bench: Bench) -> None:
    bench.inject(Injection.LINK_FLAP, PORT, for_s=0.1)
    await asyncio.sleep(0.09)
    assert not bench.link_active()
    await asyncio.sleep(LONG_S)
    assert bench.link_active()


@on_bench(dpc=False)
async def test_a_stuck_training_ends_after_its_time_or_with_link_up(bench: Bench) -> None:
    bench.inject(Injection.STUCK_TRAINING, PORT, for_s=5.0)
    bench.inject(Injection.LINK_FLAP, PORT, for_s=0.01)
    await asyncio.sleep(4.0)
    assert not bench.link_active()
    await asyncio.sleep(2.0)
    assert bench.link_active()

    bench.inject(Injection.STUCK_TRAINING, PORT)
    bench.inject(Injection.LINK_FLAP, PORT, for_s=0.01)
    await asyncio.sleep(100.0)
    assert not bench.link_active()
    bench.inject(Injection.LINK_UP, PORT)
    await asyncio.sleep(LONG_S)
    assert bench.link_active()


@on_bench(dpc=False)
async def test_a_degraded_link_shows_on_both_ends_until_it_is_whole_and_retrained(bench: Bench) -> None:
    bench.inject(Injection.DEGRADED_LINK, PORT, speed=1, width=2)
    bench.inject(Injection.LINK_FLAP, PORT)
    await asyncio.sleep(LONG_S)
    for function in (PORT, DISK):
        assert bench.get(function, r.LINK_STATUS) & (r.LINK_SPEED | r.LINK_WIDTH) == 1 | 2 << 4

    bench.inject(Injection.DEGRADED_LINK, PORT)
    bench.turn(PORT, r.LINK_CONTROL, r.LinkControl.RETRAIN_LINK, on=True)
    assert bench.link_active()
    await asyncio.sleep(LONG_S)
    assert bench.get(PORT, r.LINK_STATUS) & (r.LINK_SPEED | r.LINK_WIDTH) == 3 | 4 << 4


@on_bench(dpc=False)
async def test_a_slow_card_answers_only_so_long_after_its_link_is_up(bench: Bench) -> None:
    bench.inject(Injection.SLOW_READY, PORT, for_s=6.0)
    bench.inject(Injection.LINK_FLAP, PORT, for_s=0.01)
    await asyncio.sleep(5.9)
    assert bench.link_active()
    assert not bench.answers(DISK)
    await asyncio.sleep(0.2)
    assert bench.answers(DISK)


@on_bench()
async def test_a_function_level_reset_leaves_the_link_alone(bench: Bench) -> None:
    bench.turn(DISK, r.DEVICE_CONTROL, r.DeviceControl.INITIATE_FLR, on=True)

    assert bench.link_active()
    assert not bench.answers(DISK)
    await asyncio.sleep(LONG_S)
    assert bench.get(DISK, r.COMMAND) == 0
    assert bench.get(DISK, r.DEVICE_CONTROL) & r.DeviceControl.INITIATE_FLR == 0
    assert bench.raised == []


@on_bench()
async def test_leaving_d3hot_resets_a_function_without_no_soft_reset(bench: Bench) -> None:
    bench.put(DISK, r.PM_CONTROL, 3)
    assert bench.get(DISK, r.COMMAND)
    bench.put(DISK, r.PM_CONTROL, 0)
    await asyncio.sleep(LONG_S)
    assert bench.get(DISK, r.COMMAND) == 0


@pytest.mark.parametrize("offset", [-1, 4096, 4093])
def test_an_access_outside_the_config_space_is_refused(offset: int) -> None:
    @on_bench()
    async def scenario(bench: Bench) -> None:
        with pytest.raises(ValueError, match="config space"):
            bench.machine.read(DISK, offset, 4)

    scenario()


@on_bench()
async def test_a_card_that_is_waited_for_answers_as_soon_as_it_is_told_to_be_quick(bench: Bench) -> None:
    bench.inject(Injection.SLOW_READY, PORT, for_s=1000.0)
    assert bench.answers(DISK)  # it is ready already
    for on in (True, False):
        bench.turn(PORT, r.BRIDGE_CONTROL, SBR, on=on)
    await asyncio.sleep(LONG_S)
    assert bench.link_active()
    assert not bench.answers(DISK)
    bench.inject(Injection.SLOW_READY, PORT)
    assert bench.answers(DISK)
