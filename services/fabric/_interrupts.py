"""Interrupts: which services share the vector, and what their registers held. A hint for whoever is woken (P9). Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from shared.pcie import Function, Value, answered
from shared.pcie import registers as reg
from shared.protocol.fabric import Operation
from shared.protocol.facts import Interrupt
from shared.recovery import read

HOTPLUG: Final = "hotplug"
AER: Final = "aer"
DPC: Final = "dpc"


def sharing(function: Function, vector: int) -> tuple[str, ...]:
    """Return the services of a port whose interrupts arrive on this vector."""
    return tuple(service for service, number in _vectors(function) if number == vector)


def vectors(function: Function) -> tuple[int, ...]:
    """Return the vectors on which a port has something to say to a service, each once."""
    return tuple(dict.fromkeys(number for _, number in _vectors(function)))


def _vectors(function: Function) -> Iterator[tuple[str, int]]:
    if function.hotplug_capable:
        yield HOTPLUG, function.vectors.hotplug
    if function.capabilities.aer and function.kind.receives_errors:
        yield AER, function.vectors.aer
    if function.capabilities.dpc:
        yield DPC, function.vectors.dpc


def snapshot_reads(function: Function) -> dict[str, Operation]:
    """Return the reads that make an interrupt's snapshot, by the register's name."""
    caps = function.capabilities
    rows: list[tuple[str, reg.Register, int]] = []
    if function.slot is not None:
        rows += [("slot_control", reg.SLOT_CONTROL, caps.express), ("slot_status", reg.SLOT_STATUS, caps.express)]
    if caps.express:
        rows += [("link_status", reg.LINK_STATUS, caps.express)]
    if caps.aer and function.kind.receives_errors:
        rows += [("root_error_status", reg.ROOT_ERROR_STATUS, caps.aer), ("error_source", reg.ERROR_SOURCE, caps.aer)]
    if caps.dpc:
        rows += [("dpc_control", reg.DPC_CONTROL, caps.dpc), ("dpc_status", reg.DPC_STATUS, caps.dpc)]
        rows += [("dpc_source", reg.DPC_SOURCE, caps.dpc)]
    return {name: read(function.address, base + row.offset, row.width) for name, row, base in rows}


def interrupt(function: Function, held: dict[str, Value], *, edr: bool = False) -> Interrupt:
    """Return the hint; a register that did not answer is None. `edr`: it is the firmware's, in place of DPC's own."""
    return Interrupt(
        port=function.address,
        edr=edr,
        registers={name: value if answered(value) else None for name, value in held.items()},
    )
