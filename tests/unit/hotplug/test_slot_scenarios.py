"""Bugs of Linux's past (prior-art/linux-kernel.md, section 5) that concern slots, each with the guard against it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
import pytest

from services.hotplug._actor import SlotActor
from shared.pcie import Address, IdentityField, Topology
from shared.pcie import registers as r
from shared.protocol.fabric import FunctionOutcome, Result
from shared.protocol.facts import What
from shared.protocol.requests import SlotState
from shared.runtime import Wake
from tests.unit.hotplug.hotplug_bench import (
    AER,
    BUSY,
    CARD,
    ENDPOINT,
    EXPRESS,
    LINK_CHANGED,
    PORT,
    PRESENCE_CHANGED,
    PRESENT,
    ROOT,
    WHO,
    Lab,
)

SECOND = Address.parse("0000:01:00.1")
OTHER = msgspec.structs.replace(WHO, device=0x0A55)


async def until(happened: Callable[[], bool]) -> None:
    while not happened():  # noqa: ASYNC110 - what happens here happens in the actor
        await asyncio.sleep(0.01)


async def restarted(lab: Lab) -> None:
    """Start hotplug anew, with what the registry holds."""
    lab.actor.rest()
    await lab.shop.registry.load()
    lab.actor = SlotActor(PORT, lab.shop)


async def test_p4_scenario_15_a_card_that_was_changed_while_nobody_looked_is_replaced(lab: Lab) -> None:
    await lab.occupied()
    lab.bench.seat(OTHER, command=BUSY)
    await restarted(lab)
    await lab.look(Wake.START)
    assert lab.said(What.DEVICE_REMOVED)[0]["why"] == "another device answers, or the same one was out"


async def test_p4_a_card_whose_pins_show_it_after_its_link_is_inserted_once(lab: Lab) -> None:
    lab.bench.out_of_band()
    await lab.look(Wake.START)
    lab.bench.seat()
    lab.bench.status = LINK_CHANGED  # the pins show nothing yet
    await lab.look()
    assert lab.state() is SlotState.ON
    lab.bench.status |= PRESENT | PRESENCE_CHANGED
    await lab.look()
    assert (lab.device().present, lab.device().generation) == (True, 1)
    assert not lab.said(What.DEVICE_REMOVED)
    lab.bench.status |= PRESENCE_CHANGED
    await lab.look()
    assert lab.device().generation == 2, "it was out, whoever it is"


async def test_p9_scenario_16_a_card_that_does_not_answer_is_not_another_card(lab: Lab) -> None:
    """A serial number that reads zero, or all ones, of a card that is gone looks like another card's."""
    await lab.occupied()
    for place in [place for place in lab.bench.registers if place[0] == CARD]:
        del lab.bench.registers[place]
    for _ in range(2):
        await lab.look(Wake.POLL)
    assert lab.state() is SlotState.ON
    assert not lab.facts


async def test_p4_scenario_20_no_removal_waits_for_a_driver_that_hangs_in_bind(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.hotplug._work._GONE_LOOK_S", 0.01)
    await lab.look(Wake.START)
    lab.store.slow = asyncio.Event()
    lab.bench.seat()
    lab.bench.status |= PRESENCE_CHANGED
    look = asyncio.create_task(lab.look())
    async with asyncio.timeout(10):
        await until(lambda: bool(lab.store.calls))
        lab.bench.pull()
        await look
    assert lab.state() is SlotState.OFF
    assert "taken out" in lab.said(What.SLOT_NOT_READY)[0]["why"]
    assert not lab.said(What.DEVICE_ADDED)


async def test_p4_scenario_20_all_of_a_card_is_removed_before_a_driver_of_it_is_waited_for(lab: Lab) -> None:
    second = msgspec.structs.replace(ENDPOINT, address=SECOND)
    lab.bench.seat(command=BUSY)
    lab.bench.registers |= {(SECOND, at): value for (one, at), value in lab.bench.registers.items() if one == CARD}
    lab.bench.topology = lab.shop.actors.topology = Topology((ROOT, ENDPOINT, second))
    await lab.look(Wake.START)
    lab.store.slow = asyncio.Event()
    lab.bench.pull()
    look = asyncio.create_task(lab.look())
    async with asyncio.timeout(10):
        await until(lambda: len(lab.said(What.DEVICE_REMOVED)) == 2)
    assert not look.done()
    lab.store.slow.set()
    await look


async def test_p4_scenario_33_who_has_not_removed_a_device_unbinds_no_driver(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def removed_already(*_: object, **__: object) -> bool:
        return False

    await lab.occupied()
    lab.store.calls.clear()
    monkeypatch.setattr(lab.shop.registry, "remove", removed_already)
    lab.bench.pull()
    await lab.look()
    assert not lab.store.calls


async def test_p4_scenario_33_two_that_remove_the_same_device_remove_it_once(lab: Lab) -> None:
    """The actor of a nested slot, and that of the slot in which its switch stands."""
    await lab.occupied()
    stored = asyncio.Event()
    put = lab.context.ownership.put_owned

    async def slowly(key: str, message: object) -> int:
        await stored.wait()
        revision: int = await put(key, message)
        return revision

    lab.context.ownership.put_owned = slowly
    registry = lab.shop.registry
    both = [asyncio.create_task(registry.remove(CARD, lease=None, why=why)) for why in ("pulled", "pulled above")]
    await asyncio.sleep(0)
    stored.set()
    assert await asyncio.gather(*both) == [True, False]
    assert await registry.remove(CARD, lease=None, why="again") is False
    assert [data["why"] for data in lab.said(What.DEVICE_REMOVED)] == ["pulled"]


async def test_p4_scenario_36_what_latches_while_a_driver_binds_is_news(lab: Lab) -> None:
    """The same card, out and in again while its driver took its time: it is not set up, and nobody else would see it."""
    await lab.look(Wake.START)
    lab.store.slow = asyncio.Event()
    lab.bench.seat()
    lab.bench.status |= PRESENCE_CHANGED
    look = asyncio.create_task(lab.look())
    async with asyncio.timeout(10):
        await until(lambda: bool(lab.store.calls))
        lab.bench.status |= PRESENCE_CHANGED | LINK_CHANGED
        lab.bench.registers[CARD, r.COMMAND.offset] = 0
        lab.store.slow.set()
        await look
    assert len(lab.said(What.DEVICE_ADDED)) == 2
    assert len(lab.said(What.DEVICE_REMOVED)) == 1
    assert lab.bench.registers[CARD, r.COMMAND.offset] == BUSY


async def test_a_card_that_was_reset_while_it_was_set_up_is_not_registered(lab: Lab) -> None:
    await lab.look(Wake.START)
    lab.bench.seat()
    lab.bench.status |= PRESENCE_CHANGED

    def reset(operation: object) -> None:
        clears = getattr(operation, "offset", 0) == EXPRESS + r.SLOT_STATUS.offset
        if clears and lab.bench.registers.get((CARD, r.COMMAND.offset)) == BUSY:
            lab.bench.registers[CARD, r.COMMAND.offset] = 0

    lab.bench.on_execute = reset
    await lab.look()
    assert "reset" in lab.said(What.SLOT_NOT_READY)[0]["why"]
    assert not lab.said(What.DEVICE_ADDED)


# --- What a hold accepts ---


async def accepted(lab: Lab, *fields: IdentityField, result: Result = Result.RECOVERED) -> None:
    """End a hold under which the card has become another device id, as far as it says."""
    await lab.occupied()
    lab.bench.cover("h1")
    await lab.look()
    lab.bench.seat(OTHER, command=BUSY)
    lab.bench.topology = Topology((ROOT, msgspec.structs.replace(ENDPOINT, identity=OTHER)))
    lab.bench.uncover()
    outcome = FunctionOutcome(function=CARD, result=result)
    lab.bench.retired = [
        msgspec.structs.replace(retired, accepted=fields, outcomes=(outcome,)) for retired in lab.bench.retired
    ]
    await lab.look(Wake.ENDED)


async def test_p3_an_identity_that_a_hold_accepts_is_taken_over_without_a_new_generation(lab: Lab) -> None:
    await accepted(lab, IdentityField.DEVICE, IdentityField.REVISION)
    for _ in range(2):
        await lab.look(Wake.POLL)
    assert (lab.device().identity, lab.device().generation) == (OTHER, 1)
    (kept,) = lab.said(What.DEVICE_KEPT)
    assert kept["lease"] == "h1"
    assert kept["why"].endswith("it accepts what differs: device")
    assert not lab.said(What.DEVICE_REMOVED)


@pytest.mark.parametrize(
    ("fields", "result"),
    [((IdentityField.REVISION,), Result.RECOVERED), ((IdentityField.DEVICE,), Result.REPLACED), ((), Result.RECOVERED)],
)
async def test_p4_an_identity_that_no_hold_accepts_is_another_device(
    lab: Lab, fields: tuple[IdentityField, ...], result: Result
) -> None:
    await accepted(lab, *fields, result=result)
    assert lab.said(What.DEVICE_REMOVED)
    assert not lab.said(What.DEVICE_KEPT)


# --- Functions that are not like the others ---


async def test_a_virtual_function_is_registered_under_the_port_and_never_counts_as_reset(lab: Lab) -> None:
    """Its Memory Space Enable is zero by rule (PCIe r6.2 9.3.4.1.3)."""
    virtual = msgspec.structs.replace(ENDPOINT, address=SECOND, physical=CARD)
    lab.bench.seat(command=BUSY)
    at = r.REVISION_AND_CLASS.offset
    lab.bench.registers[SECOND, at] = lab.bench.registers[CARD, at]
    lab.bench.topology = lab.shop.actors.topology = Topology((ROOT, ENDPOINT, virtual))
    await lab.look(Wake.START)
    device = lab.shop.registry.device(SECOND)
    assert device is not None
    assert (device.present, device.port) == (True, PORT)
    lab.facts.clear()
    lab.bench.status |= LINK_CHANGED
    await lab.look()
    assert {data["generation"] for data in lab.said(What.DEVICE_KEPT)} == {1}
    assert not lab.said(What.DEVICE_REMOVED)


async def test_p4_where_the_firmware_is_first_its_errors_defer_no_removal(lab: Lab) -> None:
    """It reads and clears them, or does not: nobody here will recover from them."""
    await lab.occupied()
    lab.shop.actors.topology = lab.bench.topology = Topology((ROOT, ENDPOINT), firmware_first=True)
    lab.bench.registers[PORT, AER + r.ROOT_ERROR_STATUS.offset] = int(r.RootErrorStatus.FATAL_RECEIVED)
    lab.bench.registers[PORT, AER + r.UNCORRECTABLE_STATUS.offset] = int(r.Uncorrectable.SURPRISE_DOWN)
    lab.bench.pull()
    await lab.look()
    assert lab.state() is SlotState.OFF
    touched = {operation.offset for operation in lab.bench.written}
    assert AER + r.UNCORRECTABLE_STATUS.offset not in touched, "the firmware's"
