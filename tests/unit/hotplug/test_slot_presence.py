"""DESIGN 5, Presence."""

import pytest

from services.hotplug._presence import Presence, out_of_band, presence, reseated
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


def test_p4_a_latched_change_counts_for_itself_only_out_of_band() -> None:
    changed = int(SlotStatus.PRESENCE | SlotStatus.PRESENCE_CHANGED)
    assert reseated(slot_status=changed, slot_control=PINS)
    assert not reseated(slot_status=changed, slot_control=0)
    assert not reseated(slot_status=int(SlotStatus.PRESENCE), slot_control=PINS)
    assert out_of_band(PINS)
