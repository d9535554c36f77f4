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

from shared.pcie import Capabilities, Function, IdentityField, Value, all_ones, answered, timing
from shared.pcie.registers import (
    ACS,
    AER,
    AER_ROOT,
    ARI,
    BRIDGE_CONTROL,
    DPC,
    DPC_ROOT,
    EXPRESS,
    LINK_CONTROL,
    LTR,
    MSI,
    MSI_DATA_32,
    MSI_X,
    PM_CONTROL,
    PM_POWER_STATE,
    POWER_MANAGEMENT,
    RESIZABLE_BAR_CONTROL,
    SLOT_CONTROL,
    SLOT_MASKED,
    SRIOV,
    TYPE0,
    TYPE1,
    UNCORRECTABLE_MASK,
    BridgeControl,
    LinkControl,
    Register,
    Uncorrectable,
)
from shared.protocol.fabric import Operation, SavedFunction, SavedRegister, SavedReporting, SavedSlot

from ._effects import Do, Logic, Pause, ask, modify, read, write
from ._quiet import silenced
from ._verify import Finding, judge, verify_reads

# A function may drop a write just after it has become ready; Linux writes and reads back the same way
# (pci_restore_config_dword), and gives up as silently: VERIFY and the driver have the last word.
RESTORE_TRIES: Final = 3


class Known(msgspec.Struct, frozen=True):
    """A function as the topology has it, as the lease found it, and what the lease says about it."""

    function: Function
    saved: SavedFunction
    slot: SavedSlot | None = None  # the slot mask that it stands under
    accept: tuple[IdentityField, ...] = ()
    quarantined: bool = False  # its link is held down for good
    firmware_owned: bool = False  # its AER and DPC registers are off limits
    quiet: SavedReporting | None = None  # what reporting of errors was silenced


def look(functions: tuple[Known, ...]) -> Logic[tuple[Finding, ...]]:
    """Ask all functions who they are, and whether they are set up, in one step."""
    asked = [verify_reads(known.function, known.saved) for known in functions]
    held = yield from ask(chain.from_iterable(asked))
    found = []
    start = 0
    for known, reads in zip(functions, asked, strict=True):
        answers = held[start : start + len(reads)]
        found.append(judge(known.function, known.saved, answers, accept=known.accept))
        start += len(reads)
    return tuple(found)


def wake(functions: tuple[Known, ...]) -> Logic[None]:
    """Take those out of D3hot who were in D0, and wait: it resets a function whose No_Soft_Reset is clear (§5.3.1.4).

    Somebody died in a reset by power management. What is written in the same step as D0 would be lost in that reset.
    """
    able = tuple((known, at) for known in functions if (at := _power_control(known)) is not None)
    reads = tuple(read(known.saved.address, at, PM_CONTROL.width) for known, at in able)
    held = yield from ask(reads)
    asleep = tuple(
        modify(known.saved.address, at, PM_CONTROL.width, mask=PM_POWER_STATE, value=0)
        for (known, at), now in zip(able, held, strict=True)
        if answered(now) and now & PM_POWER_STATE
    )
    if asleep:
        yield Do(asleep)
        yield Pause(timing.PM_D3HOT_TO_D0, "power state")


def _power_control(known: Known) -> int | None:
    """Return where PM Control/Status is, if the function has it and was in D0."""
    at = known.function.capabilities.power_management + PM_CONTROL.offset
    was = next((one.value for one in known.saved.registers if (one.offset, one.width) == (at, PM_CONTROL.width)), None)
    return None if was is None or was & PM_POWER_STATE else at


def restore(functions: tuple[Known, ...]) -> Logic[None]:
    """Write back what differs, function by function, each in the order of its saved registers.

    Whoever calls has identified every one of `functions` before (DESIGN 4): this writes.
    """
    for _ in range(RESTORE_TRIES):
        wanted = tuple((known, register) for known in functions for register in _restorable(known))
        reads = tuple(read(known.saved.address, register.offset, register.width) for known, register in wanted)
        if not reads:
            return
        held = yield from ask(reads)
        writes = _corrections(wanted, held)
        if not writes:
            return
        yield Do(writes)


def _restorable(known: Known) -> tuple[SavedRegister, ...]:
    """Return the saved registers that this lease may write."""
    if not known.firmware_owned:
        return known.saved.registers
    return tuple(one for one in known.saved.registers if not is_firmwares(known.function, one.offset, one.width))


def is_firmwares(function: Function, offset: int, width: int) -> bool:
    """Tell whether an access touches the AER or DPC capability: the firmware's, on a host that is firmware first."""
    caps, root = function.capabilities, function.kind.receives_errors
    tables = ((caps.aer, AER_ROOT if root else AER), (caps.dpc, DPC_ROOT if root else DPC))
    return any(base and offset < base + _size(table) and base < offset + width for base, table in tables)


def _size(table: tuple[Register, ...]) -> int:
    return max(register.offset + register.width for register in table)


def _corrections(wanted: tuple[tuple[Known, SavedRegister], ...], held: tuple[Value, ...]) -> tuple[Operation, ...]:
    """Return the writes of the registers that do not hold what they should. No answer is no reason to write (P9)."""
    return tuple(
        write(known.saved.address, register.offset, register.width, value)
        for (known, register), now in zip(wanted, held, strict=True)
        if answered(now)
        and (now ^ (value := _kept_down(known, register, now, restored_value(known, register))))
        & _writable(known.function, register)
    )


def _kept_down(known: Known, register: SavedRegister, now: int, value: int) -> int:
    """Return `value`, with Link Disable as it is now where a quarantine may rest on it."""
    if not known.quarantined or register.offset != known.function.capabilities.express + LINK_CONTROL.offset:
        return value
    bit = int(LinkControl.LINK_DISABLE)
    return (value & ~bit) | (now & bit)


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
        # First, so that what stands behind the BARs that a function does not have counts instead.
        (capabilities.resizable_bar, RESIZABLE_BAR_CONTROL),
        (0, TYPE1 if is_bridge else TYPE0),
        (capabilities.power_management, POWER_MANAGEMENT),
        (capabilities.msi, (*MSI, MSI_DATA_32)),
        (capabilities.express, EXPRESS),
        (capabilities.aer, AER_ROOT),
        (capabilities.dpc, DPC_ROOT),
        (capabilities.msi_x, MSI_X),
        (capabilities.acs, ACS),
        (capabilities.ari, ARI),
        (capabilities.ltr, LTR),
        (capabilities.sriov, SRIOV),
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
    if known.quiet is not None:
        value &= ~silenced(known.function, known.quiet, register)
    if known.slot is None:
        return int(value)
    if register.offset == capabilities.express + SLOT_CONTROL.offset:
        value &= ~SLOT_MASKED
    masks_surprise_down = known.slot.surprise_down_masked is not None
    if masks_surprise_down and register.offset == capabilities.aer + UNCORRECTABLE_MASK.offset:
        value |= Uncorrectable.SURPRISE_DOWN
    return int(value)
