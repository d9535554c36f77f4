"""Closing a lease, and what a started fabric owes: unmask, leave down what is to stay down, tell the firmware.

That close has begun, and which ports it leaves in quarantine, is written down first. From then on there is one way it
ends, whoever asks, and whether anybody does: a fabric that died in it, or lost its hardware, finishes it when it can.
"""

from __future__ import annotations

import msgspec

from shared.pcie import Address, Topology, answered
from shared.pcie import registers as reg
from shared.protocol import Reason, Refused, to_builtins
from shared.protocol.fabric import Close, Closed, CloseReply, FunctionOutcome, Lease, Rank, Result, Role
from shared.protocol.facts import What
from shared.recovery import LeaseClosed, ask, close_lease, links_now, look_at, read

from . import _debts as debts
from ._book import Answered, Book, Closing, Decided, Holding, Retired
from ._effects import Answer, Command, Enumerate, Persist, tell
from ._firmware import answers, is_nobodys, unrecovered
from ._leases import held, refuse
from ._mask import mask
from ._opening import silence
from ._quarantine import held_by, hold_again, may_not_close, record
from ._snapshot import Known


def close(book: Book, asked: Close, role: Role) -> Command[CloseReply]:
    """Verify, drain, unmask and retire. Asked again after it was done, it is answered again."""
    ended = next((one for one in book.ended if one.token == asked.token), None)
    if ended is not None and ended.role is role and ended.retired.absorbed_by is None:
        return Closed(lease=ended.retired.lease, outcomes=ended.retired.outcomes)
    holding = held(book, asked.token, role)
    if isinstance(holding, Refused):
        return holding
    lease = holding.lease
    if lease.rank is Rank.SLOT_OPERATION and asked.quarantine:
        return refuse(Reason.POLICY, "a slot operation puts no port into quarantine", lease.ref)
    if lease.rank is not Rank.SLOT_OPERATION and not holding.closing:
        refusal = yield from _may_close(holding, asked, book.topology)
        if refusal is not None:
            return refusal
        down = tuple(dict.fromkeys(asked.quarantine))
        book = yield Persist(Closing(id=lease.id, quarantine=down, why=asked.why))
    reply, _ = yield from finish_close(book, lease.id)
    return reply


def _may_close(holding: Holding, asked: Close, topology: Topology) -> Command[Refused | None]:
    lease = holding.lease
    if not (yield from _hardware_answers(lease, topology)):
        return _away(lease)
    refusal = yield from may_not_close(holding, asked.quarantine, topology)
    if refusal is not None:
        return refusal
    owed = yield from debts.settle(lease, lease.debts, topology)
    disabled = (port for port in owed.link_disabled if port not in asked.quarantine)
    in_reset = (*owed.in_reset, *disabled)
    if in_reset:
        ports = ", ".join(str(port) for port in in_reset)
        return refuse(Reason.IN_RESET, f"a reset bit is set at {ports}: clear it first", lease.ref)
    return None


def _hardware_answers(lease: Lease, topology: Topology) -> Command[bool]:
    """Tell whether there is a host at all: what is on a root bus always answers."""
    root = topology.root_port(lease.port) or topology.get(lease.port)
    (vendor,) = yield from ask((read(root.address, reg.VENDOR_ID.offset, reg.VENDOR_ID.width),))
    return answered(vendor)


def _away(lease: Lease) -> Refused:
    return refuse(Reason.CONDITION, f"the root port above {lease.port} is away: nothing can be unmasked", lease.ref)


def finish_close(book: Book, lease_id: str) -> Command[tuple[CloseReply, Book]]:
    """Do what close does once it is allowed and written down. May run twice. Returns the book after it, too.

    If the hardware goes away meanwhile, the lease stays as it is, half closed: `resume` ends it when it is back.
    """
    holding = book.by_id(lease_id)
    assert holding is not None, "a lease that is being closed is open"
    lease, topology = holding.lease, book.topology
    if lease.rank is Rank.SLOT_OPERATION:
        owed = yield from answers(book, lease, ())
        book = yield Persist(Retired(id=lease.id, outcomes=(), answers=owed))
        yield tell(What.LEASE_CLOSED, lease.port, lease.id, lease.cause, outcomes={})
        return Closed(lease=lease.ref, outcomes=()), (yield from answer_firmware(book))
    closed = yield from close_lease(lease, topology, holding.quarantine)
    if not (yield from _hardware_answers(lease, topology)):
        return _away(lease), book
    for slot in closed.slots:
        about = to_builtins(slot)
        del about["port"]
        yield tell(What.LEASE_UNMASKED, slot.port, lease.id, lease.cause, **about)
    for port in holding.quarantine:
        by = held_by((yield from look_at(topology.get(port)))) or "nothing"
        yield tell(What.QUARANTINE_ENTERED, port, lease.id, lease.cause, why=holding.why, held_by=by)
    book = yield Persist(
        Retired(
            id=lease.id,
            outcomes=closed.outcomes,
            quarantines=tuple(record(lease, port, holding.why, topology) for port in holding.quarantine),
            renewed=(yield from _renewed(book, lease, closed)),
            answers=(yield from answers(book, lease, closed.outcomes)),
        )
    )
    outcomes = {str(one.function): [str(one.result), *one.differs] for one in closed.outcomes}
    yield tell(What.LEASE_CLOSED, lease.port, lease.id, lease.cause, outcomes=outcomes)
    return Closed(lease=lease.ref, outcomes=closed.outcomes), (yield from answer_firmware(book))


def _renewed(book: Book, lease: Lease, closed: LeaseClosed) -> Command[tuple[Known, ...]]:
    """Return the snapshots that change with the lease: links as they are now, and identities as they were accepted."""
    renewed: dict[Address, Known] = {}
    for port, link in (yield from links_now(lease.links, book.topology)).items():
        known = book.snapshot(port)
        if known is not None and known.link != link:
            renewed[port] = msgspec.structs.replace(known, link=link)
    accepted = {one.function for one in closed.outcomes if _is_accepted(one)}
    if accepted:
        found: tuple[Known, ...] = yield Enumerate()
        for new in (one for one in found if one.function.address in accepted):
            known = renewed.get(new.function.address) or book.snapshot(new.function.address)
            renewed[new.function.address] = new if known is None else _accepted(known, new)
    return tuple(renewed.values())


def _is_accepted(outcome: FunctionOutcome) -> bool:
    return bool(outcome.differs) and outcome.result in {Result.RECOVERED, Result.FAILED}


def _accepted(known: Known, new: Known) -> Known:
    """Return the function as it is from now on. What software had set up stays, where it still is at the same place."""
    if new.function.capabilities != known.function.capabilities:
        return new
    return msgspec.structs.replace(known, function=new.function)


def answer_firmware(book: Book) -> Command[Book]:
    """Tell the firmware what is decided and not known to have reached it. May run twice: it hears the same."""
    for answer in book.answers:
        if (yield Answer(answer.port, answer.status)):
            yield tell(What.LEASE_FIRMWARE_ANSWERED, answer.port, answer.lease, answer.cause, status=answer.status)
            book = yield Persist(Answered(port=answer.port))
    return book


def notified(book: Book, port: Address) -> Command[None]:
    """Answer at once what no lease will: a port that is nobody's, and an answer that did not arrive."""
    if is_nobodys(book, port) and all(one.port != port for one in book.answers):
        book = yield Persist(Decided(answer=unrecovered(port)))
    yield from answer_firmware(book)


def resume(book: Book) -> Command[None]:
    """Finish what a fabric that died, or hardware that went away, left half done: closes, answers, masks."""
    book = yield from answer_firmware(book)
    for holding in book.leases:
        if holding.closing:
            _, book = yield from finish_close(book, holding.lease.id)
    yield from hold_again(book)
    for holding in book.leases:
        if not holding.closing and holding.lease.slots:
            yield from mask(holding.lease.slots, book.topology)
        if not holding.closing:
            yield from silence(holding.lease, book.topology)
