"""One slot: presence, button, latch, power and commands, as Slot Status tells of them (§6.7, §7.5.3.11)."""

from __future__ import annotations

from typing import Final

from shared.pcie import registers as r

from ._clock import Clock
from ._function import Block
from ._specs import SlotSpec

_COMMAND_S: Final = 0.002  # ours: how long the slot works on a command; §6.7.3.2 allows one second


class Slot:
    """The slot of a port. Bits latch here; whether they interrupt is judged in `_interrupts`."""

    def __init__(self, express: Block, spec: SlotSpec, clock: Clock) -> None:
        self.spec = spec
        self._express = express
        self._clock = clock
        self._fault_until = 0.0  # loop time until which the power fault re-asserts

    @property
    def powered(self) -> bool:
        """Whether the card gets power."""
        return not (self.spec.power_controller and self._express.get(r.SLOT_CONTROL) & r.SlotControl.POWER_OFF)

    @property
    def in_band_ignored(self) -> bool:
        """Whether software has taken in-band presence out of Presence Detect State (§7.5.3.10, bit 14)."""
        return bool(self._express.get(r.SLOT_CONTROL) & r.SlotControl.IN_BAND_PRESENCE_DISABLE)

    @property
    def shows_presence(self) -> bool:
        """Presence Detect State."""
        return bool(self._express.get(r.SLOT_STATUS) & r.SlotStatus.PRESENCE)

    def present(self, in_band: bool, seated: bool) -> bool:
        """Return Presence Detect State: in-band or out-of-band (§7.5.3.11).

        In-band presence needs power, so a slot with a power controller has a physical pin too.
        """
        out_of_band = (self.spec.out_of_band_presence or self.spec.power_controller) and seated
        return out_of_band or (in_band and not self.in_band_ignored)

    def show_presence(self, present: bool, *, latch: bool = True) -> bool:
        """Drive Presence Detect State, and latch the change; return whether there was one."""
        if present == self.shows_presence:
            return False
        self._express.drive(r.SLOT_STATUS, r.SlotStatus.PRESENCE, present)
        if latch:
            self.presence_changed()
        return True

    def presence_changed(self) -> None:
        """Latch that presence changed."""
        self._express.latch(r.SLOT_STATUS, r.SlotStatus.PRESENCE_CHANGED)

    def link_changed(self) -> None:
        """Latch that the data link layer went up or down."""
        self._express.latch(r.SLOT_STATUS, r.SlotStatus.LINK_STATE_CHANGED)

    def press(self) -> None:
        """Press the attention button."""
        self._express.latch(r.SLOT_STATUS, r.SlotStatus.ATTENTION_BUTTON_PRESSED)

    def move_latch(self, is_open: bool) -> None:
        """Open or close the manually operated retention latch."""
        before = bool(self._express.get(r.SLOT_STATUS) & r.SlotStatus.MRL_OPEN)
        self._express.drive(r.SLOT_STATUS, r.SlotStatus.MRL_OPEN, is_open)
        if is_open != before:
            self._express.latch(r.SLOT_STATUS, r.SlotStatus.MRL_CHANGED)

    def fault(self, for_s: float | None) -> None:
        """Raise a power fault, once, or one that re-asserts when cleared, for so many seconds."""
        self._fault_until = 0.0 if for_s is None else self._clock.now() + for_s
        self._express.latch(r.SLOT_STATUS, r.SlotStatus.POWER_FAULT_DETECTED)

    def status_cleared(self) -> None:
        """Bring a fault back that is still there after software wrote Slot Status."""
        if self.powered and self._clock.now() < self._fault_until:
            self._express.latch(r.SLOT_STATUS, r.SlotStatus.POWER_FAULT_DETECTED)

    def commanded(self) -> None:
        """Complete the command that software wrote to Slot Control, a little later, where the slot says so."""
        if self.spec.command_completed:
            self._clock.later(_COMMAND_S, self._completed)

    def _completed(self) -> None:
        self._express.latch(r.SLOT_STATUS, r.SlotStatus.COMMAND_COMPLETED)
