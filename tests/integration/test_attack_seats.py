"""Attacks on P3, P4 and P10 around seats: slots that are off, pins that tell of a hand, and a button nobody may heed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

import pytest
import pytest_asyncio

from shared.pcie import Address
from shared.pcie.registers import SlotStatus
from shared.protocol import subjects
from shared.protocol.facts import What
from shared.protocol.requests import Accepted, AcceptReply, Lift, SlotReply, SlotReport, SlotRequest
from tests.integration.conftest import TOPOLOGIES
from tests.integration.fleet import Bench, start
from tests.integration.promises import keeps, promises, quiet, verdicts
from tests.integration.slots import NEVER_S, SETTLE_S, once, state_of, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

PINS: Final = "00:01.0"  # out-of-band presence, and a button
CONTROLLED: Final = "00:02.0"  # a power controller
PLAIN: Final = "00:03.0"  # neither
ABOVE: Final = "00:0a.0"  # a root port above a switch, the two slots of which are:
NESTED: Final = ("11:00.0", "11:01.0")  # the first with a power controller


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    """One fleet for all tests here, which gives a card up soon, and looks often."""
    soon = {"HOLDFAST_READY_S": "1", "HOLDFAST_LINK_S": "0.5", "HOLDFAST_OWNER_S": "1"}
    often = {"HOLDFAST_RECONCILE_S": "1", "HOLDFAST_BUTTON_S": "0.3"}
    text = (TOPOLOGIES / "seats.toml").read_text()
    async with start(text, tmp_path_factory.mktemp("seats"), environment={**soon, **often}) as running:
        yield running


async def switch(bench: Bench, port: str, *, on: bool) -> None:
    """Switch a slot, and wait until it is so."""
    subject = subjects.slot(bench.host, Address.parse(port), "power_on" if on else "power_off")
    assert isinstance(await bench.request(subject, SlotRequest(), SlotReply), SlotReport)
    await until(bench, port, "on" if on else "off")


async def looked(bench: Bench, port: str) -> None:
    """Let hotplug look at a slot that nothing is to happen to."""
    await bench.inject("interrupt", port, service="hotplug")
    await asyncio.sleep(SETTLE_S)
    await quiet(bench, port)


async def test_p4_a_reset_from_above_switches_no_slot_on_that_was_switched_off(bench: Bench) -> None:
    """It clears Slot Control, power and all: the card's link comes up, until that is restored."""
    for port in NESTED:
        await switch(bench, port, on=False)
    since = bench.mark()
    async with keeps(bench, ABOVE, but=("0000:13:00.0",), resets=True):
        await bench.inject("dpc", ABOVE, reason="uncorrectable")
        started = await bench.wait_fact(What.RECOVERY_STARTED, ABOVE, since=since)
        await bench.closed(ABOVE, started.lease)
        for port in NESTED:
            await looked(bench, port)
    for port in NESTED:
        assert not bench.facts(What.SLOT_STATE, port, since), "the slot was switched on"
        assert (await state_of(bench, port)).state == "off"
        await switch(bench, port, on=True)


async def test_p4_another_card_in_a_slot_that_is_off_is_seen_although_it_came_during_a_reset_from_above(
    bench: Bench,
) -> None:
    port = NESTED[0]
    await switch(bench, port, on=False)
    since = bench.mark()
    async with promises(bench):
        await bench.hang("13:00.0", "slot_reset")
        await bench.inject("dpc", ABOVE, reason="uncorrectable")
        step = "slot_reset"

        async def reset_is_over() -> bool | None:
            return any(fact.data["step"] == step for fact in bench.facts(What.RECOVERY_STEP, ABOVE, since)) or None

        await bench.eventually(reset_is_over, "the reset is over")
        await bench.inject("swap", port, card={"0": {"serial": "00-00-00-00-00-00-12-77"}})
        await bench.answer("13:00.0")
        await once(bench, What.DEVICE_ADDED, "0000:12:00.0", since)
        await until(bench, port, "on")
    assert (await bench.registry())["0000:12:00.0"].identity.serial == 0x1277


async def test_p3_slots_that_were_switched_off_stay_off_when_hotplug_starts_again(bench: Bench) -> None:
    for port in (CONTROLLED, PLAIN):
        await switch(bench, port, on=False)
    since = bench.mark()
    bench.kill("hotplug")
    await bench.restart("hotplug")
    for port in (CONTROLLED, PLAIN):
        await looked(bench, port)
        assert (await state_of(bench, port)).state == "off"
        assert not bench.facts(What.DEVICE_ADDED, port, since)
    await bench.inject("swap", CONTROLLED, card={"0": {"serial": "00-00-00-00-00-00-02-77"}})
    await until(bench, CONTROLLED, "on")
    await switch(bench, PLAIN, on=True)


async def test_p10_a_button_that_is_pressed_in_quarantine_is_told_and_switches_nothing_off_after_it(
    bench: Bench,
) -> None:
    since = bench.mark()
    await bench.inject("slow_ready", PINS, for_s=NEVER_S)
    await bench.inject("dpc", PINS, reason="uncorrectable")
    await bench.wait_fact(What.QUARANTINE_ENTERED, PINS, since=since)
    await bench.wait_fact(What.SLOT_IGNORED, PINS, since=since)
    pressed = bench.mark()
    await bench.inject("button", PINS)

    async def told() -> bool | None:
        ignored = bench.facts(What.SLOT_IGNORED, PINS, pressed)
        return any(fact.data["latched"] & SlotStatus.ATTENTION_BUTTON_PRESSED for fact in ignored) or None

    await bench.eventually(told, "the press is ignored")
    await bench.inject("slow_ready", PINS)
    lift = Lift(port=Address.parse(PINS), by="a test")
    reply = await bench.request(subjects.coordinator(bench.host, "lift"), lift, AcceptReply)
    assert isinstance(reply, Accepted), reply
    assert verdicts(await bench.closed(PINS, reply.lease)) == {"0000:01:00.0": "kept"}
    await looked(bench, PINS)
    assert not bench.facts(What.SLOT_BUTTON, PINS, since)
    assert not bench.facts(What.SLOT_STATE, PINS, since)
    assert not bench.facts(What.DEVICE_REMOVED, PINS, since)


async def test_p4_a_card_that_its_pins_say_was_reseated_is_not_said_to_be_kept(bench: Bench) -> None:
    await bench.hang("01:00.0", "error_detected")
    since = bench.mark()
    async with promises(bench):
        await bench.inject("dpc", PINS, reason="uncorrectable")
        started = await bench.wait_fact(What.RECOVERY_STARTED, PINS, since=since)
        await bench.inject("swap", PINS)
        await bench.answer("01:00.0")
        assert verdicts(await bench.closed(PINS, started.lease)) == {"0000:01:00.0": "replaced"}
        await once(bench, What.DEVICE_ADDED, "0000:01:00.0", since)
        await until(bench, PINS, "on")


async def test_a_card_whose_link_is_late_is_tried_again_although_its_slot_has_no_power_meanwhile(bench: Bench) -> None:
    since = bench.mark()
    await bench.inject("remove", CONTROLLED)
    await until(bench, CONTROLLED, "off")
    await bench.inject("insert", CONTROLLED)
    await bench.inject("stuck_training", CONTROLLED)
    await bench.wait_fact(What.SLOT_NOT_READY, CONTROLLED, since=since)
    await bench.inject("link_up", CONTROLLED)
    await until(bench, CONTROLLED, "on")
    await once(bench, What.DEVICE_ADDED, "0000:02:00.0", since)
