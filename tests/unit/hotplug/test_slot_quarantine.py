"""A slot in quarantine: nothing is judged or removed, and another card is the only thing that is heard of."""

from __future__ import annotations

from typing import cast

import pytest

from services.hotplug._judge import Verdict
from shared.pcie import Address
from shared.pcie import registers as r
from shared.protocol import Reason, Refused, subjects
from shared.protocol.fabric import Operation, Quarantine
from shared.protocol.facts import What
from shared.protocol.requests import SlotState
from shared.runtime import Request, Wake
from tests.unit.hotplug.hotplug_bench import CARD, LINK_CHANGED, PORT, PRESENCE_CHANGED, PRESENT, Ask, Lab

ABOVE = Address.parse("0000:00:00.0")


async def given_up(lab: Lab, *, out_of_band: bool = True) -> None:
    """Start with a card whose port a recovery has just given up."""
    await lab.occupied()
    if out_of_band:
        lab.bench.out_of_band()
    lab.bench.cover("r1")
    await lab.look()
    lab.facts.clear()
    lab.bench.opened.clear()
    lab.bench.quarantine("r1")
    await lab.look(Wake.ENDED)


async def test_what_the_slot_holds_stays_registered_and_its_channel_counts_as_failed(lab: Lab) -> None:
    await given_up(lab)
    for _ in range(2):
        await lab.look(Wake.POLL)
    device = lab.device()
    assert (device.present, device.generation, device.channel) == (True, 1, "perm_failure")
    assert lab.state() is SlotState.ON
    assert [data["reason"] for data in lab.said(What.SLOT_IGNORED)] == ["quarantined"]
    assert "three failures in a row" in lab.said(What.SLOT_IGNORED)[0]["why"]
    assert not lab.said(What.SLOT_DEFERRED)
    assert not lab.bench.opened


async def test_p10_each_event_that_is_ignored_is_told_once(lab: Lab) -> None:
    await given_up(lab)
    lab.bench.status |= LINK_CHANGED
    for _ in range(2):
        await lab.look()
    assert [data["latched"] for data in lab.said(What.SLOT_IGNORED)] == [0, LINK_CHANGED]


async def test_another_card_behind_out_of_band_presence_asks_for_the_release_and_follows(lab: Lab) -> None:
    await given_up(lab)
    lab.bench.status |= PRESENCE_CHANGED
    await lab.look()
    (lift,) = lab.store.lifts
    assert (lift.port, lift.by) == (PORT, "hotplug: another card is seated")
    assert lab.bench.status & PRESENCE_CHANGED, "the change is there for whoever judges the slot after the release"
    # The release brings the card up again: it is judged as after every close.
    lab.bench.quarantines = []
    lab.bench.dpc(triggered=False)
    lab.bench.link(up=True)
    lab.bench.status = PRESENT
    lab.bench.cover("r-lift")
    await lab.look()
    assert lab.device().channel == "frozen"
    lab.bench.uncover()
    await lab.look(Wake.ENDED)
    assert (lab.device().channel, lab.device().generation) == ("normal", 1)
    assert lab.said(What.DEVICE_KEPT)


async def test_a_request_that_nobody_answers_is_repeated_at_the_next_look(lab: Lab) -> None:
    await given_up(lab)
    lab.bench.status |= PRESENCE_CHANGED
    lab.store.deaf = True
    await lab.look()
    lab.store.deaf = False
    await lab.look(Wake.AGAIN)
    assert len(lab.store.lifts) == 2


async def test_a_card_that_is_taken_out_asks_nothing_and_the_next_one_is_an_event_again(lab: Lab) -> None:
    """Scenario 11: an edge comes only after the status has been zero."""
    await given_up(lab)
    lab.bench.status = PRESENCE_CHANGED
    await lab.look()
    assert not lab.store.lifts
    assert not lab.bench.status & PRESENCE_CHANGED
    lab.bench.status |= PRESENT | PRESENCE_CHANGED
    await lab.look()
    assert len(lab.store.lifts) == 1


async def test_p4_a_card_that_is_seated_while_the_removal_is_forgotten_is_not_forgotten(lab: Lab) -> None:
    await given_up(lab)
    lab.bench.status = PRESENCE_CHANGED

    def seat() -> None:
        lab.bench.status |= PRESENT | PRESENCE_CHANGED

    lab.bench.on_open = seat
    await lab.look()
    assert lab.bench.status & PRESENCE_CHANGED
    assert len(lab.store.lifts) == 1


async def test_p4_a_card_that_is_seated_between_the_check_and_the_clearing_is_not_forgotten(lab: Lab) -> None:
    await given_up(lab)
    lab.bench.status = PRESENCE_CHANGED

    def seat(_: Operation) -> None:
        lab.bench.status |= PRESENT | PRESENCE_CHANGED  # already latched: clearing it now clears both changes

    lab.bench.on_execute = seat
    await lab.look()
    assert lab.bench.status == PRESENT
    assert len(lab.store.lifts) == 1


async def test_a_port_that_is_given_up_in_the_moment_of_a_slot_operation_is_not_reported_as_deferred(lab: Lab) -> None:
    await lab.occupied()
    lab.bench.refusal = Refused(reason=Reason.QUARANTINED, message="given up")
    lab.bench.pull()
    await lab.look()
    assert not lab.said(What.SLOT_DEFERRED)


async def test_a_release_that_fails_is_not_asked_for_again_by_the_same_change(lab: Lab) -> None:
    await given_up(lab)
    lab.bench.status |= PRESENCE_CHANGED
    await lab.look()
    lab.bench.quarantine("r-lift")
    for _ in range(3):
        await lab.look(Wake.ENDED)
    assert len(lab.store.lifts) == 1
    lab.bench.status |= PRESENCE_CHANGED
    await lab.look()
    assert len(lab.store.lifts) == 2


async def test_presence_in_band_says_nothing_of_a_port_that_is_held_down(lab: Lab) -> None:
    await given_up(lab, out_of_band=False)
    lab.bench.status |= PRESENCE_CHANGED
    await lab.look()
    assert not lab.store.lifts
    assert not lab.bench.opened


async def test_a_slot_below_a_port_in_quarantine_asks_for_nothing(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    await given_up(lab)
    lab.bench.quarantine("r1", ABOVE)
    monkeypatch.setattr("services.hotplug._survey.chain", lambda address, _: (address, PORT, ABOVE))
    lab.bench.status |= PRESENCE_CHANGED
    await lab.look()
    assert lab.device().channel == "perm_failure"
    assert not lab.store.lifts


@pytest.mark.parametrize("question", ["power_on", "power_off"])
async def test_a_power_request_is_refused_and_names_what_ends_the_quarantine(lab: Lab, question: str) -> None:
    await given_up(lab)
    ask = Ask(subjects.slot("lab", PORT, question))
    lab.actor.asks.put(cast("Request", ask))
    await lab.look()
    (answer,) = ask.answers
    assert isinstance(answer, Refused)
    assert answer.reason is Reason.QUARANTINED
    assert f"holdfast quarantine release {PORT}" in answer.message


async def test_a_slot_that_is_in_quarantine_at_the_start_is_left_alone(lab: Lab) -> None:
    lab.bench.seat(link=False)
    lab.bench.quarantine("r1")
    lab.bench.registers[PORT, 0x40 + r.SLOT_CONTROL.offset] &= ~int(r.SlotControl.LINK_STATE_CHANGED_ENABLE)
    await lab.look(Wake.START)
    assert not lab.bench.opened
    assert not lab.bench.written


async def test_what_is_in_quarantine_further_down_makes_no_change_of_the_slot_above(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A switch card: behind one of its ports, which has no slot, nothing answers any more, and that is known."""
    await lab.occupied()
    below = Address.parse("0000:02:00.0")
    paths = {CARD: (CARD, below, PORT)}
    monkeypatch.setattr("services.hotplug._survey.chain", lambda address, _: paths.get(address, (address,)))
    lab.bench.quarantines = [Quarantine(port=below, lease="r1", why="three failures in a row")]
    for place in [place for place in lab.bench.registers if place[0] == CARD]:
        del lab.bench.registers[place]
    lab.bench.status |= LINK_CHANGED
    for _ in range(2):
        await lab.look()
    assert (lab.device().present, lab.device().channel) == (True, "perm_failure")
    assert not lab.bench.status & LINK_CHANGED
    assert not lab.said(What.DEVICE_REMOVED)
    assert not lab.said(What.DEVICE_KEPT)


async def test_a_removal_that_is_about_to_be_believed_is_dropped_when_the_port_is_given_up(lab: Lab) -> None:
    await lab.occupied()
    lab.bench.pull()
    assert (await lab.actor.examine()).row.verdict is Verdict.REMOVE
    lab.bench.quarantine("r1")
    lab.bench.dpc(triggered=False)  # held down by Link Disable further up, say: the ledger counts, not the register
    assert (await lab.actor.examine()).row.verdict is Verdict.LEAVE
