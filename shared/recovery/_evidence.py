"""Error status after a reset: what could not be read while the link was down is read now, published, and cleared.

"No evidence is cleared before its lease is open" (DESIGN 4), and none is cleared unread. Cleared are the errors that
the lease was opened over, and those that a reset provokes by itself. Whatever else appeared during the lease is left
where it is: it is a new cause, and its reporter will ask for a recovery of its own.
"""

from __future__ import annotations

from itertools import chain
from typing import Any, Final

from shared.pcie import ErrorRegisters, aer_reads, decode_aer
from shared.pcie.errors import PROVOKED_CORRECTABLE, PROVOKED_UNCORRECTABLE, correctable_names, uncorrectable_names
from shared.pcie.registers import (
    CORRECTABLE_STATUS,
    DEVICE_STATUS,
    RP_PIO_STATUS,
    UNCORRECTABLE_STATUS,
    DeviceStatus,
)
from shared.protocol.fabric import Operation

from ._effects import Do, Logic, Note, Step, ask, read, write
from ._restore import Known

_EVERY_BIT: Final = 0xFFFF_FFFF
# Correctable Detected is left to aer, like the correctable errors themselves.
_UNCORRECTABLE_DETECTED: Final = int(
    DeviceStatus.NONFATAL_DETECTED | DeviceStatus.FATAL_DETECTED | DeviceStatus.UNSUPPORTED_REQUEST_DETECTED
)


def settle_errors(functions: tuple[Known, ...], *, rp_pio: tuple[Known, ...] = ()) -> Logic[None]:
    """Read the error status of `functions`, note what is found, then clear what this lease may clear.

    `rp_pio` are those root ports among them that log RP PIO errors.
    """
    asked = [aer_reads(known.function) for known in functions]
    reads = [
        read(known.saved.address, offset, width)
        for known, registers in zip(functions, asked, strict=True)
        for offset, width in registers
    ]
    reads += [
        read(known.saved.address, known.function.capabilities.dpc + RP_PIO_STATUS.offset, RP_PIO_STATUS.width)
        for known in rp_pio
    ]
    held = yield from ask(reads)
    found: list[tuple[Known, ErrorRegisters]] = []
    start = 0
    for known, registers in zip(functions, asked, strict=True):
        errors = decode_aer(known.function, held[start : start + len(registers)])
        start += len(registers)
        if errors is not None:
            found.append((known, errors))
    told = {str(known.saved.address): _story(known, errors) for known, errors in found if _any_error(errors)}
    yield Note(Step.ERRORS, {"errors": told} if told else {})
    clears = list(chain.from_iterable(_clears(known, errors) for known, errors in found))
    for known, value in zip(rp_pio, held[start:], strict=True):
        if isinstance(value, int) and value:
            offset = known.function.capabilities.dpc + RP_PIO_STATUS.offset
            clears.append(write(known.saved.address, offset, RP_PIO_STATUS.width, value))
    if clears:
        yield Do(tuple(clears))


def ours_to_clear(known: Known, errors: ErrorRegisters) -> tuple[int, int]:
    """Return the uncorrectable and the correctable bits to clear.

    Uncorrectable: those seen at open (all, if the function did not answer then), and those that a reset provokes.
    Correctable: only those that appeared since and that a reset provokes; older ones are aer's to count and clear.
    """
    original = _EVERY_BIT if known.saved.uncorrectable is None else known.saved.uncorrectable
    uncorrectable = errors.uncorrectable_status & (original | PROVOKED_UNCORRECTABLE)
    correctable = errors.correctable_status & PROVOKED_CORRECTABLE & ~(known.saved.correctable or 0)
    return int(uncorrectable), int(correctable)


def _any_error(errors: ErrorRegisters) -> bool:
    return bool(errors.uncorrectable_status or errors.correctable_status)


def _story(known: Known, errors: ErrorRegisters) -> dict[str, Any]:
    uncorrectable, correctable = ours_to_clear(known, errors)
    return {
        "uncorrectable": errors.uncorrectable_status,
        "correctable": errors.correctable_status,
        "names": [
            *uncorrectable_names(errors.uncorrectable_status),
            *correctable_names(errors.correctable_status),
        ],
        "reports": [
            {
                "severity": report.severity.value,
                "names": list(report.names),
                "first": report.first,
                "header": list(report.header) if report.header is not None else None,
            }
            for report in errors.uncorrectable
        ],
        "cleared": {"uncorrectable": uncorrectable, "correctable": correctable},
    }


def _clears(known: Known, errors: ErrorRegisters) -> tuple[Operation, ...]:
    """Return the writes of one to each bit to clear (RW1C), and to no other."""
    capabilities = known.function.capabilities
    uncorrectable, correctable = ours_to_clear(known, errors)
    bits = (
        (capabilities.aer + UNCORRECTABLE_STATUS.offset, UNCORRECTABLE_STATUS.width, uncorrectable),
        (capabilities.aer + CORRECTABLE_STATUS.offset, CORRECTABLE_STATUS.width, correctable),
        (
            capabilities.express + DEVICE_STATUS.offset,
            DEVICE_STATUS.width,
            errors.device_status & _UNCORRECTABLE_DETECTED if uncorrectable == errors.uncorrectable_status else 0,
        ),
    )
    return tuple(write(known.saved.address, offset, width, value) for offset, width, value in bits if value)
