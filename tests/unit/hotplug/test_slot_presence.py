"""DESIGN 5, Presence."""

import pytest

from services.hotplug._presence import Pins, Presence, out_of_band, presence
from shared.pcie.registers import SlotControl, SlotStatus

PINS = int(SlotControl.IN_BAND_PRESENCE_DISABLE)


@pytest.mark.parametrize(
    ("status", "control", "shut", "expected"),
    [
        (SlotStatus.PRESENCE, 0, False, Presence.PRESENT),
        (SlotStatus.PRESENCE, 0, True, Presence.PRESENT),
        (0, 0, False, Presence.ABSENT),
        (0, 0, True, Presence.UNKNOWN),  # in-band presence went down with the link
        (0, PINS, True, Presence.ABSENT),  # the pins always count
        (0, PINS, False, Presence.ABSENT),
    ],
)
def test_presence_is_believed_as_far_as_it_means_something(
    status: int, control: int, shut: bool, expected: Presence
) -> None:
    assert presence(slot_status=status, slot_control=control, shut=shut) is expected


SHOWN = int(SlotStatus.PRESENCE)
CHANGED = int(SlotStatus.PRESENCE_CHANGED)


def test_p4_a_latched_change_counts_for_itself_only_out_of_band() -> None:
    assert Pins().reseated(slot_status=SHOWN | CHANGED, slot_control=PINS)
    assert not Pins().reseated(slot_status=SHOWN | CHANGED, slot_control=0)
    assert not Pins().reseated(slot_status=SHOWN, slot_control=PINS)
    assert out_of_band(PINS)


@pytest.mark.parametrize(
    ("seen", "reseated"),
    [
        ((0, SHOWN | CHANGED), False),  # the card that is up already, by pins that are slower than its link
        ((0, SHOWN | CHANGED, SHOWN | CHANGED), False),  # not cleared yet
        ((0, CHANGED), True),  # it was there, and is gone again
        ((0, SHOWN | CHANGED, SHOWN, SHOWN | CHANGED), True),
        ((SHOWN, SHOWN | CHANGED), True),
    ],
)
def test_p4_pins_that_show_a_card_late_show_no_other_card(seen: tuple[int, ...], reseated: bool) -> None:
    pins = Pins()
    assert [pins.reseated(slot_status=status, slot_control=PINS) for status in seen][-1] is reseated
