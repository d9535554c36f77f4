"""Errors that are kept quiet under a lease: SERR and the reporting of fatal and non-fatal errors, of its port.

Masking Surprise Down is not enough for some servers: the firmware restarts them at any fatal message or SERR, and a
firmware reload provokes both. `hold --quiet-errors` asks for this; close sets again exactly the bits that were set.
"""

from __future__ import annotations

from typing import Final

from shared.pcie import Function
from shared.pcie.registers import (
    BRIDGE_CONTROL,
    COMMAND,
    DEVICE_CONTROL,
    BridgeControl,
    Command,
    DeviceControl,
    Register,
)
from shared.protocol.fabric import Operation, SavedRegister, SavedReporting

from ._effects import modify

_REPORTING: Final = int(DeviceControl.NONFATAL_REPORTING | DeviceControl.FATAL_REPORTING)


def quiet_registers(function: Function) -> tuple[tuple[Register, int, int], ...]:
    """Return what is silenced: register, offset and bits, in the order of the fields of SavedReporting."""
    rows = [(COMMAND, COMMAND.offset, int(Command.SERR))]
    if function.kind.is_bridge:
        rows.append((BRIDGE_CONTROL, BRIDGE_CONTROL.offset, int(BridgeControl.SERR)))
    if function.capabilities.express:
        rows.append((DEVICE_CONTROL, function.capabilities.express + DEVICE_CONTROL.offset, _REPORTING))
    return tuple(rows)


def found_reporting(function: Function, held: tuple[int, ...]) -> SavedReporting:
    """Return which of the bits were set, from the values of `quiet_registers` in their order."""
    found = {row: value & bits for (row, _, bits), value in zip(quiet_registers(function), held, strict=True)}
    return SavedReporting(
        function=function.address,
        command=found[COMMAND],
        bridge_control=found.get(BRIDGE_CONTROL, 0),
        device_control=found.get(DEVICE_CONTROL, 0),
    )


def reporting_bits(saved: SavedReporting, register: Register) -> int:
    """Return the bits of one of the registers that were found set."""
    return {COMMAND: saved.command, BRIDGE_CONTROL: saved.bridge_control, DEVICE_CONTROL: saved.device_control}[
        register
    ]


def silenced(function: Function, saved: SavedReporting, register: SavedRegister) -> int:
    """Return the bits of a saved register that stay clear as long as the lease is open."""
    return next(
        (
            reporting_bits(saved, row)
            for row, offset, _ in quiet_registers(function)
            if (offset, row.width) == (register.offset, register.width)
        ),
        0,
    )


def hush(function: Function, saved: SavedReporting) -> tuple[Operation, ...]:
    """Return the writes that silence what was found set."""
    return _writes(function, saved, on=False)


def speak(function: Function, saved: SavedReporting) -> tuple[Operation, ...]:
    """Return the writes that set again what was found set, and nothing else."""
    return _writes(function, saved, on=True)


def _writes(function: Function, saved: SavedReporting, *, on: bool) -> tuple[Operation, ...]:
    return tuple(
        modify(function.address, offset, register.width, mask=bits, value=bits if on else 0)
        for register, offset, _ in quiet_registers(function)
        if (bits := reporting_bits(saved, register))
    )
