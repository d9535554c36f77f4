"""One function's AER registers: which ones to read, and what they say. Used by whoever reads errors (aer, dpc, ...)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from ._address import Address
from ._answer import Value, all_ones, answered
from ._topology import Function
from .errors import ErrorReport, decode_correctable, decode_uncorrectable
from .registers import (
    AER_CONTROL,
    CORRECTABLE_MASK,
    CORRECTABLE_STATUS,
    DEVICE_STATUS,
    FIRST_ERROR_POINTER,
    HEADER_LOG,
    UNCORRECTABLE_MASK,
    UNCORRECTABLE_SEVERITY,
    UNCORRECTABLE_STATUS,
)

_DECIDING: Final = (
    UNCORRECTABLE_STATUS, UNCORRECTABLE_MASK, UNCORRECTABLE_SEVERITY, CORRECTABLE_STATUS, CORRECTABLE_MASK, AER_CONTROL,
)  # fmt: skip
# A logged TLP may hold a doubleword of all ones, so these do not tell whether the function answers.
_LOG: Final = HEADER_LOG


class ErrorRegisters(msgspec.Struct, frozen=True):
    """What one function's error registers held, all read in one step.

    `first` is the first-error pointer (meaningful only while the bit it names is set), `header` the logged TLP header.
    """

    function: Address
    uncorrectable_status: int = 0
    uncorrectable_mask: int = 0
    uncorrectable_severity: int = 0
    correctable_status: int = 0
    correctable_mask: int = 0
    device_status: int = 0
    first: int = 0
    header: tuple[int, ...] = ()

    @property
    def correctable(self) -> ErrorReport | None:
        """The unmasked correctable errors, decoded; None where there is none."""
        return decode_correctable(self.correctable_status, self.correctable_mask)

    @property
    def uncorrectable(self) -> tuple[ErrorReport, ...]:
        """The unmasked uncorrectable errors, decoded: at most one report for each severity, fatal first."""
        return decode_uncorrectable(
            self.uncorrectable_status, self.uncorrectable_mask, self.uncorrectable_severity, self.first, self.header
        )


def aer_reads(function: Function) -> tuple[tuple[int, int], ...]:
    """Return (offset, width) of every register that `decode_aer` wants; empty for a function without AER."""
    capabilities = function.capabilities
    if not capabilities.aer:
        return ()
    reads = [(capabilities.aer + register.offset, register.width) for register in (*_DECIDING, *_LOG)]
    if capabilities.express:
        reads.append((capabilities.express + DEVICE_STATUS.offset, DEVICE_STATUS.width))
    return tuple(reads)


def decode_aer(function: Function, values: Sequence[Value]) -> ErrorRegisters | None:
    """Read the values of `aer_reads(function)`. None: no AER, or no answer, which is never an error (P9)."""
    if not function.capabilities.aer:
        return None
    assert len(values) == len(aer_reads(function))
    log_start, log_end = len(_DECIDING), len(_DECIDING) + len(_LOG)
    deciding = [value for value in values[:log_start] if answered(value)]
    device_status = [value for value in values[log_end:] if answered(value)]
    if len(deciding) < len(_DECIDING) or len(device_status) < len(values[log_end:]):
        return None
    status, mask, severity, correctable_status, correctable_mask, control = deciding
    return ErrorRegisters(
        function=function.address,
        uncorrectable_status=status,
        uncorrectable_mask=mask,
        uncorrectable_severity=severity,
        correctable_status=correctable_status,
        correctable_mask=correctable_mask,
        device_status=device_status[0] if device_status else 0,
        first=control & FIRST_ERROR_POINTER,
        header=tuple(
            value if answered(value) else all_ones(register.width)
            for value, register in zip(values[log_start:log_end], _LOG, strict=True)
        ),
    )
