"""The commands on a lease, but for `execute`: open, beat, adopt, close; and what a started fabric owes.

Each is a generator over the book: it decides, and yields what is to happen in order (see `_effects`). It either
refuses, and has changed nothing, or persists and goes on. Whatever it does after an entry may happen twice, because a
fabric may die there and its successor repeats it: saving comes before masking, and masking twice masks once.

    command   refused because                                        reason
    any       the token is not that of an open lease                 FENCED
    any       the lease was opened by another role                   ROLE
    open      the role may not open that rank                        ROLE
    open      no such function                                       UNKNOWN_PORT
    open      the id is that of a lease that has ended               FENCED
    open      the id is that of somebody else's open lease           HELD
    open      a slot operation that would reach further than itself  POLICY
    open      a reset where no port is above                         UNSUPPORTED
    open      admission (rank by ancestry): somebody comes first     HELD
    adopt     no such lease                                          UNKNOWN_LEASE
    close     a reset bit is set                                     IN_RESET
    close     the hardware is away                                   CONDITION
"""

from __future__ import annotations

from typing import Final

import msgspec

from shared.pcie import Address, Function, Topology, answered
from shared.pcie import registers as reg
from shared.protocol import LeaseRef, Reason, Refused, to_builtins
from shared.protocol.fabric import (
    Adopt,
    Adopted,
    AdoptReply,
    Close,
    Closed,
    CloseReply,
    Lease,
    Open,
    Opened,
    OpenReply,
    Rank,
    Reach,
    Role,
    SavedFunction,
)
from shared.protocol.facts import What
from shared.recovery import Do, close_lease, read, values

from . import _debts as debts
from ._admission import Admission, admit
from ._book import Book, Closing, Holding, Passed, Retired, Took
from ._effects import Command, Persist, tell
from ._mask import as_fact, mask, save
from ._snapshot import as_masked

_WIDTH_OF_REACH: Final = {Reach.NOTHING: 0, Reach.CALLBACKS: 1, Reach.RESET: 2}


def refuse(reason: Reason, message: str, lease: LeaseRef | None = None) -> Refused:
    """Return a refusal."""
    return Refused(reason=reason, message=message, lease=lease)


def held(book: Book, token: int, role: Role) -> Holding | Refused:
    """Return the open lease of this token, or why the token is good for nothing."""
    holding = book.by_token(token)
    if holding is not None:
        if holding.lease.role is role:
            return holding
        return refuse(Reason.ROLE, f"the token is good only from role {holding.lease.role}", holding.lease.ref)
    ended = next((one for one in book.ended if one.token == token), None)
    if ended is None:
        return refuse(Reason.FENCED, "the token is not that of an open lease: its lease was adopted, or never was")
    heir = ended.retired.absorbed_by
    how = f"absorbed by {heir}" if heir else "closed"
    return refuse(Reason.FENCED, f"the lease was {how}", ended.retired.lease)


# --- Open ---


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
    others = tuple(one.lease for one in book.leases if one.lease.id != asked.id)
    admission = admit(port, rank, asked.reach, others, topology)
    if admission.waits_for is not None:
        other = admission.waits_for
        message = f"{other.rank.name.lower()} {other.id} of {other.holder} on {other.port} comes first"
        return refuse(Reason.HELD, message, other.ref)
    lease = yield from _lease(book, asked, role, own, admission, port)
    absorbed = tuple(one.id for one in admission.absorbed)
    yield Persist(Took(lease=lease, absorbed=absorbed))
    yield from _tell_opened(lease, absorbed)
    if lease.slots:
        reached = yield from mask(
            tuple(topology.get(slot.port) for slot in lease.slots),
        )
        yield tell(What.LEASE_MASKED, port, lease.id, lease.cause, slots=as_fact(lease.slots, reached))
    return Opened(lease=lease, absorbed=absorbed)


def _may_open(book: Book, asked: Open, role: Role) -> Refused | None:
    """Return the first reason against the request that does not depend on others' leases."""
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


def _lease(
    book: Book, asked: Open, role: Role, own: Holding | None, admission: Admission, port: Address
) -> Command[Lease]:
    """Return the lease as it will be: what it saves, and what it inherits."""
    topology = book.topology
    before = [*admission.absorbed, *([own.lease] if own is not None else [])]
    inherited = {slot.port: slot for lease in before for slot in lease.slots}
    domain = topology.domain(port)
    slots = tuple(one for one in domain if one.address in inherited)
    if asked.reach is not Reach.NOTHING:
        slots = topology.slots(port)
    saved = yield from save(book, slots, inherited)
    functions = yield from _functions(book, domain, masked=frozenset(slot.port for slot in saved))
    owed = yield from debts.settle(debts.merge(lease.debts for lease in before), domain)
    if own is not None:
        return msgspec.structs.replace(own.lease, reach=asked.reach, slots=saved, functions=functions, debts=owed)
    return Lease(
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
        debts=owed,
    )


def _functions(
    book: Book, domain: tuple[Function, ...], *, masked: frozenset[Address]
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
            )
        )
    return tuple(found)


def _errors(function: Function) -> Command[tuple[int | None, int | None]]:
    aer = function.capabilities.aer
    if not aer:
        return None, None
    statuses = (reg.UNCORRECTABLE_STATUS, reg.CORRECTABLE_STATUS)
    operations = tuple(read(function.address, aer + one.offset, one.width) for one in statuses)
    uncorrectable, correctable = values((yield Do(operations)))
    return (
        uncorrectable if answered(uncorrectable) else None,
        correctable if answered(correctable) else None,
    )


def _tell_opened(lease: Lease, absorbed: tuple[str, ...]) -> Command[None]:
    about = {"rank": lease.rank.name.lower(), "reach": str(lease.reach), "holder": lease.holder}
    yield tell(What.LEASE_OPENED, lease.port, lease.id, lease.cause, **about, allowed_s=lease.allowed_s)
    for other in absorbed:
        yield tell(What.LEASE_ABSORBED, lease.port, other, lease.cause, heir=lease.id)


# --- Adopt, close ---


def adopt(book: Book, asked: Adopt, role: Role, *, silent_s: float) -> Command[AdoptReply]:
    """Fence the predecessor, mint a token, and say what is owed by the registers' word.

    `silent_s`, since the predecessor was last heard, decides nothing here: it is stated, and whether it was too long.
    """
    holding = book.by_id(asked.id)
    if holding is None:
        ended = next((one for one in book.ended if one.retired.lease.id == asked.id), None)
        if ended is not None:
            return refuse(Reason.FENCED, f"lease {asked.id} has ended", ended.retired.lease)
        return refuse(Reason.UNKNOWN_LEASE, f"no lease {asked.id}")
    before = holding.lease
    if before.role is not role:
        return refuse(Reason.ROLE, f"lease {asked.id} can be adopted only by role {before.role}", before.ref)
    # Fenced first, durably: the predecessor must not act between the registers' answer and the successor's decision.
    token = book.minted + 1
    book = yield Persist(Passed(id=asked.id, token=token, holder=asked.holder, debts=before.debts))
    owed = yield from debts.settle(before.debts, book.topology.domain(before.port))
    book = yield Persist(Passed(id=asked.id, token=token, holder=asked.holder, debts=owed))
    about = {"holder": asked.holder, "before": before.holder, "silent_s": round(silent_s, 3)}
    expired = silent_s > before.allowed_s
    yield tell(What.LEASE_ADOPTED, before.port, before.id, before.cause, **about, expired=expired)
    adopted = book.by_id(asked.id)
    assert adopted is not None
    return Adopted(lease=adopted.lease)


def close(book: Book, asked: Close, role: Role) -> Command[CloseReply]:
    """Verify, drain, unmask and retire. Asked again after it was done, it is answered again."""
    ended = next((one for one in book.ended if one.token == asked.token), None)
    if ended is not None and ended.role is role and ended.retired.absorbed_by is None:
        return Closed(lease=ended.retired.lease, outcomes=ended.retired.outcomes)
    holding = held(book, asked.token, role)
    if isinstance(holding, Refused):
        return holding
    lease, topology = holding.lease, book.topology
    if lease.rank is not Rank.SLOT_OPERATION:
        refusal = yield from _may_close(lease, topology)
        if refusal is not None:
            return refusal
        yield Persist(Closing(id=lease.id))
    return (yield from finish_close(lease, topology))


def _may_close(lease: Lease, topology: Topology) -> Command[Refused | None]:
    if not (yield from _hardware_answers(lease, topology)):
        return _away(lease)
    owed = yield from debts.settle(lease.debts, topology.domain(lease.port))
    in_reset = (*owed.in_reset, *owed.link_disabled)
    if in_reset:
        ports = ", ".join(str(port) for port in in_reset)
        return refuse(Reason.IN_RESET, f"a reset bit is set at {ports}: clear it first", lease.ref)
    return None


def _hardware_answers(lease: Lease, topology: Topology) -> Command[bool]:
    """Tell whether there is a host at all: what is on a root bus always answers."""
    root = topology.root_port(lease.port) or topology.get(lease.port)
    (vendor,) = values((yield Do((read(root.address, reg.VENDOR_ID.offset, reg.VENDOR_ID.width),))))
    return answered(vendor)


def _away(lease: Lease) -> Refused:
    return refuse(Reason.CONDITION, f"the root port above {lease.port} is away: nothing can be unmasked", lease.ref)


def finish_close(lease: Lease, topology: Topology) -> Command[CloseReply]:
    """Do what close does once it is allowed and written down. May run twice.

    If the hardware goes away meanwhile, the lease stays as it is, half closed: `resume` ends it when it is back.
    """
    if lease.rank is Rank.SLOT_OPERATION:
        yield Persist(Retired(id=lease.id, outcomes=()))
        yield tell(What.LEASE_CLOSED, lease.port, lease.id, lease.cause, outcomes={})
        return Closed(lease=lease.ref, outcomes=())
    closed = yield from close_lease(lease, topology)
    if not (yield from _hardware_answers(lease, topology)):
        return _away(lease)
    for slot in closed.slots:
        about = to_builtins(slot)
        del about["port"]
        yield tell(What.LEASE_UNMASKED, slot.port, lease.id, lease.cause, **about)
    yield Persist(Retired(id=lease.id, outcomes=closed.outcomes))
    outcomes = {str(one.function): [str(one.result), *one.differs] for one in closed.outcomes}
    yield tell(What.LEASE_CLOSED, lease.port, lease.id, lease.cause, outcomes=outcomes)
    return Closed(lease=lease.ref, outcomes=closed.outcomes)


def resume(book: Book) -> Command[None]:
    """Finish what a fabric that died, or hardware that went away, left half done: closes, then masks."""
    for holding in book.leases:
        if holding.closing:
            yield from finish_close(holding.lease, book.topology)
    for holding in book.leases:
        if not holding.closing and holding.lease.slots:
            found = (book.topology.find(slot.port) for slot in holding.lease.slots)
            yield from mask(tuple(slot for slot in found if slot is not None))
