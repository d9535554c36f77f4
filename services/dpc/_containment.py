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
        """Why; None for a reserved code. Means something only while triggered."""
        return dpc_reason(self.status)

    @property
    def source(self) -> Address:
        """Who is to blame: the sender of the message that triggered, else the port itself (§7.9.14.5)."""
        return self.port.with_requester_id(self.source_id) if self.reason in _MESSAGES else self.port


def contained_above(topology: Topology, port: Address) -> tuple[Function, ...]:
    """Return the ports above that could be contained."""
    return tuple(bridge for bridge in topology.ancestors(port) if bridge.is_port and bridge.capabilities.dpc)


def reads(topology: Topology, port: Function) -> tuple[Operation, ...]:
    """Return every read that `decode` wants: the port's DPC and AER registers, and the DPC status of those above."""
    dpc = port.capabilities.dpc
    registers = (*_DPC, *(() if port.kind is not DeviceType.ROOT_PORT else (*_RP_PIO, *RP_PIO_HEADER_LOG)))
    return (
        *(read(port.address, dpc + register.offset, register.width) for register in registers),
        *(read(port.address, offset, width) for offset, width in aer_reads(port)),
        *(
            read(bridge.address, bridge.capabilities.dpc + DPC_STATUS.offset, DPC_STATUS.width)
            for bridge in contained_above(topology, port.address)
        ),
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


class Verdict(StrEnum):
    """What follows from a read."""

    NOTHING = "nothing"
    SPURIOUS = "spurious"  # an interrupt without containment: said once
    RECOVER = "recover"
    WAIT = "wait"


# None: either will do. Exactly one row matches.
# triggered, interrupt, above, progress -> verdict
TABLE: Final[tuple[tuple[bool, bool | None, bool | None, Progress | None, Verdict], ...]] = (
    (False, False, None, None, Verdict.NOTHING),
    (False, True, None, None, Verdict.SPURIOUS),
    (True, None, True, None, Verdict.WAIT),  # the recovery above releases every trigger below it
    (True, None, False, Progress.NOT_ASKED, Verdict.RECOVER),
    (True, None, False, Progress.UNDER_WAY, Verdict.WAIT),
    (True, None, False, Progress.ENDED, Verdict.RECOVER),  # it failed, or the port has triggered anew
    (True, None, False, Progress.UNKNOWN, Verdict.RECOVER),  # asking again joins what is under way
)


def judge(containment: Containment, how_far: Progress) -> Verdict:
    """Return the verdict of the one row that matches."""
    facts = (
        containment.triggered, bool(containment.status & DpcStatus.INTERRUPT), containment.above, how_far,
    )  # fmt: skip
    matches = [
        row[-1] for row in TABLE if all(cell is None or cell == fact for cell, fact in zip(row, facts, strict=False))
    ]
    assert len(matches) == 1
    return matches[0]
