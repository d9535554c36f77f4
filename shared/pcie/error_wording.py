"""Errors in the words of the kernel's log (drivers/pci/pcie/aer.c and dpc.c), so that known searches find ours too.

Each line goes after `<driver> DDDD:BB:DD.F: `.
"""

from __future__ import annotations

from typing import Any, Final

from ._address import Address
from ._error_registers import ErrorRegisters
from ._topology import Function
from .errors import ErrorReport, Severity, correctable_names, dpc_reason, uncorrectable_names
from .registers import Correctable, DpcReason, Uncorrectable

SEVERITY_TEXT: Final[dict[Severity, str]] = {
    Severity.CORRECTABLE: "Correctable",
    Severity.NONFATAL: "Uncorrectable (Non-Fatal)",
    Severity.FATAL: "Uncorrectable (Fatal)",
}
_REQUESTER: Final = Uncorrectable.COMPLETION_TIMEOUT | Uncorrectable.UNSUPPORTED_REQUEST
_TRANSMITTER: Final = Correctable.REPLAY_ROLLOVER | Correctable.REPLAY_TIMEOUT

# Bits of RP PIO Status (§7.9.14.6) as the kernel words them (rp_pio_error_string).
RP_PIO_TEXT: Final[dict[int, str]] = {
    0: "Configuration Request received UR Completion",
    1: "Configuration Request received CA Completion",
    2: "Configuration Request Completion Timeout",
    8: "I/O Request received UR Completion",
    9: "I/O Request received CA Completion",
    10: "I/O Request Completion Timeout",
    16: "Memory Request received UR Completion",
    17: "Memory Request received CA Completion",
    18: "Memory Request Completion Timeout",
}

_DPC_TEXT: Final[dict[DpcReason | None, str]] = {
    DpcReason.UNCORRECTABLE: "unmasked uncorrectable error",
    DpcReason.RP_PIO: "RP PIO error",
    DpcReason.SOFTWARE: "software trigger",
    None: "reserved error",
}
_DPC_MESSAGE: Final[dict[DpcReason | None, str]] = {
    DpcReason.ERR_NONFATAL: "ERR_NONFATAL",
    DpcReason.ERR_FATAL: "ERR_FATAL",
}


def agent(report: ErrorReport) -> str:
    """Return whose fault the kernel says it is (AER_GET_AGENT)."""
    if report.severity is Severity.CORRECTABLE:
        return "Transmitter" if report.status & _TRANSMITTER else "Receiver"
    if report.status & Uncorrectable.COMPLETER_ABORT:
        return "Completer"
    return "Requester" if report.status & _REQUESTER else "Receiver"


def message_received(severity: Severity, source: Address, *, multiple: bool, found: bool) -> str:
    """Word the arrival of an error message at a root port (aer_print_source)."""
    # The kernel forgets to close the parenthesis; a search for its text must find ours.
    details = "" if found else " (no details found"
    return (
        f"AER: {'Multiple ' if multiple else ''}{SEVERITY_TEXT[severity]} error message received from {source}{details}"
    )


def particulars(report: ErrorReport) -> dict[str, Any]:
    """Return what a fact about an error tells of it, beside the kernel's words."""
    return {
        "status": report.status,
        "mask": report.mask,
        "names": report.names,
        "layer": report.layer,
        "agent": agent(report),
        "first": report.first,
        "header": report.header,
    }


def bus_error(function: Function, errors: ErrorRegisters, report: ErrorReport) -> tuple[str, ...]:
    """Word one function's errors of one severity (aer_print_error)."""
    correctable = report.severity is Severity.CORRECTABLE
    status = errors.correctable_status if correctable else errors.uncorrectable_status
    mask = errors.correctable_mask if correctable else errors.uncorrectable_mask
    identity = function.identity
    lines = [
        f"PCIe Bus Error: severity={SEVERITY_TEXT[report.severity]}, type={report.layer}, ({agent(report)} ID)",
        f"  device [{identity.vendor:04x}:{identity.device:04x}] error status/mask={status:08x}/{mask:08x}",
    ]
    names = correctable_names if correctable else uncorrectable_names
    for bit in range(report.status.bit_length()):
        if report.status >> bit & 1:
            name = names(1 << bit)[0]
            lines.append(f"   [{bit:2d}] {name:<22}{' (First)' if name == report.first else ''}".rstrip())
    if report.header is not None:
        lines.append("AER:   TLP Header: " + " ".join(f"0x{word:08x}" for word in report.header))
    return tuple(lines)


def inaccessible(severity: Severity) -> str:
    """Word an error whose function does not answer (aer_print_error without status)."""
    return f"AER: PCIe Bus Error: severity={SEVERITY_TEXT[severity]}, type=Inaccessible, (Unregistered Agent ID)"


def containment(status: int, source: Address) -> str:
    """Word a containment event: DPC Status, and the source where a message triggered it (dpc_process_error)."""
    reason = dpc_reason(status)
    message = _DPC_MESSAGE.get(reason)
    if message is not None:
        return f"DPC: containment event, status:0x{status:04x}, {message} received from {source}"
    return f"DPC: containment event, status:0x{status:04x}: {_DPC_TEXT[reason]} detected"


def rp_pio(
    status: int, mask: int, severity: int, syserror: int, exception: int, first: int, header: tuple[int, ...]
) -> tuple[str, ...]:
    """Word the RP PIO registers of a contained root port (dpc_process_rp_pio_error)."""
    lines = [
        f"DPC: rp_pio_status: 0x{status:08x}, rp_pio_mask: 0x{mask:08x}",
        f"DPC: RP PIO severity=0x{severity:08x}, syserror=0x{syserror:08x}, exception=0x{exception:08x}",
    ]
    lines += [
        f"DPC: [{bit:2d}] {text}{' (First)' if bit == first else ''}"
        for bit, text in RP_PIO_TEXT.items()
        if status & ~mask & 1 << bit
    ]
    if any(header):
        lines.append("DPC: TLP Header: " + " ".join(f"0x{word:08x}" for word in header))
    return tuple(lines)
