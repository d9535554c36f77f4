"""Which bits of which register an operation touches. Pure.

An operation names bytes, the rules name bits. A four-byte write that begins before Slot Control writes Slot Control
all the same, so every rule asks here and none compares offsets by itself.
"""

from __future__ import annotations

from typing import Final

import msgspec

from shared.pcie import Function, all_ones
from shared.pcie import registers as reg
from shared.protocol.fabric import Operation, Verb

_BITS: Final = 8  # per byte


class Written(msgspec.Struct, frozen=True):
    """The bits of one register that an operation writes, and what it writes to them."""

    mask: int = 0
    value: int = 0

    def sets(self, bits: int) -> int:
        """Return those of `bits` that are written as one: set, or cleared where they are RW1C."""
        return self.value & self.mask & bits

    def clears(self, bits: int) -> int:
        """Return those of `bits` that are written as zero."""
        return ~self.value & self.mask & bits


UNTOUCHED: Final = Written()


def written(operation: Operation, register: reg.Register, base: int = 0) -> Written:
    """Return what `operation` writes to `register`, which stands at `base` + its offset."""
    if operation.verb not in {Verb.WRITE, Verb.MODIFY}:
        return UNTOUCHED
    shift = (operation.offset - base - register.offset) * _BITS
    if shift <= -operation.width * _BITS or shift >= register.width * _BITS:
        return UNTOUCHED
    mask = all_ones(operation.width)
    if operation.verb is Verb.MODIFY:
        mask &= operation.mask
    return Written(
        mask=_shifted(mask, shift) & all_ones(register.width),
        value=_shifted(operation.value & mask, shift) & all_ones(register.width),
    )


def _shifted(bits: int, shift: int) -> int:
    return bits << shift if shift >= 0 else bits >> -shift


def write_clear_bits(function: Function, offset: int, width: int) -> int:
    """Return the RW1C bits among `width` bytes at `offset`: a read-modify-write must write those as zero."""
    caps = function.capabilities
    tables: list[tuple[int, tuple[reg.Register, ...]]] = [(0, reg.TYPE1 if function.kind.is_bridge else reg.TYPE0)]
    tables += [
        (base, table)
        for base, table in ((caps.express, reg.EXPRESS), (caps.aer, reg.AER_ROOT), (caps.dpc, reg.DPC_ROOT))
        if base
    ]
    bits = 0
    for base, table in tables:
        for register in table:
            shift = (base + register.offset - offset) * _BITS
            if register.rw1c and -register.width * _BITS < shift < width * _BITS:
                bits |= _shifted(register.rw1c, shift)
    return bits & all_ones(width)


def writes_slot_control(function: Function, operation: Operation) -> bool:
    """Tell whether the operation is a hotplug command: any write that touches Slot Control (§6.7.3.2)."""
    if function.slot is None or operation.verb not in {Verb.WRITE, Verb.MODIFY}:
        return False
    start = function.capabilities.express + reg.SLOT_CONTROL.offset
    return operation.offset < start + reg.SLOT_CONTROL.width and start < operation.offset + operation.width


def clears_slot_events(function: Function, operation: Operation) -> bool:
    """Tell whether the operation writes Slot Status."""
    return function.slot is not None and bool(written(operation, reg.SLOT_STATUS, function.capabilities.express).mask)
