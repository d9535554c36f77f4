"""Config space is put back after a reset: identity first, then every register that differs, in the order of its turn.

Only what differs is written, so a second run writes nothing. Bits that a lease holds down stay down: Presence and Link
State Changed enables clear, Surprise Down masked; only close restores those. Bits that would start a reset are never
written, whatever the snapshot says.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import chain
from typing import Final

import msgspec

from shared.pcie import Capabilities, Function, Value, all_ones, answered
from shared.pcie.registers import (
    AER_ROOT,
    BRIDGE_CONTROL,
    DPC_ROOT,
    EXPRESS,
    LINK_CONTROL,
    MSI,
    MSI_DATA_32,
    POWER_MANAGEMENT,
    SLOT_CONTROL,
    SLOT_MASKED,
    TYPE0,
    TYPE1,
    UNCORRECTABLE_MASK,
    BridgeControl,
    LinkControl,
    Uncorrectable,
)
from shared.protocol.fabric import Operation, SavedFunction, SavedRegister, SavedSlot

from ._effects import Do, Logic, read, values, write
from ._verify import Finding, find, identity_reads

# A function may drop a write just after it has become ready; Linux writes and reads back the same way
# (pci_restore_config_dword), and gives up as silently: VERIFY and the driver have the last word.
RESTORE_TRIES: Final = 3


class Known(msgspec.Struct, frozen=True):
    """A function as the topology has it, as the lease found it, and the slot mask that it stands under, if any."""

    function: Function
    saved: SavedFunction
    slot: SavedSlot | None = None


def look(functions: tuple[Known, ...]) -> Logic[tuple[Finding, ...]]:
    """Ask all functions who they are, in one step."""
    asked = [identity_reads(known.function) for known in functions]
    held = values((yield Do(tuple(chain.from_iterable(asked))))) if asked else ()
    found = []
    start = 0
    for known, reads in zip(functions, asked, strict=True):
        found.append(find(known.function, known.saved.identity, held[start : start + len(reads)]))
        start += len(reads)
    return tuple(found)


def restore(functions: tuple[Known, ...]) -> Logic[None]:
    """Write back what differs, function by function, each in the order of its saved registers.

    Whoever calls has identified every one of `functions` before (DESIGN 4): this writes.
    """
    for _ in range(RESTORE_TRIES):
        reads = tuple(
            read(known.saved.address, register.offset, register.width)
            for known in functions
            for register in known.saved.registers
        )
        if not reads:
            return
        held = values((yield Do(reads)))
        writes = _corrections(functions, held)
        if not writes:
            return
        yield Do(writes)


def _corrections(functions: tuple[Known, ...], held: tuple[Value, ...]) -> tuple[Operation, ...]:
    """Return the writes of the registers that do not hold what they should. No answer is no reason to write (P9)."""
    wanted = ((known, register) for known in functions for register in known.saved.registers)
    return tuple(
        write(known.saved.address, register.offset, register.width, value)
        for (known, register), now in zip(wanted, held, strict=True)
        if answered(now) and (now ^ (value := restored_value(known, register))) & _writable(known.function, register)
    )


def _writable(function: Function, register: SavedRegister) -> int:
    """Return the bits of a register that take what is written: what else differs is no reason to write.

    Which bits of a BAR are writable depends on its size; the others read as they did, so all may be compared.
    """
    rw = _layout(function.capabilities, is_bridge=function.kind.is_bridge).get((register.offset, register.width), 0)
    return rw or all_ones(register.width)


@lru_cache(maxsize=256)
def _layout(capabilities: Capabilities, *, is_bridge: bool) -> dict[tuple[int, int], int]:
    """Return (offset, width) -> writable bits of every register that the function may have."""
    tables = (
        (0, TYPE1 if is_bridge else TYPE0),
        (capabilities.power_management, POWER_MANAGEMENT),
        (capabilities.msi, (*MSI, MSI_DATA_32)),
        (capabilities.express, EXPRESS),
        (capabilities.aer, AER_ROOT),
        (capabilities.dpc, DPC_ROOT),
    )
    return {
        (base + register.offset, register.width): register.rw
        for base, table in tables
        if base or table in {TYPE0, TYPE1}
        for register in table
    }


def restored_value(known: Known, register: SavedRegister) -> int:
    """Return what to write: what was saved, without reset bits, and with the lease's mask on."""
    capabilities = known.function.capabilities
    value = register.value
    if known.function.kind.is_bridge and register.offset == BRIDGE_CONTROL.offset:
        value &= ~BridgeControl.SECONDARY_BUS_RESET
    if capabilities.express and register.offset == capabilities.express + LINK_CONTROL.offset:
        value &= ~(LinkControl.LINK_DISABLE | LinkControl.RETRAIN_LINK)
    if known.slot is None:
        return int(value)
    if register.offset == capabilities.express + SLOT_CONTROL.offset:
        value &= ~SLOT_MASKED
    masks_surprise_down = known.slot.surprise_down_masked is not None
    if masks_surprise_down and register.offset == capabilities.aer + UNCORRECTABLE_MASK.offset:
        value |= Uncorrectable.SURPRISE_DOWN
    return int(value)
