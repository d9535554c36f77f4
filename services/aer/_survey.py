"""The registers that decide, of a root port and everything below it, read in one step: what to read, what it says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

import msgspec

from shared.pcie import Address, ErrorRegisters, Function, Topology, Value, aer_reads, answered, decode_aer
from shared.pcie.registers import (
    DPC_STATUS,
    ERROR_SOURCE,
    LINK_STATUS,
    ROOT_ERROR_STATUS,
    SLOT_STATUS,
    DeviceType,
    DpcStatus,
    LinkStatus,
    Register,
    RootErrorStatus,
    SlotStatus,
)
from shared.protocol.fabric import Operation, Verb

CORRECTABLE_LATCHES = RootErrorStatus.CORRECTABLE_RECEIVED | RootErrorStatus.MULTIPLE_CORRECTABLE
UNCORRECTABLE_LATCHES = (
    RootErrorStatus.UNCORRECTABLE_RECEIVED
    | RootErrorStatus.MULTIPLE_UNCORRECTABLE
    | RootErrorStatus.FIRST_FATAL
    | RootErrorStatus.NONFATAL_RECEIVED
    | RootErrorStatus.FATAL_RECEIVED
)


class RootLatch(msgspec.Struct, frozen=True):
    """What a root port or event collector has latched of the error messages that reached it (§7.8.4.10, §7.8.4.11)."""

    status: RootErrorStatus
    source: int  # requester ids: correctable in the low 16 bits, uncorrectable in the high 16

    @property
    def correctable(self) -> RootErrorStatus:
        """The latched bits of correctable errors."""
        return self.status & CORRECTABLE_LATCHES

    @property
    def uncorrectable(self) -> RootErrorStatus:
        """The latched bits of uncorrectable errors."""
        return self.status & UNCORRECTABLE_LATCHES

    @property
    def correctable_id(self) -> int:
        """Who sent the first correctable message."""
        return self.source & 0xFFFF

    @property
    def uncorrectable_id(self) -> int:
        """Who sent the first uncorrectable message."""
        return self.source >> 16


class PortState(msgspec.Struct, frozen=True):
    """A port that answers: whether it contains, and whether its slot is empty as far as its registers tell."""

    contained: bool = False
    gone: bool = False  # a hotplug-capable slot whose link is inactive and whose presence bit is clear


class Survey(msgspec.Struct, frozen=True):
    """What was read in one step. A function that did not answer is in neither `answering` nor `errors` (P9)."""

    latch: RootLatch
    answering: frozenset[Address]
    errors: Mapping[Address, ErrorRegisters]
    ports: Mapping[Address, PortState]


def root_reads(root: Function) -> tuple[Operation, ...]:
    """Return the reads of the root port's latch: the cheap first look."""
    aer = root.capabilities.aer
    return (_read(root, aer, ROOT_ERROR_STATUS), _read(root, aer, ERROR_SOURCE))


def decode_root(values: Sequence[Value]) -> RootLatch | None:
    """Read the values of `root_reads`. None: the root port does not answer."""
    status, source = values
    if not answered(status):
        return None
    # A source register of all ones is a value: two functions at ff:1f.7.
    return RootLatch(status=RootErrorStatus(status & 0x7F), source=source if answered(source) else 0xFFFF_FFFF)


def reporters(topology: Topology, root: Address) -> tuple[Function, ...]:
    """Return the functions whose messages `root` receives, itself first, parents before children.

    A root port has everything below it; an event collector the integrated endpoints of its devices (§7.9.10.2).
    """
    collector = topology.get(root)
    integrated = (
        function
        for function in topology
        if function.kind is DeviceType.ROOT_COMPLEX_ENDPOINT and topology.receiver(function.address) == collector
    )
    return (*topology.domain(root), *integrated)


def survey_reads(topology: Topology, root: Function) -> tuple[Operation, ...]:
    """Return every read of a survey: the latch, then function by function, parents before children."""
    reads = list(root_reads(root))
    for function in reporters(topology, root.address):
        reads.append(_read(function, 0, function.presence))
        reads.extend(_port_reads(function))
        reads.extend(
            Operation(verb=Verb.READ, function=function.address, offset=offset, width=width)
            for offset, width in aer_reads(function)
        )
    return tuple(reads)


def decode_survey(topology: Topology, root: Function, values: Sequence[Value]) -> Survey | None:
    """Read the values of `survey_reads`. None: the root port does not answer."""
    stream = iter(values)
    latch = decode_root(tuple(islice(stream, len(root_reads(root)))))
    if latch is None:
        return None
    answering: set[Address] = set()
    errors: dict[Address, ErrorRegisters] = {}
    ports: dict[Address, PortState] = {}
    for function in reporters(topology, root.address):
        if answered(next(stream)):
            answering.add(function.address)
        state = _port_state(function, stream)
        if state is not None:
            ports[function.address] = state
        registers = decode_aer(function, tuple(islice(stream, len(aer_reads(function)))))
        if registers is not None:
            errors[function.address] = registers
    return Survey(latch=latch, answering=frozenset(answering), errors=errors, ports=ports)


def _port_reads(function: Function) -> Iterator[Operation]:
    if function.is_port and function.capabilities.dpc:
        yield _read(function, function.capabilities.dpc, DPC_STATUS)
    if _tells_gone(function):
        yield _read(function, function.capabilities.express, SLOT_STATUS)
        yield _read(function, function.capabilities.express, LINK_STATUS)


def _port_state(function: Function, stream: Iterator[Value]) -> PortState | None:
    if not function.is_port:
        return None
    contained = gone = False
    if function.capabilities.dpc:
        status = next(stream)
        contained = answered(status) and bool(status & DpcStatus.TRIGGER)
    if _tells_gone(function):
        slot, link = next(stream), next(stream)
        gone = (
            answered(slot) and answered(link) and not slot & SlotStatus.PRESENCE and not link & LinkStatus.LINK_ACTIVE
        )
    return PortState(contained=contained, gone=gone)


def _tells_gone(function: Function) -> bool:
    """Tell whether presence and link can both be asked: never decided by Surprise Down alone (DESIGN 5, dpc)."""
    return function.is_port and function.hotplug_capable and function.link_active_reporting


def _read(function: Function, base: int, register: Register) -> Operation:
    return Operation(verb=Verb.READ, function=function.address, offset=base + register.offset, width=register.width)
