"""Closing a slot: the decision table on all its inputs, and the loop around it on a scripted slot."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from shared.pcie import NO_ANSWER, Address, Capabilities, Function, Identity, Topology
from shared.pcie import registers as reg
from shared.protocol.fabric import Operation, SavedFunction, SavedRegister, SavedSlot, Verb
from shared.recovery import Do, SlotClosed, close_slot
from shared.recovery._close import ROUNDS_MAX, ROWS, Seen, Verdict, judge

PORT, CARD = Address.parse("00:01.0"), Address.parse("01:00.0")
SERIAL, ONE = 0x148, Identity(vendor=0x8086, device=1, class_code=0x010802, revision=1, subsystem=0, serial=7)
EXPRESS, AER = 0x40, 0x100
CHANGED = int(reg.SlotStatus.PRESENCE_CHANGED | reg.SlotStatus.LINK_STATE_CHANGED)
PRESENCE_CHANGED = int(reg.SlotStatus.PRESENCE_CHANGED)
OUT_OF_BAND = int(reg.SlotControl.IN_BAND_PRESENCE_DISABLE)
ENABLES = int(reg.SLOT_MASKED)
_BOOLS = (False, True)


def _expected(seen: Seen) -> Verdict:
    """DESIGN 4, close, sentence by sentence."""
    if not seen.reachable:
        return Verdict.DROP
    if not seen.holds or (seen.out_of_band and seen.presence_latched):
        return Verdict.LEAVE
    if not seen.dirty:
        return Verdict.RESTORE
    return Verdict.LEAVE if seen.exhausted else Verdict.CLEAR


@pytest.mark.parametrize("inputs", list(product(_BOOLS, repeat=len(Seen.__struct_fields__))))
def test_exactly_one_row_fits_every_input_and_says_what_the_design_says(inputs: tuple[bool, ...]) -> None:
    seen = Seen(*inputs)
    assert sum(row.fits(seen) for row in ROWS) == 1
    assert judge(seen).verdict is _expected(seen)


def test_every_row_is_reached_and_has_a_label_of_its_own() -> None:
    reached = {judge(Seen(*inputs)).label for inputs in product(_BOOLS, repeat=len(Seen.__struct_fields__))}
    assert reached == {row.label for row in ROWS}
    assert len(reached) == len(ROWS)


class Slot:
    """One port with a slot and a card, as registers; `events` happen just before the numbered Do."""

    def __init__(self) -> None:
        self.registers: dict[tuple[Address, int], int] = {
            (PORT, EXPRESS + reg.SLOT_CONTROL.offset): int(reg.SlotControl.HOTPLUG_INTERRUPT_ENABLE),
            (PORT, EXPRESS + reg.SLOT_STATUS.offset): int(reg.SlotStatus.PRESENCE),
            (PORT, EXPRESS + reg.LINK_STATUS.offset): int(reg.LinkStatus.LINK_ACTIVE),
            (PORT, AER + reg.UNCORRECTABLE_STATUS.offset): 0,
            (PORT, AER + reg.UNCORRECTABLE_MASK.offset): int(reg.Uncorrectable.SURPRISE_DOWN),
            (PORT, AER + reg.CORRECTABLE_STATUS.offset): 0,
        }
        self.card: Identity | None = ONE
        self.command = int(reg.Command.MEMORY_SPACE)
        self.reachable = True
        self.events: dict[int, Any] = {}
        self.done = 0

    @property
    def status(self) -> int:
        return self.registers[PORT, EXPRESS + reg.SLOT_STATUS.offset]

    @property
    def control(self) -> int:
        return self.registers[PORT, EXPRESS + reg.SLOT_CONTROL.offset]

    def latch(self, bits: int = CHANGED) -> None:
        self.registers[PORT, EXPRESS + reg.SLOT_STATUS.offset] |= bits

    def run(self, saved: SavedSlot, *, functions: bool = True) -> SlotClosed:
        port = Function(
            PORT, reg.DeviceType.ROOT_PORT, ONE, Capabilities(express=EXPRESS, aer=AER), secondary=1,
            slot=reg.SlotCapabilities.HOTPLUG_CAPABLE, link_active_reporting=True,
        )  # fmt: skip
        card = Function(CARD, reg.DeviceType.ENDPOINT, ONE, Capabilities(serial_number=SERIAL), PORT)
        command = SavedRegister(offset=reg.COMMAND.offset, width=2, value=int(reg.Command.MEMORY_SPACE))
        known = (SavedFunction(address=CARD, identity=ONE, registers=(command,)),) if functions else ()
        logic = close_slot(saved, known, Topology((port, card)))
        sent: Any = None
        while True:
            try:
                effect = logic.send(sent)
            except StopIteration as end:
                result: SlotClosed = end.value
                return result
            assert isinstance(effect, Do), "closing neither waits nor notes"
            self.done += 1
            self.events.pop(self.done, lambda: None)()
            sent = tuple(self._perform(operation) for operation in effect.operations)

    def _perform(self, operation: Operation) -> Any:
        if operation.function == CARD:
            return self._card(operation.offset)
        if not self.reachable:
            return NO_ANSWER
        key = (operation.function, operation.offset)
        held = self.registers[key]
        if operation.verb is Verb.WRITE:  # all plain writes of close are to RW1C registers
            self.registers[key] = held & ~operation.value
        elif operation.verb is Verb.MODIFY:
            self.registers[key] = (held & ~operation.mask) | (operation.value & operation.mask)
        return self.registers[key]

    def _card(self, offset: int) -> Any:
        card = self.card
        if card is None:
            return NO_ANSWER
        return {
            0: card.vendor, 2: card.device, 4: self.command, 8: card.class_code << 8 | card.revision, 0x2C: card.subsystem,
            SERIAL: reg.ExtendedId.DEVICE_SERIAL_NUMBER, SERIAL + 4: card.serial, SERIAL + 8: 0,
        }[offset]  # fmt: skip


SAVED = SavedSlot(port=PORT, enables=ENABLES, surprise_down_masked=False)


def test_p3_the_same_card_is_drained_and_unmasked() -> None:
    slot = Slot()
    slot.latch()
    slot.registers[PORT, AER + reg.UNCORRECTABLE_STATUS.offset] = int(reg.Uncorrectable.SURPRISE_DOWN) | 1 << 18
    closed = slot.run(SAVED)
    assert (closed.verdict, closed.rounds, closed.cleared) == (Verdict.RESTORE, 1, CHANGED)
    assert slot.status & CHANGED == 0
    assert slot.control == ENABLES | reg.SlotControl.HOTPLUG_INTERRUPT_ENABLE
    assert slot.registers[PORT, AER + reg.UNCORRECTABLE_STATUS.offset] == 1 << 18, "what no reset provokes stays"
    assert slot.registers[PORT, AER + reg.UNCORRECTABLE_MASK.offset] == 0


def test_p2_only_what_was_found_set_is_restored() -> None:
    slot = Slot()
    slot.run(SavedSlot(port=PORT, enables=0x8, surprise_down_masked=True))
    assert slot.control & ENABLES == 0x8
    assert slot.registers[PORT, AER + reg.UNCORRECTABLE_MASK.offset] == reg.Uncorrectable.SURPRISE_DOWN


@pytest.mark.parametrize("card", [None, Identity(0x8086, 1, 0x010802, 1, 0, 8)])
def test_p4_another_card_or_none_stays_latched_and_is_unmasked(card: Identity | None) -> None:
    slot = Slot()
    slot.latch()
    slot.card = card
    closed = slot.run(SAVED)
    assert (closed.verdict, closed.latched, closed.row) == (Verdict.LEAVE, CHANGED, "C2")
    assert slot.status & CHANGED == CHANGED
    assert slot.control & ENABLES == ENABLES


def test_p4_the_same_card_that_was_reset_after_it_had_been_restored_is_left_to_hotplug() -> None:
    slot = Slot()
    slot.latch()
    slot.command = 0
    closed = slot.run(SAVED)
    assert (closed.verdict, closed.latched, closed.row) == (Verdict.LEAVE, CHANGED, "C2")


def test_p4_out_of_band_presence_that_changed_is_believed_over_the_same_identity() -> None:
    slot = Slot()
    slot.registers[PORT, EXPRESS + reg.SLOT_CONTROL.offset] |= OUT_OF_BAND
    slot.latch(PRESENCE_CHANGED)
    assert slot.run(SAVED).row == "C3"
    assert slot.status & PRESENCE_CHANGED


def test_p4_a_swap_between_two_looks_is_left_to_hotplug() -> None:
    slot = Slot()
    slot.latch()

    def swap() -> None:
        slot.card = Identity(0x8086, 1, 0x010802, 1, 0, 8)
        slot.latch()

    slot.events[4] = swap  # after the first clear, before the second look
    closed = slot.run(SAVED)
    assert (closed.verdict, closed.rounds) == (Verdict.LEAVE, 1)
    assert slot.status & CHANGED == CHANGED


def test_what_latches_again_is_cleared_again_five_times_at_most() -> None:
    slot = Slot()
    slot.latch()
    slot.events = dict.fromkeys(range(1, 100), slot.latch)
    closed = slot.run(SAVED)
    assert (closed.verdict, closed.rounds, closed.row) == (Verdict.LEAVE, ROUNDS_MAX, "C8")
    assert slot.control & ENABLES == ENABLES


@pytest.mark.parametrize(("present", "verdict"), [(False, Verdict.RESTORE), (True, Verdict.LEAVE)])
def test_an_empty_slot_holds_while_it_is_empty(present: bool, verdict: Verdict) -> None:
    slot = Slot()
    slot.registers[PORT, EXPRESS + reg.LINK_STATUS.offset] = 0
    slot.registers[PORT, EXPRESS + reg.SLOT_STATUS.offset] = int(reg.SlotStatus.PRESENCE) if present else 0
    slot.latch(PRESENCE_CHANGED)
    assert slot.run(SAVED, functions=False).verdict is verdict


def test_a_port_that_does_not_answer_has_nothing_to_restore() -> None:
    slot = Slot()
    slot.reachable = False
    assert slot.run(SAVED).verdict is Verdict.DROP
