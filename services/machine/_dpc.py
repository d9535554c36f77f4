"""Downstream Port Containment (§6.2.11): when it triggers, what it leaves in its registers, when it can be released."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from shared.pcie import registers as r
from shared.pcie.errors import Severity

from ._clock import Clock
from ._function import Block

_TRIGGER: Final = int(r.DpcStatus.TRIGGER)
_REASON: Final = r.DPC_REASON | r.DPC_REASON_EXTENSION | r.DPC_RP_PIO_FIRST_ERROR


@dataclass(frozen=True, slots=True)
class RpPioError:
    """What a root port's own request met: RP PIO status bits, and the header of the request."""

    status: int
    header: tuple[int, ...] = ()


def triggers(control: int, severity: Severity, *, received: bool) -> bool:
    """Tell whether an error contains: local ones of either severity, messages by Trigger Enable (DESIGN 5, dpc)."""
    enabled = control & (r.DpcControl.TRIGGER_ON_FATAL | r.DpcControl.TRIGGER_ON_NONFATAL)
    if not enabled or severity is Severity.CORRECTABLE:
        return False
    if received and severity is Severity.NONFATAL:
        return bool(control & r.DpcControl.TRIGGER_ON_NONFATAL)
    return True


def reason_bits(reason: r.DpcReason) -> int:
    """Return the reason and its extension as Status fields."""
    if reason < r.DpcReason.RP_PIO:
        return reason << r.DPC_REASON_SHIFT
    extension = reason - r.DpcReason.RP_PIO
    return r.DPC_REASON | extension << r.DPC_REASON_EXTENSION_SHIFT


class Containment:
    """The containment of one port. The port takes its link down while `active`."""

    def __init__(self, dpc: Block, rp_busy_s: float, clock: Clock) -> None:
        self._dpc = dpc
        self._rp_busy_s = rp_busy_s
        self._clock = clock

    @property
    def control(self) -> int:
        """DPC Control."""
        return self._dpc.get(r.DPC_CONTROL)

    @property
    def active(self) -> bool:
        """Whether the port is contained."""
        return bool(self._dpc.get(r.DPC_STATUS) & _TRIGGER)

    @property
    def busy(self) -> bool:
        """Whether the root port still cleans up: it must not be released yet."""
        return bool(self._dpc.get(r.DPC_STATUS) & r.DpcStatus.RP_BUSY)

    @property
    def software_can_trigger(self) -> bool:
        """Whether the software trigger works: only while containment is enabled (§7.9.14.3)."""
        return bool(self.control & (r.DpcControl.TRIGGER_ON_FATAL | r.DpcControl.TRIGGER_ON_NONFATAL))

    def enter(self, reason: r.DpcReason, source: int, rp_pio: RpPioError | None = None) -> bool:
        """Contain; False if the port is contained already, for then nothing changes."""
        if self.active:
            return False
        bits = r.DpcStatus.TRIGGER | reason_bits(reason)
        if self.control & r.DpcControl.INTERRUPT_ENABLE:
            bits |= r.DpcStatus.INTERRUPT
        if rp_pio is not None:
            self._dpc.latch(r.RP_PIO_STATUS, rp_pio.status)
            bits |= (rp_pio.status & -rp_pio.status).bit_length() - 1 << r.DPC_RP_PIO_FIRST_ERROR_SHIFT
            for register, value in zip(r.RP_PIO_HEADER_LOG, rp_pio.header, strict=False):
                self._dpc.put(register, value)
        if self._rp_busy_s > 0:
            bits |= r.DpcStatus.RP_BUSY
            self._clock.later(self._rp_busy_s, self._idle)
        self._dpc.drop(r.DPC_STATUS, _REASON)
        self._dpc.latch(r.DPC_STATUS, bits)
        self._dpc.put(r.DPC_SOURCE, source)
        return True

    def _idle(self) -> None:
        self._dpc.drop(r.DPC_STATUS, r.DpcStatus.RP_BUSY)
