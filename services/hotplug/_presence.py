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


def reseated(*, slot_status: int, slot_control: int) -> bool:
    """Tell whether a latched change of presence is a real one, even if the same card answers (P4)."""
    return out_of_band(slot_control) and bool(slot_status & SlotStatus.PRESENCE_CHANGED)
