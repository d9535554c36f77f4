"""What a port's DPC registers say, and what follows: pure functions over one read.

Surprise Down is no shortcut here, as it is in the kernel: that bit does not tell a pulled card from a dead link, and
in-band presence says nothing while the port is contained. So every containment is recovered; the recovery releases it
and sees whether anybody is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Final

import msgspec

from shared.pcie import Address, ErrorRegisters, Function, Topology, Value, aer_reads, answered, decode_aer
from shared.pcie.errors import dpc_reason
from shared.pcie.registers import (
    DPC_CAPABILITIES,
    DPC_RP_PIO_FIRST_ERROR,
    DPC_RP_PIO_FIRST_ERROR_SHIFT,
    DPC_SOURCE,
    DPC_STATUS,
    RP_PIO_EXCEPTION,
    RP_PIO_HEADER_LOG,
    RP_PIO_MASK,
    RP_PIO_SEVERITY,
    RP_PIO_STATUS,
    RP_PIO_SYSERROR,
    DeviceType,
    DpcCapabilities,
    DpcReason,
    DpcStatus,
)
from shared.protocol.fabric import LeaseList, Operation
from shared.recovery import read

_DPC: Final = (DPC_CAPABILITIES, DPC_STATUS, DPC_SOURCE)
_RP_PIO: Final = (RP_PIO_STATUS, RP_PIO_MASK, RP_PIO_SEVERITY, RP_PIO_SYSERROR, RP_PIO_EXCEPTION)
_MESSAGES: Final = (DpcReason.ERR_FATAL, DpcReason.ERR_NONFATAL)


class RpPio(msgspec.Struct, frozen=True):
    """Root Port Programmed I/O errors (§7.9.14.6 and following)."""

    status: int
    mask: int
    severity: int
    syserror: int
    exception: int
    first: int
    header: tuple[int, ...]


class Containment(msgspec.Struct, frozen=True):
    """A port's DPC registers, all read in one step, with its AER registers where it has them."""

    port: Address
    status: int
    source_id: int
    rp_pio: RpPio | None  # None: not a root port with RP extensions
    errors: ErrorRegisters | None
    above: bool  # a port above is contained

    @property
    def triggered(self) -> bool:
        """The link is held down."""
        return bool(self.status & DpcStatus.TRIGGER)

    @property
    def reason(self) -> DpcReason | None:
        """Why; None for a reserved code, and while nothing is triggered: then the field is what it was last (§7.9.14.4)."""
        return dpc_reason(self.status) if self.triggered else None

    @property
    def source(self) -> Address:
        """Who is to blame: the sender of the message that triggered, else the port itself (§7.9.14.5)."""
        return self.port.with_requester_id(self.source_id) if self.reason in _MESSAGES else self.port


def contained_above(topology: Topology, port: Address, handed_over: Sequence[Address] = ()) -> tuple[Function, ...]:
    """Return the ports above that could be contained, and whose registers may be read.

    On a firmware-first host these are the ports that the firmware has `handed_over`.
    """
    return tuple(
        bridge
        for bridge in topology.ancestors(port)
        if bridge.is_port and bridge.capabilities.dpc and (not topology.firmware_first or bridge.address in handed_over)
    )


def reads(port: Function, above: Sequence[Function]) -> tuple[Operation, ...]:
    """Return every read that `decode` wants: the port's DPC and AER registers, and the DPC status of those above."""
    dpc = port.capabilities.dpc
    registers = (*_DPC, *(() if port.kind is not DeviceType.ROOT_PORT else (*_RP_PIO, *RP_PIO_HEADER_LOG)))
    return (
        *(read(port.address, dpc + register.offset, register.width) for register in registers),
        *(read(port.address, offset, width) for offset, width in aer_reads(port)),
        *(read(bridge.address, bridge.capabilities.dpc + DPC_STATUS.offset, DPC_STATUS.width) for bridge in above),
    )


def decode(port: Function, values: Sequence[Value]) -> Containment | None:
    """Read the values of `reads`. None: the port does not answer, which says nothing about it (P9)."""
    capabilities, status, source = values[: len(_DPC)]
    if not answered(capabilities) or not answered(status):
        return None
    rest = values[len(_DPC) :]
    rp_pio = None
    if port.kind is DeviceType.ROOT_PORT:
        length = len(_RP_PIO) + len(RP_PIO_HEADER_LOG)
        if capabilities & DpcCapabilities.RP_EXTENSIONS:
            rp_pio = _decode_rp_pio(status, rest[:length])
        rest = rest[length:]
    length = len(aer_reads(port))
    return Containment(
        port=port.address,
        status=status,
        source_id=source if answered(source) else 0xFFFF,
        rp_pio=rp_pio,
        errors=decode_aer(port, rest[:length]),
        above=any(answered(value) and bool(value & DpcStatus.TRIGGER) for value in rest[length:]),
    )


def unread(port: Address) -> Containment:
    """Return what is known of a port that does not answer, and that the firmware has handed over all the same."""
    return Containment(port=port, status=0, source_id=0, rp_pio=None, errors=None, above=False)


def _decode_rp_pio(dpc_status: int, values: Sequence[Value]) -> RpPio:
    # The port has answered: a log of all ones is what was logged.
    numbers = [value if answered(value) else 0xFFFF_FFFF for value in values]
    status, mask, severity, syserror, exception = numbers[: len(_RP_PIO)]
    return RpPio(
        status=status,
        mask=mask,
        severity=severity,
        syserror=syserror,
        exception=exception,
        first=(dpc_status & DPC_RP_PIO_FIRST_ERROR) >> DPC_RP_PIO_FIRST_ERROR_SHIFT,
        header=tuple(numbers[len(_RP_PIO) :]),
    )


class Progress(StrEnum):
    """How far the recovery is that was accepted for this containment."""

    NOT_ASKED = "not_asked"
    UNDER_WAY = "under_way"  # its lease, or the one that absorbed it, is open
    ENDED = "ended"
    UNKNOWN = "unknown"  # not opened yet, or ended so long ago that the fabric has forgotten


def progress(lease: str | None, listed: LeaseList) -> Progress:
    """Follow a lease through those that absorbed it."""
    if lease is None:
        return Progress.NOT_ASKED
    heirs = {retired.lease.id: retired.absorbed_by for retired in listed.retired}
    open_ids = {each.id for each in listed.leases}
    seen: set[str] = set()
    current: str | None = lease
    while current is not None and current not in open_ids:
        if current not in heirs or current in seen:
            return Progress.UNKNOWN
        seen.add(current)
        current = heirs[current]
    return Progress.ENDED if current is None else Progress.UNDER_WAY


def quarantined(topology: Topology, port: Address, listed: LeaseList) -> bool:
    """Tell whether the port, or one above it, is in quarantine."""
    above = topology.path(port)
    return any(quarantine.port in above for quarantine in listed.quarantines)


class Standing(msgspec.Struct, frozen=True):
    """What the fabric says of a port: of its leases, its quarantine, and of what the firmware has handed over."""

    how_far: Progress = Progress.NOT_ASKED
    quarantined: bool = False
    handed_over: bool = False  # firmware first: the EDR event of the port is open


class Verdict(StrEnum):
    """What follows from a read."""

    NOTHING = "nothing"
    SPURIOUS = "spurious"  # an interrupt without containment: said once
    QUARANTINED = "quarantined"  # it is contained for good: said once
    RECOVER = "recover"
    WAIT = "wait"


# None: either will do. Exactly one row matches. Due: contained; or handed over by the firmware, contained or not.
# due, interrupt, above, quarantined, progress -> verdict
TABLE: Final[tuple[tuple[bool, bool | None, bool | None, bool | None, Progress | None, Verdict], ...]] = (
    (False, False, None, None, None, Verdict.NOTHING),
    (False, True, None, None, None, Verdict.SPURIOUS),
    (True, None, True, None, None, Verdict.WAIT),  # the recovery above releases every trigger below it
    (True, None, False, True, None, Verdict.QUARANTINED),
    (True, None, False, False, Progress.NOT_ASKED, Verdict.RECOVER),
    (True, None, False, False, Progress.UNDER_WAY, Verdict.WAIT),
    (True, None, False, False, Progress.ENDED, Verdict.RECOVER),  # it failed, or the port has triggered anew
    (True, None, False, False, Progress.UNKNOWN, Verdict.RECOVER),  # asking again joins what is under way
)


def judge(containment: Containment, standing: Standing) -> Verdict:
    """Return the verdict of the one row that matches."""
    facts = (
        containment.triggered or standing.handed_over,
        bool(containment.status & DpcStatus.INTERRUPT),
        containment.above,
        standing.quarantined,
        standing.how_far,
    )
    matches = [
        row[-1] for row in TABLE if all(cell is None or cell == fact for cell, fact in zip(row, facts, strict=False))
    ]
    assert len(matches) == 1
    return matches[0]
