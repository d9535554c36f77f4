"""The states of a slot, as one table (prior-art/linux-kernel.md, 1.1)."""

import itertools

import pytest

from services.hotplug._slot import PARKABLE, TRANSITIONS, SlotEvent, WrongTransition, following
from shared.protocol.requests import SlotState

WORKING = {SlotState.POWER_ON, SlotState.POWER_OFF}


def test_every_state_has_a_row() -> None:
    assert set(TRANSITIONS) == set(SlotState)


@pytest.mark.parametrize(("state", "event"), list(itertools.product(SlotState, SlotEvent)))
def test_a_transition_is_in_the_table_or_raises_naming_both(state: SlotState, event: SlotEvent) -> None:
    if event in TRANSITIONS[state]:
        assert following(state, event) is TRANSITIONS[state][event]
    else:
        with pytest.raises(WrongTransition, match=rf"{state} .* {event}"):
            following(state, event)


@pytest.mark.parametrize("state", SlotState)
def test_every_state_is_reached_and_can_be_left(state: SlotState) -> None:
    assert any(state in row.values() for other, row in TRANSITIONS.items() if other is not state)
    assert set(TRANSITIONS[state].values()) - {state}


def test_a_second_press_cancels() -> None:
    for state in (SlotState.OFF, SlotState.ON):
        assert following(following(state, SlotEvent.PRESS), SlotEvent.PRESS) is state


def test_an_operation_ends_where_the_registry_says_whoever_absorbed_it() -> None:
    for state in WORKING:
        assert following(state, SlotEvent.FOUND) is SlotState.ON
        assert following(state, SlotEvent.EMPTY) is SlotState.OFF


def test_a_press_during_an_operation_is_no_transition() -> None:
    assert all(SlotEvent.PRESS not in TRANSITIONS[state] for state in WORKING)


def test_a_slot_is_disabled_while_occupied_or_to_end_what_was_absorbed_and_only_a_free_one_enabled() -> None:
    for state, row in TRANSITIONS.items():
        assert (SlotEvent.DISABLE in row) == (state in PARKABLE)
        assert (SlotEvent.ENABLE in row) == (state in {SlotState.OFF, SlotState.BLINKING_ON})
