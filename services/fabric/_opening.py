"""Opening a lease: refuse, or save, write down, mask. The reasons stand in the table of `_leases`.

What an heir inherits, from the leases that it absorbs and the quarantine that it lifts, comes before what the
registers say now: they show what was done under those, and not what was found (P2).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from shared.pcie import Address, Function, IdentityField, Topology, answered
from shared.pcie import registers as reg
from shared.protocol import Reason, Refused
from shared.protocol.fabric import (
    Debts,
    Lease,
    Open,
    Opened,
    OpenReply,
    Quarantine,
    Rank,
    Reach,
    Role,
    SavedFunction,
    SavedLink,
    SavedReporting,
    SavedSlot,
)
from shared.protocol.facts import What
from shared.recovery import Do, ask, found_reporting, hush, link_read, quiet_registers, read, saved_link

from . import _debts as debts
from ._admission import Admission, admit
from ._book import Book, Holding, Took
from ._effects import Command, Persist, tell
from ._firmware import handed_over, may_not_mask
from ._leases import refuse
from ._mask import as_fact, mask, save
from ._quarantine import inside, may_not_open, own_slot, reachable
from ._snapshot import as_masked

_WIDTH_OF_REACH: Final = {Reach.NOTHING: 0, Reach.CALLBACKS: 1, Reach.RESET: 2}


def open_lease(book: Book, asked: Open, role: Role) -> Command[OpenReply]:
    """Open a lease, widen one's own, or answer again."""
    topology = book.topology
    refusal = _may_open(book, asked, role)
    if refusal is not None:
        return refusal
    own = book.by_id(asked.id)
    if own is not None and _WIDTH_OF_REACH[asked.reach] <= _WIDTH_OF_REACH[own.lease.reach]:
        return Opened(lease=own.lease)
    port = own.lease.port if own is not None else _port_of(asked.port, topology)
    rank = own.lease.rank if own is not None else asked.rank
    refusal = may_not_open(book, asked, role, port) or (yield from may_not_mask(book, asked, port))
    if refusal is not None:
        return refusal
    others = tuple(one.lease for one in book.leases if one.lease.id != asked.id)
    admission = admit(port, rank, asked.reach, others, topology)
    if admission.waits_for is not None:
        other = admission.waits_for
        message = f"{other.rank.name.lower()} {other.id} of {other.holder} on {other.port} comes first"
        return refuse(Reason.HELD, message, other.ref)
    lease = yield from _lease(book, asked, role, own, admission, port)
    absorbed = tuple(one.id for one in admission.absorbed)
    if asked.lifts:
        yield tell(What.QUARANTINE_LIFTED, port, lease.id, lease.cause, by=lease.holder)
    yield Persist(Took(lease=lease, absorbed=absorbed, lifts=port if asked.lifts else None))
    yield from _tell_opened(lease, absorbed)
    yield from silence(lease, topology)
    reached = yield from mask(lease.slots, topology)
    if lease.slots or lease.quiet:
        quiet = {"quiet": [str(one.function) for one in lease.quiet]} if lease.quiet else {}
        yield tell(What.LEASE_MASKED, port, lease.id, lease.cause, slots=as_fact(lease.slots, reached), **quiet)
    return Opened(lease=lease, absorbed=absorbed)


def silence(lease: Lease, topology: Topology) -> Command[None]:
    """Keep errors quiet where the lease asks for it. May run twice."""
    for saved in lease.quiet:
        function = topology.find(saved.function)
        operations = () if function is None else hush(function, saved)
        if operations:
            yield Do(operations)


def _may_open(book: Book, asked: Open, role: Role) -> Refused | None:
    """Return the first reason against the request that does not depend on others' leases, nor on its port's state."""
    is_slot_operation = asked.rank is Rank.SLOT_OPERATION
    if role is not (Role.HOTPLUG if is_slot_operation else Role.COORDINATOR):
        return refuse(Reason.ROLE, f"role {role} does not open leases of rank {asked.rank.name.lower()}")
    function = book.topology.find(asked.port)
    if function is None:
        return refuse(Reason.UNKNOWN_PORT, f"no function at {asked.port}")
    ended = next((one for one in book.ended if one.retired.lease.id == asked.id), None)
    if ended is not None:
        return refuse(Reason.FENCED, f"lease {asked.id} has ended; open another", ended.retired.lease)
    own = book.by_id(asked.id)
    if own is not None and (own.lease.role, own.lease.holder) != (role, asked.holder):
        return refuse(Reason.HELD, f"lease {asked.id} is that of {own.lease.holder}; adopt it", own.lease.ref)
    if asked.allowed_s <= 0:
        return refuse(Reason.MALFORMED, f"allowed_s is {asked.allowed_s}; it must be above 0")
    if is_slot_operation and asked.reach is not Reach.NOTHING:
        return refuse(Reason.POLICY, "a slot operation masks nothing: its reach is `nothing`")
    if asked.reach is Reach.RESET and book.topology.lease_port(asked.port) is None:
        return refuse(Reason.UNSUPPORTED, f"no port above {asked.port} whose link could be reset")
    return None


def _port_of(address: Address, topology: Topology) -> Address:
    """Return the port that a lease for `address` is on; a root-complex integrated endpoint stands for itself."""
    port = topology.lease_port(address)
    return address if port is None else port.address


class _Legacy(msgspec.Struct, frozen=True):
    """What a lease inherits; of what several have saved, the oldest counts."""

    slots: dict[Address, SavedSlot]
    links: dict[Address, SavedLink]
    quiet: dict[Address, SavedReporting]
    debts: Debts
    accept: dict[Address, tuple[IdentityField, ...]]  # of functions, from leases below: it means nobody else's (P4)


def _legacy(port: Address, leases: Iterable[Lease], lifted: Quarantine | None) -> _Legacy:
    before = tuple(leases)
    slots = {slot.port: slot for lease in before for slot in lease.slots}
    links = {link.port: link for lease in before for link in lease.links}
    owed = [lease.debts for lease in before]
    if lifted is not None:
        slots |= {slot.port: slot for slot in lifted.slots}
        links |= {link.port: link for link in lifted.links}
        owed.append(Debts(link_disabled=(lifted.port,)))  # if that is what held it down: registers say
    quiet = {one.function: one for lease in before for one in lease.quiet}
    accept = {
        one.address: tuple(sorted({*one.accept, *(() if lease.port == port else lease.accept)}))
        for lease in before
        for one in lease.functions
    }
    return _Legacy(slots=slots, links=links, quiet=quiet, debts=debts.merge(owed), accept=accept)


def _lease(
    book: Book, asked: Open, role: Role, own: Holding | None, admission: Admission, port: Address
) -> Command[Lease]:
    """Return the lease as it will be: what it saves, and what it inherits."""
    topology = book.topology
    lifted = book.quarantine_over(port) if asked.lifts else None
    quarantines = tuple(one for one in book.quarantines if one != lifted)
    quarantined = inside(topology, quarantines, port)
    before = [*admission.absorbed, *([own.lease] if own is not None else [])]
    legacy = _legacy(port, before, lifted)
    domain = reachable(topology, port, quarantined)
    firmware_owned = not handed_over(topology, book.edr, port)
    slots = tuple(one for one in domain if one.address in legacy.slots)
    if asked.reach is not Reach.NOTHING:
        slots = tuple(one for one in domain if one.hotplug_capable)
    inherited = {**legacy.slots, **_speaking(quarantines, quarantined)}
    saved = yield from save(book, slots, inherited, firmware_owned=firmware_owned)
    functions = yield from _functions(book, domain, legacy, masked=frozenset(slot.port for slot in saved))
    lease = Lease(
        id=asked.id,
        token=book.minted + 1,
        port=port,
        rank=asked.rank,
        reach=asked.reach,
        role=role,
        cause=asked.cause,
        holder=asked.holder,
        allowed_s=asked.allowed_s,
        slots=saved,
        functions=functions,
        links=(yield from _links(book, domain, legacy.links)),
        accept=tuple(sorted({*asked.accept, *(one for lease in before if lease.port == port for one in lease.accept)})),
        quiet=(yield from _quiet(book, asked, port, legacy.quiet)),
        quarantined=quarantined,
        firmware_owned=firmware_owned,
        lifted=None if lifted is None else lifted.lease,
    )
    if own is not None:
        kept = {name: getattr(own.lease, name) for name in _KEPT_WHEN_WIDENED}
        lease = msgspec.structs.replace(lease, **kept)
    return msgspec.structs.replace(lease, debts=(yield from debts.settle(lease, legacy.debts, topology)))


_KEPT_WHEN_WIDENED: Final = ("token", "rank", "role", "cause", "holder", "allowed_s", "last_n", "firmware_owned")


def _speaking(quarantines: tuple[Quarantine, ...], quarantined: tuple[Address, ...]) -> dict[Address, SavedSlot]:
    """Return what is saved of the slots of ports that stay in quarantine."""
    slots = (own_slot(one) for one in quarantines if one.port in quarantined)
    return {slot.port: slot for slot in slots if slot is not None}


def _functions(
    book: Book, domain: tuple[Function, ...], legacy: _Legacy, *, masked: frozenset[Address]
) -> Command[tuple[SavedFunction, ...]]:
    """Return who is in the domain, what may be restored under the lease, and which errors are logged now."""
    found = []
    for function in domain:
        known = book.snapshot(function.address)
        assert known is not None, "the topology is made of snapshots"
        uncorrectable, correctable = yield from _errors(function)
        found.append(
            SavedFunction(
                address=function.address,
                identity=function.identity,
                registers=as_masked(known) if function.address in masked else known.registers,
                uncorrectable=uncorrectable,
                correctable=correctable,
                accept=legacy.accept.get(function.address, ()),
            )
        )
    return tuple(found)


def _errors(function: Function) -> Command[tuple[int | None, int | None]]:
    aer = function.capabilities.aer
    if not aer:
        return None, None
    statuses = (reg.UNCORRECTABLE_STATUS, reg.CORRECTABLE_STATUS)
    operations = tuple(read(function.address, aer + one.offset, one.width) for one in statuses)
    uncorrectable, correctable = yield from ask(operations)
    return (
        uncorrectable if answered(uncorrectable) else None,
        correctable if answered(correctable) else None,
    )


def _links(
    book: Book, domain: tuple[Function, ...], inherited: dict[Address, SavedLink]
) -> Command[tuple[SavedLink, ...]]:
    """Return what the links of the domain had negotiated: inherited, or as they are, or as they were last seen up."""
    ports = tuple(function for function in domain if function.is_port)
    held = yield from ask(link_read(port) for port in ports)
    found = []
    for port, status in zip(ports, held, strict=True):
        now = saved_link(port, status) if answered(status) else None
        known = book.snapshot(port.address)
        link = inherited.get(port.address) or now or (None if known is None else known.link)
        if link is not None:
            found.append(link)
    return tuple(found)


def _quiet(
    book: Book, asked: Open, port: Address, inherited: dict[Address, SavedReporting]
) -> Command[tuple[SavedReporting, ...]]:
    """Return what is kept quiet: what is so already, and the lease's own port if that is asked for."""
    if not asked.quiet_errors or port in inherited:
        return tuple(inherited.values())
    function, known = book.topology.get(port), book.snapshot(port)
    assert known is not None, "the topology is made of snapshots"
    rows = quiet_registers(function)
    held = yield from ask(read(port, offset, row.width) for row, offset, _ in rows)
    now = tuple(
        value if answered(value) else known.held(row, offset - row.offset) or 0
        for value, (row, offset, _) in zip(held, rows, strict=True)
    )
    return (*inherited.values(), found_reporting(function, now))


def _tell_opened(lease: Lease, absorbed: tuple[str, ...]) -> Command[None]:
    about = {"rank": lease.rank.name.lower(), "reach": str(lease.reach), "holder": lease.holder}
    yield tell(What.LEASE_OPENED, lease.port, lease.id, lease.cause, **about, allowed_s=lease.allowed_s)
    for other in absorbed:
        yield tell(What.LEASE_ABSORBED, lease.port, other, lease.cause, heir=lease.id)
