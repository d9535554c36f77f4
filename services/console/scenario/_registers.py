"""Registers by name, as a scenario spells them: `slot_control`, with the names of its bits."""

from __future__ import annotations

from enum import IntFlag
from typing import Final

from shared.pcie import Function
from shared.pcie import registers as reg

# Where the base of a register's table is found in a function's capabilities; header registers need none.
_TABLES: Final[tuple[tuple[str, tuple[reg.Register, ...]], ...]] = (
    ("", (*reg.TYPE0, *reg.TYPE1)),
    ("express", reg.EXPRESS),
    ("power_management", reg.POWER_MANAGEMENT),
    ("msi", reg.MSI),
    ("aer", reg.AER_ROOT),
    ("dpc", reg.DPC_ROOT),
    ("serial_number", reg.SERIAL_NUMBER),
)
_BITS: Final[dict[str, type[IntFlag]]] = {
    "uncorrectable_status": reg.Uncorrectable,
    "uncorrectable_mask": reg.Uncorrectable,
    "uncorrectable_severity": reg.Uncorrectable,
    "correctable_status": reg.Correctable,
    "correctable_mask": reg.Correctable,
}
_CONSTANTS: Final = {
    name.lower(): value for name, value in vars(reg).items() if name.isupper() and isinstance(value, reg.Register)
}
NAMES: Final = {
    name: (capability, register)
    for name, register in _CONSTANTS.items()
    for capability, table in _TABLES
    if register in table
}


def bits(register: str) -> dict[str, int]:
    """Return the bits of a register by their names in lower case; none where it has no names."""
    flags = _BITS.get(register) or getattr(reg, "".join(part.capitalize() for part in register.split("_")), None)
    if not isinstance(flags, type) or not issubclass(flags, IntFlag):
        return {}
    return {bit.name.lower(): int(bit) for bit in flags if bit.name is not None}


def place(function: Function, register: str) -> tuple[int, int] | None:
    """Return offset and width of a register in a function's config space; None where the function has none."""
    capability, row = NAMES[register]
    base = int(getattr(function.capabilities, capability)) if capability else 0
    return None if capability and not base else (base + row.offset, row.width)
