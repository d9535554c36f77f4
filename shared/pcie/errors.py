"""Errors by the names that the kernel prints (drivers/pci/pcie/aer.c), and the judgements that hang on them."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec

from .registers import (
    DPC_REASON,
    DPC_REASON_EXTENSION,
    DPC_REASON_EXTENSION_SHIFT,
    DPC_REASON_SHIFT,
    Correctable,
    DpcReason,
    Uncorrectable,
)

UNCORRECTABLE_NAMES: Final[dict[Uncorrectable, str]] = {
    Uncorrectable.UNDEFINED: "Undefined",
    Uncorrectable.DATA_LINK_PROTOCOL: "DLP",
    Uncorrectable.SURPRISE_DOWN: "SDES",
    Uncorrectable.POISONED_TLP: "TLP",
    Uncorrectable.FLOW_CONTROL_PROTOCOL: "FCP",
    Uncorrectable.COMPLETION_TIMEOUT: "CmpltTO",
    Uncorrectable.COMPLETER_ABORT: "CmpltAbrt",
    Uncorrectable.UNEXPECTED_COMPLETION: "UnxCmplt",
    Uncorrectable.RECEIVER_OVERFLOW: "RxOF",
    Uncorrectable.MALFORMED_TLP: "MalfTLP",
    Uncorrectable.ECRC: "ECRC",
    Uncorrectable.UNSUPPORTED_REQUEST: "UnsupReq",
    Uncorrectable.ACS_VIOLATION: "ACSViol",
    Uncorrectable.INTERNAL: "UncorrIntErr",
    Uncorrectable.BLOCKED_TLP: "BlockedTLP",
    Uncorrectable.ATOMIC_OP_EGRESS_BLOCKED: "AtomicOpBlocked",
    Uncorrectable.TLP_PREFIX_BLOCKED: "TLPBlockedErr",
    Uncorrectable.POISONED_TLP_EGRESS_BLOCKED: "PoisonTLPBlocked",
    Uncorrectable.DMWR_EGRESS_BLOCKED: "DMWrReqBlocked",
    Uncorrectable.IDE_CHECK_FAILED: "IDECheck",
    Uncorrectable.MISROUTED_IDE_TLP: "MisIDETLP",
    Uncorrectable.PCRC_CHECK_FAILED: "PCRC_CHECK",
    Uncorrectable.TLP_TRANSLATION_BLOCKED: "TLPXlatBlocked",
}

CORRECTABLE_NAMES: Final[dict[Correctable, str]] = {
    Correctable.RECEIVER_ERROR: "RxErr",
    Correctable.BAD_TLP: "BadTLP",
    Correctable.BAD_DLLP: "BadDLLP",
    Correctable.REPLAY_ROLLOVER: "Rollover",
    Correctable.REPLAY_TIMEOUT: "Timeout",
    Correctable.ADVISORY_NONFATAL: "NonFatalErr",
    Correctable.INTERNAL: "CorrIntErr",
    Correctable.HEADER_LOG_OVERFLOW: "HeaderOF",
}

# What a reset provokes by itself (DESIGN 5, aer): found set during a lease, these are no new cause.
PROVOKED_UNCORRECTABLE: Final = (
    Uncorrectable.SURPRISE_DOWN
    | Uncorrectable.COMPLETION_TIMEOUT
    | Uncorrectable.UNSUPPORTED_REQUEST
    | Uncorrectable.UNEXPECTED_COMPLETION
)
PROVOKED_CORRECTABLE: Final = (
    Correctable.RECEIVER_ERROR
    | Correctable.BAD_TLP
    | Correctable.BAD_DLLP
    | Correctable.REPLAY_ROLLOVER
    | Correctable.REPLAY_TIMEOUT
)

_PHYSICAL: Final = int(Correctable.RECEIVER_ERROR)
_DATA_LINK_COR: Final = int(
    Correctable.BAD_TLP | Correctable.BAD_DLLP | Correctable.REPLAY_ROLLOVER | Correctable.REPLAY_TIMEOUT
)
_DATA_LINK_UNCOR: Final = int(Uncorrectable.DATA_LINK_PROTOCOL)  # the kernel prints SDES as Transaction Layer


class Severity(StrEnum):
    """What an error message says (PCIe r6.2 §6.2.2)."""

    CORRECTABLE = "correctable"
    NONFATAL = "nonfatal"
    FATAL = "fatal"


class ErrorReport(msgspec.Struct, frozen=True):
    """One function's errors, decoded: `status` holds the unmasked bits, `first` the name the first-error pointer says.

    `header` is the logged TLP header, four doublewords, where the first error logs one.
    """

    severity: Severity
    status: int
    mask: int
    names: tuple[str, ...]
    first: str | None = None
    header: tuple[int, ...] | None = None

    @property
    def layer(self) -> str:
        """Return the layer as the kernel prints it (AER_GET_LAYER_ERROR)."""
        if self.severity is Severity.CORRECTABLE:
            if self.status & _PHYSICAL:
                return "Physical Layer"
            return "Data Link Layer" if self.status & _DATA_LINK_COR else "Transaction Layer"
        return "Data Link Layer" if self.status & _DATA_LINK_UNCOR else "Transaction Layer"


def uncorrectable_names(status: int) -> tuple[str, ...]:
    """Return the kernel's short names of all set bits, lowest bit first; `Bit n` for a bit without a name."""
    names = {int(bit): name for bit, name in UNCORRECTABLE_NAMES.items()}
    return _named(status, names)


def correctable_names(status: int) -> tuple[str, ...]:
    """Return the kernel's short names of all set bits, lowest bit first; `Bit n` for a bit without a name."""
    names = {int(bit): name for bit, name in CORRECTABLE_NAMES.items()}
    return _named(status, names)


def _named(status: int, names: dict[int, str]) -> tuple[str, ...]:
    return tuple(names.get(1 << bit, f"Bit {bit}") for bit in range(32) if status >> bit & 1)


def decode_uncorrectable(
    status: int, mask: int, severity: int, first: int, header: tuple[int, ...]
) -> tuple[ErrorReport, ...]:
    """Split a function's unmasked uncorrectable errors by severity: fatal first, either may be missing (§6.2.3.2)."""
    reports = []
    for kind, bits in ((Severity.FATAL, status & ~mask & severity), (Severity.NONFATAL, status & ~mask & ~severity)):
        if bits:
            leads = bool(bits >> first & 1)
            reports.append(
                ErrorReport(
                    severity=kind,
                    status=bits,
                    mask=mask,
                    names=uncorrectable_names(bits),
                    first=uncorrectable_names(1 << first)[0] if leads else None,
                    header=header if leads and any(header) else None,
                )
            )
    return tuple(reports)


def decode_correctable(status: int, mask: int) -> ErrorReport | None:
    """Decode a function's unmasked correctable errors; None where there is none."""
    bits = status & ~mask
    if not bits:
        return None
    return ErrorReport(severity=Severity.CORRECTABLE, status=bits, mask=mask, names=correctable_names(bits))


def dpc_reason(status: int) -> DpcReason | None:
    """Return why containment was triggered (§7.9.14.4); None for a reserved code."""
    reason = (status & DPC_REASON) >> DPC_REASON_SHIFT
    extension = (status & DPC_REASON_EXTENSION) >> DPC_REASON_EXTENSION_SHIFT
    if reason < DpcReason.RP_PIO:
        return DpcReason(reason)
    return DpcReason(DpcReason.RP_PIO + extension) if extension <= 1 else None
