"""Whether a card is there (DESIGN 5, Presence).

Presence Detect State is the OR of the in-band and the out-of-band mechanism (PCIe r6.2 §7.5.3.11). In-band presence
goes down with the link, so while a port is contained, disabled, in reset or without power, PDS = 0 says nothing;
unless in-band presence is disabled (Slot Control bit 14), when PDS is the pins alone and always counts.
"""

from __future__ import annotations

from enum import StrEnum

from shared.pcie.registers import SlotControl, SlotStatus


class Presence(StrEnum):
    """What the presence detect state says about the card."""

    PRESENT = "present"
    ABSENT = "absent"
    UNKNOWN = "unknown"  # PDS = 0 where that means nothing


def out_of_band(slot_control: int) -> bool:
    """Tell whether PDS is the pins alone."""
    return bool(slot_control & SlotControl.IN_BAND_PRESENCE_DISABLE)


def presence(*, slot_status: int, slot_control: int, shut: bool) -> Presence:
    """Judge the presence detect state; `shut`: the port is contained, disabled, in reset or without power."""
    if slot_status & SlotStatus.PRESENCE:
        return Presence.PRESENT
    if shut and not out_of_band(slot_control):
        return Presence.UNKNOWN
    return Presence.ABSENT


class Pins:
    """What is remembered of out-of-band presence: whether a change that is latched now is a real one (P4)."""

    def __init__(self) -> None:
        self._awaited = False

    def reseated(self, *, slot_status: int, slot_control: int) -> bool:
        """Tell whether a card was out or seated, even if the same card answers.

        Pins may be slower than the link: where they last showed no card, the one change by which they show the card
        that has been brought up meanwhile is no other card.
        """
        changed, present = slot_status & SlotStatus.PRESENCE_CHANGED, slot_status & SlotStatus.PRESENCE
        if not changed:
            self._awaited = not present
        return out_of_band(slot_control) and bool(changed) and not (self._awaited and present)
