"""The states of a slot: one literal table, state x event -> state.

What is true in each state:

- OFF: no function of the slot is registered as present. The slot may be empty, switched off, or hold a card that did
  not come up.
- BLINKING_ON, BLINKING_OFF: as OFF and ON, and the button was pressed: the power indicator blinks, a second press
  within the button's grace cancels.
- POWER_ON, POWER_OFF: a slot operation holds a lease on the port and brings the card up, or takes it away.
- ON: the functions of the card are registered as present.

An operation that recovery absorbed ends in the state that the registry then shows (FOUND or EMPTY); the slot is judged
afresh after that lease.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from shared.protocol.requests import SlotState


class SlotEvent(StrEnum):
    """What moves a slot."""

    PRESS = "press"  # the attention button
    ENABLE = "enable"  # a slot operation begins to bring the card up
    DISABLE = "disable"  # a slot operation begins to take the card away
    FOUND = "found"  # the registry shows functions in the slot: at start, or at the end of an operation
    EMPTY = "empty"  # the registry shows none


class WrongTransition(AssertionError):  # noqa: N818 - named for what is true
    """An event that the state does not know: a bug of ours. Nothing was changed."""


OCCUPIED: Final = frozenset({SlotState.ON, SlotState.BLINKING_OFF})
PARKABLE: Final = OCCUPIED | {SlotState.OFF}  # in which a power-off that was absorbed can be brought to its end

TRANSITIONS: Final[dict[SlotState, dict[SlotEvent, SlotState]]] = {
    SlotState.OFF: {
        SlotEvent.PRESS: SlotState.BLINKING_ON,
        SlotEvent.ENABLE: SlotState.POWER_ON,
        # A power-off that recovery absorbed after the functions had left: it is brought to its end.
        SlotEvent.DISABLE: SlotState.POWER_OFF,
        SlotEvent.FOUND: SlotState.ON,
        SlotEvent.EMPTY: SlotState.OFF,
    },
    SlotState.BLINKING_ON: {
        SlotEvent.PRESS: SlotState.OFF,
        SlotEvent.ENABLE: SlotState.POWER_ON,
        SlotEvent.EMPTY: SlotState.OFF,
    },
    SlotState.POWER_ON: {
        SlotEvent.FOUND: SlotState.ON,
        SlotEvent.EMPTY: SlotState.OFF,
    },
    SlotState.ON: {
        SlotEvent.PRESS: SlotState.BLINKING_OFF,
        SlotEvent.DISABLE: SlotState.POWER_OFF,
        SlotEvent.FOUND: SlotState.ON,
        # A switch card above was taken away, and this slot's functions with it.
        SlotEvent.EMPTY: SlotState.OFF,
    },
    SlotState.BLINKING_OFF: {
        SlotEvent.PRESS: SlotState.ON,
        SlotEvent.DISABLE: SlotState.POWER_OFF,
        SlotEvent.FOUND: SlotState.BLINKING_OFF,
        SlotEvent.EMPTY: SlotState.OFF,
    },
    SlotState.POWER_OFF: {
        SlotEvent.FOUND: SlotState.ON,
        SlotEvent.EMPTY: SlotState.OFF,
    },
}


def following(state: SlotState, event: SlotEvent) -> SlotState:
    """Return the state that follows. Raises WrongTransition, naming both."""
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        raise WrongTransition(f"a slot that is {state} does not know {event}") from None
