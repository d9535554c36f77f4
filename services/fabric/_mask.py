"""Masking: save what is set, sync, clear it. Never the other way round, or a mask would be taken for what was found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shared.pcie import Address, Function, Topology, answered
from shared.pcie import registers as reg
from shared.protocol.fabric import Operation, SavedSlot
from shared.recovery import Do, ask, modify, read

from ._book import Book
from ._effects import Command
from ._snapshot import saved_slot

_MASKED = int(reg.SLOT_MASKED)
_SURPRISE_DOWN = int(reg.Uncorrectable.SURPRISE_DOWN)


def save(
    book: Book, slots: tuple[Function, ...], inherited: Mapping[Address, SavedSlot], *, firmware_owned: bool
) -> Command[tuple[SavedSlot, ...]]:
    """Return every slot's enables: inherited ones as they were found, else from registers, else from the snapshot."""
    saved = []
    for slot in slots:
        known = book.snapshot(slot.address)
        if slot.address in inherited:
            saved.append(inherited[slot.address])
        elif known is not None:
            control, mask = yield from enables(slot)
            saved.append(saved_slot(known, control, mask, firmware_owned=firmware_owned))
    return tuple(saved)


def enables(slot: Function) -> Command[tuple[int | None, int | None]]:
    """Return Slot Control and the AER mask as they are now; None for what does not answer or is not there."""
    operations: tuple[Operation, ...] = (read(slot.address, _slot_control(slot), reg.SLOT_CONTROL.width),)
    if slot.capabilities.aer:
        operations += (read(slot.address, _error_mask(slot), reg.UNCORRECTABLE_MASK.width),)
    got = [value if answered(value) else None for value in (yield from ask(operations))]
    return got[0], got[1] if len(got) > 1 else None


def mask(saved: tuple[SavedSlot, ...], topology: Topology) -> Command[tuple[Address, ...]]:
    """Clear the enables of every slot that answers and has them set, and mask Surprise Down. May run twice.

    Where nothing was saved of Surprise Down, it is not touched: nobody would restore it.

    A slot that is masked already is not written: each write to Slot Control is a command that must complete. Returns
    the slots that answered.
    """
    reached = []
    for one, slot in ((one, topology.find(one.port)) for one in saved):
        if slot is None:
            continue
        control, errors = yield from enables(slot)
        if control is None:
            continue
        reached.append(slot.address)
        operations: list[Operation] = []
        if one.surprise_down_masked is not None and errors is not None and not errors & _SURPRISE_DOWN:
            at, width = _error_mask(slot), reg.UNCORRECTABLE_MASK.width
            operations.append(modify(slot.address, at, width, mask=_SURPRISE_DOWN, value=_SURPRISE_DOWN))
        if control & _MASKED:
            at, width = _slot_control(slot), reg.SLOT_CONTROL.width
            operations.append(modify(slot.address, at, width, mask=_MASKED, value=0))
        if operations:
            yield Do(tuple(operations))
    return tuple(reached)


def as_fact(saved: tuple[SavedSlot, ...], reached: tuple[Address, ...]) -> list[dict[str, Any]]:
    """Return what was saved and masked, slot by slot, for the fact."""
    return [
        {
            "port": str(slot.port),
            "saved_enables": slot.enables,
            "surprise_down_was_masked": slot.surprise_down_masked,
            "reached": slot.port in reached,
        }
        for slot in saved
    ]


def _slot_control(slot: Function) -> int:
    return slot.capabilities.express + reg.SLOT_CONTROL.offset


def _error_mask(slot: Function) -> int:
    return slot.capabilities.aer + reg.UNCORRECTABLE_MASK.offset
