"""A latched bit that is cleared takes with it what has latched the same bit since it was read: who sees that?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import msgspec
import pytest

from shared.pcie import Topology
from shared.pcie import registers as r
from shared.protocol import subjects
from shared.protocol.fabric import Operation, Verb
from shared.protocol.facts import What
from shared.protocol.requests import SlotState
from shared.runtime import Wake
from tests.unit.hotplug import hotplug_bench
from tests.unit.hotplug.hotplug_bench import (
    CARD,
    EXPRESS,
    LINK_CHANGED,
    PORT,
    PRESENCE_CHANGED,
    PRESENT,
    ROOT,
    Ask,
    Lab,
)
from tests.unit.hotplug.test_slot_quarantine import given_up
from tests.unit.hotplug.test_slot_scenarios import restarted

BUTTON, LATCH = int(r.SlotStatus.ATTENTION_BUTTON_PRESSED), int(r.SlotStatus.MRL_CHANGED)
MRL_OPEN = int(r.SlotStatus.MRL_OPEN)


def clears(operation: Operation, bits: int) -> bool:
    at_status = operation.verb is Verb.WRITE and operation.offset == EXPRESS + r.SLOT_STATUS.offset
    return at_status and bool(operation.value & bits)


def switches_power(operation: Operation, *, on: bool) -> bool:
    switches = operation.verb is Verb.MODIFY and bool(operation.mask & r.SlotControl.POWER_OFF)
    return switches and bool(operation.value & r.SlotControl.POWER_OFF) is not on


def follow_power(lab: Lab) -> Callable[[Operation], None]:
    """Have the link go up and down with the slot's power."""

    def follow(operation: Operation) -> None:
        for on in (False, True):
            if switches_power(operation, on=on):
                lab.bench.link(up=on)

    return follow


def have(monkeypatch: pytest.MonkeyPatch, lab: Lab, **differs: Any) -> None:
    """Give the slot other abilities."""
    root = msgspec.structs.replace(ROOT, **differs)
    monkeypatch.setattr(hotplug_bench, "ROOT", root)
    lab.bench.topology = lab.shop.actors.topology = Topology((root,))


@pytest.mark.parametrize("answers_late", [False, True])
async def test_p4_a_card_that_is_reseated_while_the_change_before_it_is_cleared_is_set_up_again(
    lab: Lab, *, answers_late: bool
) -> None:
    """It answers as it did, and nothing is latched: only its command register tells that it has been out."""
    await lab.occupied()
    lab.bench.status |= LINK_CHANGED | PRESENCE_CHANGED

    def reseat(operation: Operation) -> None:
        if clears(operation, LINK_CHANGED):
            lab.bench.on_execute = lambda _: None
            lab.bench.pull()
            lab.bench.seat(command=0)
            if answers_late:
                lab.bench.registers[CARD, r.VENDOR_ID.offset] = r.RRS_VENDOR_ID

    lab.bench.on_execute = reseat
    await lab.look()
    if answers_late:
        assert lab.device().generation == 1
        lab.bench.registers[CARD, r.VENDOR_ID.offset] = hotplug_bench.WHO.vendor
        await lab.look(Wake.POLL)
    assert (lab.device().present, lab.device().generation) == (True, 2)
    assert lab.bench.registers[CARD, r.COMMAND.offset] == hotplug_bench.BUSY


async def test_a_device_that_its_driver_resets_long_after_a_change_is_left_alone(lab: Lab) -> None:
    await lab.occupied()
    lab.bench.status |= LINK_CHANGED | PRESENCE_CHANGED
    await lab.look()
    lab.bench.registers[CARD, r.COMMAND.offset] = 0
    await lab.look(Wake.POLL)
    assert lab.device().generation == 1


async def test_a_latch_that_moves_while_its_change_is_cleared_is_told_as_it_is(lab: Lab) -> None:
    await lab.occupied()
    lab.bench.status |= LATCH | MRL_OPEN

    def close(operation: Operation) -> None:
        if clears(operation, LATCH):
            lab.bench.status &= ~MRL_OPEN

    lab.bench.on_execute = close
    await lab.look()
    assert [data["open"] for data in lab.said(What.SLOT_LATCH)] == [False]


async def test_p4_a_card_that_is_changed_while_the_power_settles_is_brought_up(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pins do not follow the power: what they show in that second is somebody at the slot."""
    monkeypatch.setattr("shared.pcie.timing.POWER_OFF_SETTLE", 0.0)
    power = r.SlotCapabilities.POWER_CONTROLLER | r.SlotCapabilities.HOTPLUG_CAPABLE
    have(monkeypatch, lab, slot=power, in_band_disable=True)
    lab.bench.seat(link=False)

    def change(operation: Operation) -> None:
        if switches_power(operation, on=False):
            lab.bench.on_execute = lambda _: None
            lab.bench.seat(link=True)
            lab.bench.status |= PRESENCE_CHANGED

    lab.bench.on_execute = change
    await lab.look(Wake.START)
    assert [data["why"] for data in lab.said(What.SLOT_NOT_READY)] == ["no link"]
    assert lab.state() is SlotState.ON


@pytest.mark.parametrize("asked", [False, True])
async def test_a_slot_without_power_is_tried_again_unless_somebody_has_asked_for_that(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, *, asked: bool
) -> None:
    """A link that is late cannot show while the power is off."""
    monkeypatch.setattr("shared.pcie.timing.POWER_OFF_SETTLE", 0.0)
    monkeypatch.setattr(lab.actor, "_retry_after", 0.0)
    have(monkeypatch, lab, slot=r.SlotCapabilities.POWER_CONTROLLER | r.SlotCapabilities.HOTPLUG_CAPABLE)
    lab.bench.seat(link=False)

    def late(operation: Operation) -> None:
        if switches_power(operation, on=False):
            lab.bench.on_execute = follow_power(lab)
            if asked:
                lab.actor.asks.put(cast("Any", Ask(subjects.slot("lab", PORT, "power_off"))))

    lab.bench.on_execute = late
    await lab.look(Wake.START)
    assert lab.state() is (SlotState.OFF if asked else SlotState.ON)


@pytest.mark.parametrize("known", [False, True])
async def test_a_press_is_heeded_unless_it_is_older_than_the_first_look_that_anybody_took(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, *, known: bool
) -> None:
    have(monkeypatch, lab, slot=r.SlotCapabilities.HOTPLUG_CAPABLE | r.SlotCapabilities.ATTENTION_BUTTON)
    if known:
        await lab.occupied()
        await restarted(lab)
    lab.bench.status |= BUTTON
    if known:
        await lab.look(Wake.START)
        assert lab.said(What.SLOT_BUTTON)
    else:
        await lab.occupied()
        assert lab.state() is SlotState.ON
    assert not lab.bench.status & BUTTON


# --- In quarantine ---


async def test_p10_a_button_that_is_pressed_in_quarantine_asks_for_nothing_and_holds_no_interrupt_back(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    have(monkeypatch, lab, slot=r.SlotCapabilities.HOTPLUG_CAPABLE | r.SlotCapabilities.ATTENTION_BUTTON)
    await given_up(lab)
    lab.facts.clear()
    lab.bench.status |= BUTTON
    await lab.look()
    assert not lab.bench.status & BUTTON
    assert [data["latched"] for data in lab.said(What.SLOT_IGNORED)] == [BUTTON]
    lab.bench.quarantines = []
    lab.bench.dpc(triggered=False)
    lab.bench.link(up=True)
    await lab.look(Wake.ENDED)
    assert lab.state() is SlotState.ON
    assert not lab.said(What.SLOT_BUTTON)


async def test_p4_the_latch_that_is_opened_in_quarantine_holds_the_next_cards_interrupt_not_back(lab: Lab) -> None:
    await given_up(lab)
    lab.bench.status |= LATCH | MRL_OPEN
    await lab.look()
    assert not lab.bench.status & LATCH
    assert [data["open"] for data in lab.said(What.SLOT_LATCH)] == [True]
    assert lab.bench.status & PRESENT
    assert not lab.store.lifts


# --- Switched off on purpose ---


@pytest.mark.parametrize("power", [False, True])
async def test_p3_a_slot_that_was_switched_off_stays_off_over_a_restart_until_another_card_is_seated(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, *, power: bool
) -> None:
    monkeypatch.setattr("shared.pcie.timing.POWER_OFF_SETTLE", 0.0)
    if power:
        have(monkeypatch, lab, slot=r.SlotCapabilities.POWER_CONTROLLER | r.SlotCapabilities.HOTPLUG_CAPABLE)
        lab.bench.on_execute = follow_power(lab)
    await lab.occupied()
    if power:
        lab.bench.topology = lab.shop.actors.topology = Topology((hotplug_bench.ROOT, hotplug_bench.ENDPOINT))
    lab.actor.asks.put(cast("Any", Ask(subjects.slot("lab", PORT, "power_off"))))
    await lab.look()
    assert lab.state() is SlotState.OFF
    await restarted(lab)
    await lab.look(Wake.START)
    assert lab.state() is SlotState.OFF
    lab.bench.pull()
    lab.bench.seat(link=not power)
    await lab.look()
    assert lab.state() is SlotState.ON
    assert lab.device().generation == 2


async def test_p4_a_card_that_was_being_brought_up_at_the_restart_is_no_longer_switched_off(lab: Lab) -> None:
    """Its driver was binding: everything is set up, nothing is latched, and the registry is older than that."""
    await lab.occupied()
    lab.actor.asks.put(cast("Any", Ask(subjects.slot("lab", PORT, "power_off"))))
    await lab.look()
    lab.bench.registers[CARD, r.COMMAND.offset] = hotplug_bench.BUSY
    await restarted(lab)
    await lab.look(Wake.START)
    assert lab.state() is SlotState.ON
    assert lab.device().generation == 2


async def test_a_second_request_to_switch_off_ends_what_the_first_could_not(lab: Lab) -> None:
    """Recovery has absorbed the first after the functions had left: the slot shows nothing, and has power."""
    await lab.occupied()

    def absorbed(operation: Operation) -> None:
        if operation.verb is Verb.MODIFY and operation.function == CARD:
            lab.bench.cover("r1")

    lab.bench.on_execute = absorbed
    lab.actor.asks.put(cast("Any", Ask(subjects.slot("lab", PORT, "power_off"))))
    await lab.look()
    lab.bench.on_execute = lambda _: None
    lab.bench.uncover()
    lab.bench.written.clear()
    lab.actor.asks.put(cast("Any", Ask(subjects.slot("lab", PORT, "power_off"))))
    await lab.look(Wake.ENDED)
    assert lab.state() is SlotState.OFF
    assert not lab.said(What.DEVICE_ADDED)
    assert [data["to"] for data in lab.said(What.SLOT_STATE)][-2:] == ["power_off", "off"]
