"""Slots: presence, cards that come and go, button, latch, power, commands."""

from __future__ import annotations

import asyncio

import pytest

from services.machine import MachineError
from shared.pcie import describe
from shared.pcie import registers as r
from shared.protocol.requests import Injection
from tests.unit.machine.machine_bench import DISK, LONG_S, NESTED, PORT, UPPER, Bench, on_bench

S = r.SlotStatus
BOTH = S.PRESENCE_CHANGED | S.LINK_STATE_CHANGED


@on_bench(dpc=False)
async def test_p4_a_pulled_card_latches_presence_and_link_and_is_gone(bench: Bench) -> None:
    bench.inject(Injection.REMOVE, PORT)

    assert bench.slot_status() == BOTH
    assert bench.machine.read(DISK, 0, 4096) == b"\xff" * 4096
    assert bench.get(PORT, r.UNCORRECTABLE_STATUS) == r.Uncorrectable.SURPRISE_DOWN
    assert bench.vectors()[0] == 0


@on_bench(dpc=False)
async def test_a_card_comes_back_as_from_power_on_its_sticky_bits_too(bench: Bench) -> None:
    bench.put(DISK, r.UNCORRECTABLE_MASK, r.Uncorrectable.ECRC)
    bench.inject(Injection.REMOVE, PORT)
    bench.inject(Injection.INSERT, PORT)
    await asyncio.sleep(LONG_S)

    assert bench.answers(DISK)
    assert bench.get(DISK, r.COMMAND) == 0
    assert bench.get(DISK, r.BAR[0]) == 0
    assert bench.get(DISK, r.UNCORRECTABLE_MASK) == 0


@on_bench(dpc=False)
async def test_p4_a_swap_latches_once_and_shows_another_serial_number(bench: Bench) -> None:
    bench.inject(Injection.SWAP, PORT, card={"0": {"serial": 7}})

    assert bench.slot_status() == BOTH | S.PRESENCE
    assert bench.vectors().count(0) == 1
    await asyncio.sleep(LONG_S)
    function = describe(DISK, bench.machine.read(DISK, 0, 4096), PORT)
    assert function is not None
    assert function.identity.serial == 7
    assert function.identity.vendor == 0x144D


@on_bench(dpc=False)
async def test_a_card_may_bring_more_functions_than_the_last(bench: Bench) -> None:
    bench.inject(Injection.SWAP, PORT, card={"1": {"vendor": 0x1234, "device": 1}})
    await asyncio.sleep(LONG_S)
    assert len([address for address in bench.machine.enumerate() if address.bus == 1]) == 2


@on_bench(slot="out_of_band_presence = true")
async def test_out_of_band_presence_stays_while_the_link_is_reset(bench: Bench) -> None:
    bench.turn(PORT, r.BRIDGE_CONTROL, r.BridgeControl.SECONDARY_BUS_RESET, on=True)
    assert bench.slot_status() == S.LINK_STATE_CHANGED | S.PRESENCE


@on_bench(slot="presence_s = 0.2")
async def test_presence_may_be_belated(bench: Bench) -> None:
    bench.turn(PORT, r.LINK_CONTROL, r.LinkControl.LINK_DISABLE, on=True)
    assert bench.slot_status() == S.LINK_STATE_CHANGED | S.PRESENCE
    bench.put(PORT, r.SLOT_STATUS, S.LINK_STATE_CHANGED)
    await asyncio.sleep(0.3)
    assert bench.slot_status() == S.PRESENCE_CHANGED


@on_bench(slot="power_controller = true, command_completed = true")
async def test_power_off_takes_the_card_down_without_surprise_and_power_on_brings_it_back_fresh(bench: Bench) -> None:
    bench.put(DISK, r.UNCORRECTABLE_MASK, r.Uncorrectable.ECRC)
    bench.turn(PORT, r.SLOT_CONTROL, r.SlotControl.POWER_OFF, on=True)
    assert not bench.link_active()
    assert bench.get(PORT, r.UNCORRECTABLE_STATUS) == 0
    assert S.COMMAND_COMPLETED not in bench.slot_status()
    await asyncio.sleep(0.01)
    assert S.COMMAND_COMPLETED in bench.slot_status()

    bench.turn(PORT, r.SLOT_CONTROL, r.SlotControl.POWER_OFF, on=False)
    await asyncio.sleep(LONG_S)
    assert bench.answers(DISK)
    assert bench.get(DISK, r.UNCORRECTABLE_MASK) == 0


@on_bench()
async def test_a_slot_without_command_completed_never_says_it(bench: Bench) -> None:
    bench.turn(PORT, r.SLOT_CONTROL, r.SlotControl.ATTENTION_BUTTON_ENABLE, on=True)
    await asyncio.sleep(LONG_S)
    assert S.COMMAND_COMPLETED not in bench.slot_status()


@on_bench(slot="button = true, mrl = true, power_controller = true")
async def test_button_latch_and_power_fault_latch(bench: Bench) -> None:
    bench.inject(Injection.BUTTON, PORT)
    assert bench.slot_status() == S.PRESENCE | S.ATTENTION_BUTTON_PRESSED
    bench.inject(Injection.MRL, PORT, state=True)
    assert S.MRL_OPEN | S.MRL_CHANGED in bench.slot_status()
    bench.inject(Injection.POWER_FAULT, PORT)
    assert S.POWER_FAULT_DETECTED in bench.slot_status()
    bench.put(PORT, r.SLOT_STATUS, 0x11F)
    assert bench.slot_status() == S.PRESENCE | S.MRL_OPEN


@on_bench(slot="power_controller = true")
async def test_a_lasting_power_fault_comes_back_when_cleared_and_interrupts_again(bench: Bench) -> None:
    bench.inject(Injection.POWER_FAULT, PORT, for_s=1.0)
    assert bench.vectors() == [0]
    bench.put(PORT, r.SLOT_STATUS, S.POWER_FAULT_DETECTED)
    assert S.POWER_FAULT_DETECTED in bench.slot_status()
    assert bench.vectors() == [0]
    await asyncio.sleep(1.1)
    bench.put(PORT, r.SLOT_STATUS, S.POWER_FAULT_DETECTED)
    assert S.POWER_FAULT_DETECTED not in bench.slot_status()


@on_bench()
async def test_p9_a_clear_of_one_bit_leaves_the_others(bench: Bench) -> None:
    bench.turn(PORT, r.LINK_CONTROL, r.LinkControl.LINK_DISABLE, on=True)
    bench.put(PORT, r.SLOT_STATUS, S.LINK_STATE_CHANGED)
    assert bench.slot_status() == S.PRESENCE_CHANGED


@on_bench()
async def test_injections_that_no_slot_could_have_are_refused(bench: Bench) -> None:
    with pytest.raises(MachineError, match="swap it"):
        bench.inject(Injection.INSERT, PORT)
    with pytest.raises(MachineError, match="needs a root port"):
        bench.inject(Injection.REMOVE, DISK)
    with pytest.raises(MachineError, match="no error is called 'Oops'"):
        bench.inject(Injection.ERROR, DISK, names=("Oops",))
    with pytest.raises(MachineError, match="unknown field `serail`"):
        bench.inject(Injection.SWAP, PORT, card={"0": {"serail": 7}})


@on_bench(dpc=False)
async def test_an_injection_may_be_planned_for_later(bench: Bench) -> None:
    bench.inject(Injection.REMOVE, PORT, after_s=1.0)
    bench.inject(Injection.INSERT, PORT, after_s=2.0)
    assert bench.answers(DISK)
    await asyncio.sleep(1.5)
    assert not bench.answers(DISK)
    await asyncio.sleep(1.0)
    assert bench.answers(DISK)


@on_bench(dpc=False)
async def test_in_band_presence_means_nothing_while_the_port_is_disabled(bench: Bench) -> None:
    """DESIGN 5, Presence: a card is there, yet in-band PDS reads 0."""
    bench.turn(PORT, r.LINK_CONTROL, r.LinkControl.LINK_DISABLE, on=True)
    assert S.PRESENCE not in bench.slot_status()
    bench.turn(PORT, r.LINK_CONTROL, r.LinkControl.LINK_DISABLE, on=False)
    assert S.PRESENCE in bench.slot_status()
    bench.inject(Injection.LINK_DOWN, PORT)
    assert S.PRESENCE in bench.slot_status()


@on_bench(dpc=False)
async def test_a_card_pulled_from_a_nested_slot_interrupts_at_that_slot(bench: Bench) -> None:
    bench.inject(Injection.REMOVE, NESTED)
    assert bench.vectors(NESTED) == [0]
    assert bench.vectors(UPPER) == [0]
