"""Who is to blame, and what is to be done about it: pure functions over one survey.

Sources are found by topology, without a limit: the kernel looks at five devices at most, and asks a fatal endpoint
nothing at all (linux-kernel.md, section 2). A source is a function whose unmasked status says so, or the function that
the Error Source register names, even if it does not answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Final

import msgspec

from shared.pcie import Address, ErrorRegisters, Function, Topology
from shared.pcie.errors import PROVOKED_UNCORRECTABLE, ErrorReport, Severity
from shared.pcie.registers import Correctable, RootErrorStatus, Uncorrectable
from shared.protocol.fabric import Lease, LeaseList, Reach
from shared.protocol.facts import Ignored

from ._survey import RootLatch, Survey, reporters

BOTH: Final = frozenset({Severity.FATAL, Severity.NONFATAL})


class Source(msgspec.Struct, frozen=True):
    """A function to blame, and the port whose recovery reaches it. No report: it does not answer, or tells nothing."""

    function: Address
    port: Address
    severity: Severity
    reports: tuple[ErrorReport, ...] = ()

    @property
    def bits(self) -> int:
        """All bits reported, of either severity."""
        return sum(report.status for report in self.reports)


class Case(msgspec.Struct, frozen=True):
    """What one port is to be recovered from: one request to the coordinator."""

    port: Address
    sources: tuple[Source, ...]

    @property
    def severity(self) -> Severity:
        """The worst of its sources."""
        fatal = any(source.severity is Severity.FATAL for source in self.sources)
        return Severity.FATAL if fatal else Severity.NONFATAL


def signalled(latch: RootLatch) -> frozenset[Severity]:
    """Return the uncorrectable severities of which messages were received."""
    if not latch.uncorrectable:
        return frozenset()
    received = {
        severity
        for severity, bit in (
            (Severity.FATAL, RootErrorStatus.FATAL_RECEIVED),
            (Severity.NONFATAL, RootErrorStatus.NONFATAL_RECEIVED),
        )
        if bit in latch.status
    }
    return frozenset(received) or BOTH


def first_severity(latch: RootLatch) -> Severity:
    """Return the severity of the message whose sender Error Source names: the first one received."""
    fatal = RootErrorStatus.FIRST_FATAL in latch.status or Severity.NONFATAL not in signalled(latch)
    return Severity.FATAL if fatal else Severity.NONFATAL


def find_new(
    topology: Topology, survey: Survey, severities: frozenset[Severity], known: Mapping[Address, int]
) -> tuple[Source, ...]:
    """Return every function with unmasked bits of these severities beyond those that are known, by topology."""
    return tuple(
        source for source in _reporting(topology, survey, severities) if source.bits & ~known.get(source.function, 0)
    )


def find_signalled(
    topology: Topology, root: Address, survey: Survey, known: Mapping[Address, int], settled: frozenset[Address]
) -> tuple[Source, ...]:
    """Return whom the root port's latch is about.

    Functions with new bits, and the one that Error Source names, although its bits are known (the same error again).
    If there is neither, every function with bits of the severity received; but none that this very latch has been
    `settled` for. Empty: the message left no trace.
    """
    severities = signalled(survey.latch)
    found = {source.function: source for source in find_new(topology, survey, severities, known)}
    named = _named(topology, root, survey)
    if named is not None:
        found.setdefault(named.function, named)
    if not found:
        found = {source.function: source for source in _reporting(topology, survey, severities)}
    return tuple(source for function, source in sorted(found.items()) if function not in settled)


def find_stale(
    topology: Topology, root: Address, survey: Survey, fresh: frozenset[Address], known: Mapping[Address, int]
) -> tuple[Source, ...]:
    """Return whose bits no message can be about that is latched: they are older than the first look at the function.

    `fresh` are the functions that had not answered before. A message that was received alone, from a function that
    has its bits, is about that one; else it may be about any function with bits of its severity.
    """
    severities = signalled(survey.latch)
    named = _named(topology, root, survey) if severities else None
    alone = RootErrorStatus.MULTIPLE_UNCORRECTABLE not in survey.latch.status
    if named is not None and named.reports and alone:
        found = tuple(source for source in find_new(topology, survey, BOTH, known) if source.function != named.function)
    else:
        found = find_new(topology, survey, BOTH - severities, known)
    return tuple(source for source in found if source.function in fresh)


def cases(sources: Iterable[Source]) -> tuple[Case, ...]:
    """Merge sources by the port that recovers them: different ports, nested or not, are different requests."""
    by_port: dict[Address, list[Source]] = {}
    for source in sources:
        by_port.setdefault(source.port, []).append(source)
    return tuple(Case(port=port, sources=tuple(members)) for port, members in sorted(by_port.items()))


class Verdict(StrEnum):
    """What becomes of a case."""

    RECOVER = "recover"
    QUARANTINED = "quarantined"
    CONTAINED = "contained"
    PROVOKED = "provoked"
    GONE = "gone"


BECAUSE: Final[dict[Verdict, str]] = {
    Verdict.RECOVER: "an error that nobody recovers from yet",
    Verdict.QUARANTINED: "the port, or one above it, is in quarantine: nothing is recovered until it is released",
    Verdict.CONTAINED: "the port, or one above it, is contained: DPC's case, one recovery (P6)",
    Verdict.PROVOKED: "a lease covers the port, and a reset provokes no other bits than these",
    Verdict.GONE: "surprise removal: no link and no presence, hotplug's case",
}
IGNORED: Final[dict[Verdict, Ignored]] = {
    Verdict.QUARANTINED: Ignored.QUARANTINED,
    Verdict.CONTAINED: Ignored.CONTAINED,
    Verdict.PROVOKED: Ignored.PROVOKED,
    Verdict.GONE: Ignored.GONE,
}


class Signs(msgspec.Struct, frozen=True):
    """What is known of a case, each a yes or no."""

    quarantined: bool  # the port, or a port above it, is held down for good
    contained: bool  # the port, or a port above it, has its DPC trigger set
    covered: bool  # a lease that masks covers the port
    provoked: bool  # every source tells its bits, and a reset provokes each of them
    surprise: bool  # Surprise Down of the port itself is the only bit
    gone: bool  # no link and no presence behind the port


# None: either will do. The first cells are exclusive of the rest, so that exactly one row matches.
# quarantined, contained, covered and provoked, surprise and gone -> verdict
TABLE: Final[tuple[tuple[bool, bool | None, bool | None, bool | None, Verdict], ...]] = (
    (True, None, None, None, Verdict.QUARANTINED),
    (False, True, None, None, Verdict.CONTAINED),
    (False, False, True, None, Verdict.PROVOKED),
    (False, False, False, True, Verdict.GONE),
    (False, False, False, False, Verdict.RECOVER),
)


def judge(signs: Signs) -> Verdict:
    """Return the verdict of the one row that matches."""
    facts = (signs.quarantined, signs.contained, signs.covered and signs.provoked, signs.surprise and signs.gone)
    matches = [
        row[-1] for row in TABLE if all(cell is None or cell == fact for cell, fact in zip(row, facts, strict=False))
    ]
    assert len(matches) == 1
    return matches[0]


def is_nobodys(seen: Signs) -> bool:
    """Tell whether neither DPC, nor hotplug, nor the holder of a lease has the port in hand."""
    return judge(seen) is Verdict.RECOVER and not seen.covered


def covering(topology: Topology, port: Address, leases: Iterable[Lease]) -> Lease | None:
    """Return the lease that masks the port: its own, or one above. A slot operation masks nothing."""
    above = topology.path(port)
    return next((lease for lease in leases if lease.port in above and lease.reach is not Reach.NOTHING), None)


def signs(topology: Topology, survey: Survey, case: Case, listed: LeaseList) -> Signs:
    """Gather the signs of a case."""
    above = topology.path(case.port)
    states = [survey.ports[address] for address in above if address in survey.ports]
    bits = [source.bits for source in case.sources]
    own = survey.ports.get(case.port)
    return Signs(
        quarantined=any(quarantine.port in above for quarantine in listed.quarantines),
        contained=any(state.contained for state in states),
        covered=covering(topology, case.port, listed.leases) is not None,
        provoked=all(bits) and not any(each & ~PROVOKED_UNCORRECTABLE for each in bits),
        surprise=all(
            source.function == case.port and source.bits == Uncorrectable.SURPRISE_DOWN for source in case.sources
        ),
        gone=own is not None and own.gone,
    )


def advisory(errors: ErrorRegisters) -> int:
    """Return the uncorrectable bits that were reported as an advisory correctable error (§6.2.3.2.4).

    Such an error is non-fatal by severity, and is never recovered from: the receiver has handled it.
    """
    if errors.correctable is None or not errors.correctable.status & Correctable.ADVISORY_NONFATAL:
        return 0
    return sum(report.status for report in errors.uncorrectable if report.severity is Severity.NONFATAL)


def unmasked(errors: ErrorRegisters) -> int:
    """Return all unmasked uncorrectable bits."""
    return errors.uncorrectable_status & ~errors.uncorrectable_mask


def recovery_port(topology: Topology, survey: Survey, function: Address) -> Address | None:
    """Return the port to recover: the function's own lease port, or the nearest one above that answers.

    What is integrated into the root complex has no port, and stands for itself.
    """
    port = topology.lease_port(function)
    if port is None:
        return function if topology.find(function) is not None else None
    while port is not None and port.address not in survey.answering:
        port = topology.port_above(port.address)
    return None if port is None else port.address


def _reporting(topology: Topology, survey: Survey, severities: frozenset[Severity]) -> Iterable[Source]:
    for function, errors in sorted(survey.errors.items()):
        reports = tuple(report for report in errors.uncorrectable if report.severity in severities)
        port = recovery_port(topology, survey, function)
        if reports and port is not None:
            yield Source(function=function, port=port, severity=reports[0].severity, reports=reports)


def _named(topology: Topology, root: Address, survey: Survey) -> Source | None:
    """Return the function that Error Source names, unless it answers and has nothing to tell.

    A bridge to a conventional bus may well have nothing: it passes on SERR# of what has no error registers.
    """
    address = root.with_requester_id(survey.latch.uncorrectable_id)
    errors = survey.errors.get(address)
    if errors is not None:
        mine = (source for source in _reporting(topology, survey, signalled(survey.latch)))
        own = next((source for source in mine if source.function == address), None)
        if own is not None or not topology.get(address).is_conventional_bridge:
            return own
        port = recovery_port(topology, survey, address)
        return None if port is None else Source(function=address, port=port, severity=first_severity(survey.latch))
    anchor = _anchor(topology, root, address)
    if anchor is None:
        return None
    if anchor.address == address and anchor.capabilities.aer and address in survey.answering:
        return None  # answered at first, then not: the next look tells
    port = recovery_port(topology, survey, anchor.address)
    if port is None:
        return None
    return Source(function=address, port=port, severity=first_severity(survey.latch))


def _anchor(topology: Topology, root: Address, address: Address) -> Function | None:
    """Return the function, or the bridge on whose bus an unknown one (a virtual function, a new card) must be."""
    domain = reporters(topology, root)
    exact = next((function for function in domain if function.address == address), None)
    if exact is not None:
        return exact
    return next((bridge for bridge in domain if bridge.secondary and bridge.secondary == address.bus), None)
