"""Execute: fence, number, domain, conditions, P1; written down, done, answered. And what aer may acknowledge.

**At least once, for one command.** The intent is synced before the hardware is touched and the answer after, so a
fabric that dies in between does not know whether the command was executed. It executes it when it is asked again:
every step of a recovery may run twice (DESIGN 4), and the other choice, to answer without executing, could leave a
link in reset that the holder believes released.
"""

from __future__ import annotations

from typing import Any

import msgspec

from shared.pcie import Address, Function, Topology, Value, answered
from shared.pcie import registers as reg
from shared.protocol import Reason, Refused
from shared.protocol.fabric import (
    Acknowledge,
    AcknowledgeReply,
    Condition,
    Execute,
    Executed,
    ExecuteReply,
    Lease,
    Operation,
    Rank,
    Role,
    SavedSlot,
    Verb,
)
from shared.protocol.facts import What
from shared.recovery import ask, look_at

from . import _debts as debts
from ._book import Book, Did, Enumerated, Holding, Meant, Saved
from ._effects import Command, Enumerate, Persist, tell
from ._firmware import is_theirs
from ._layout import written
from ._leases import held, refuse
from ._mask import as_fact, enables, mask, save
from ._quarantine import reachable
from ._rules import WRITES, enables_left, malformed, masks, object_to, resets, unsaved
from ._snapshot import Known, renew
from ._stale import is_stale
from ._topology import merge, topology_of


def execute(book: Book, asked: Execute, role: Role) -> Command[ExecuteReply]:
    """Execute the next command of a lease, or answer the last one again."""
    holding = held(book, asked.token, role)
    if isinstance(holding, Refused):
        return holding
    lease = holding.lease
    if holding.closing:
        return refuse(Reason.POLICY, "close has begun: ask for it again", lease.ref)
    answer = _numbered(holding, asked)
    if answer is not None:
        return answer
    objection = object_to(asked.operations, lease, book.topology, book.edr)
    if objection is not None:
        return refuse(objection.reason, objection.message, lease.ref)
    failed = yield from _unmet(asked.provided, book.topology)
    if failed:
        return refuse(Reason.CONDITION, failed, lease.ref)
    masked: tuple[Address, ...] | None = None
    if any(_resets(operation, book.topology, lease) for operation in asked.operations):
        reached = yield from _mask_before_reset(book, lease)
        if isinstance(reached, Refused):
            return reached
        masked = reached
    if all(operation.verb is Verb.READ for operation in asked.operations):
        got = _plain((yield from ask(asked.operations)))
        yield Persist(_did(lease, asked, got, lease.debts), sync=False)
        return Executed(values=got, lease=lease.ref)
    return (yield from _write(lease, asked, book.topology, masked))


def _numbered(holding: Holding, asked: Execute) -> ExecuteReply | None:
    """Judge `n`: the last one is answered again, a higher one is to be executed (None), a lower one is refused.

    Numbers may be left out: a holder who gave up on an answer has used its number up.
    """
    lease = holding.lease
    if asked.n > lease.last_n:
        return None
    if asked.n < lease.last_n or holding.answer is None:
        return refuse(Reason.STALE, f"n={asked.n} is not above n={lease.last_n}, and its answer is gone", lease.ref)
    if asked.operations != holding.operations:
        return refuse(Reason.STALE, f"n={asked.n} was executed with other operations", lease.ref)
    return Executed(values=holding.answer, lease=lease.ref)


def _unmet(conditions: tuple[Condition, ...], topology: Topology) -> Command[str]:
    """Return the first condition that does not hold, or nothing. A port that does not answer meets none."""
    for condition in conditions:
        port = topology.find(condition.port)
        if port is None or not port.is_port:
            return f"{condition.port} is not a port"
        view = yield from look_at(port)
        if view is None:
            return f"{condition.port} does not answer"
        for name, wanted, held_now in (
            ("present", condition.present, view.present),
            ("link active", condition.link_active, view.link_active),
        ):
            if wanted is not None and wanted is not held_now:
                return f"{condition.port}: {name} is {held_now}"
    return ""


def _resets(operation: Operation, topology: Topology, lease: Lease) -> bool:
    return operation.verb in WRITES and resets(operation, topology.get(operation.function), lease.rank)


def _mask_before_reset(book: Book, lease: Lease) -> Command[Refused | tuple[Address, ...]]:
    """P1, asked of the registers: what came into reach since open is saved and masked now; what will not be, refuses.

    Returns the slots that answered, all of them masked.
    """
    within = reachable(book.topology, lease.port, lease.quarantined)
    slots = tuple(function for function in within if function.hotplug_capable)
    fresh = unsaved(lease, slots)
    saved: tuple[SavedSlot, ...] = ()
    if fresh:
        saved = yield from save(book, fresh, {}, firmware_owned=lease.firmware_owned)
        yield Persist(Saved(id=lease.id, slots=saved))
    reached = yield from mask((*lease.slots, *saved), book.topology)
    if fresh:
        yield tell(What.LEASE_MASKED, lease.port, lease.id, lease.cause, slots=as_fact(saved, reached))
    for slot in slots:
        control, _ = yield from enables(slot)
        if enables_left(control):
            return refuse(Reason.UNMASKED, f"{slot.address} does not take the mask", lease.ref)
    return reached


def _write(
    lease: Lease, asked: Execute, topology: Topology, masked: tuple[Address, ...] | None
) -> Command[ExecuteReply]:
    """Write down what is meant, do it, write down what came of it; `masked` are the slots of a reset, for P1's proof."""
    most = debts.at_most(lease.debts, asked.operations, topology)
    book: Book = yield Persist(Meant(id=lease.id, n=asked.n, operations=asked.operations, debts=most))
    renewed: dict[Address, Known] = {}
    got: list[int | None] = []
    for operation in asked.operations:
        if operation.verb is Verb.ENUMERATE:
            count, book = yield from _enumerate(book, lease, operation.function)
            got.append(count)
            continue
        (value,) = _plain((yield from ask((operation,))))
        got.append(value)
        if operation.verb in WRITES and value is not None:
            known = renewed.get(operation.function) or book.snapshot(operation.function)
            if known is not None:
                renewed[operation.function] = _renewed(known, operation, value, lease)
    owed = lease.debts
    if debts.touched(asked.operations, topology):
        owed = yield from debts.settle(lease, most, topology)
    changed = tuple(one for one in renewed.values() if one != book.snapshot(one.function.address))
    yield Persist(_did(lease, asked, tuple(got), owed, changed))
    yield tell(
        What.LEASE_EXECUTED,
        lease.port,
        lease.id,
        lease.cause,
        n=asked.n,
        operations=[_as_fact(operation, value) for operation, value in zip(asked.operations, got, strict=True)],
        **({} if masked is None else {"masked": [str(port) for port in masked]}),
    )
    return Executed(values=tuple(got), lease=lease.ref)


def _renewed(known: Known, operation: Operation, value: int, lease: Lease) -> Known:
    address = known.function.address
    keeps = masks(lease, known.function) or address in lease.quarantined
    quiet = next((one for one in lease.quiet if one.function == address), None)
    return renew(known, operation, value, keep_enables=keeps, quiet=quiet)


def _did(lease: Lease, asked: Execute, got: tuple[int | None, ...], owed: Any, renewed: tuple[Known, ...] = ()) -> Did:
    return Did(id=lease.id, n=asked.n, operations=asked.operations, answer=got, debts=owed, renewed=renewed)


def _enumerate(book: Book, lease: Lease, bridge: Address) -> Command[tuple[int, Book]]:
    """Find what is behind a bridge now. Only a slot operation forgets: a recovery's devices come back."""
    found: tuple[Known, ...] = yield Enumerate()
    behind = {function.address for function in topology_of(found).below(bridge)}
    before = frozenset(function.address for function in book.topology.below(bridge))
    forgets = lease.rank is Rank.SLOT_OPERATION and (yield from _believable(book, bridge))
    if lease.rank is Rank.SLOT_OPERATION:
        book = yield from _relink(book, bridge, found)
    known = merge(
        book.known,
        tuple(one for one in found if one.function.address in behind),
        keep=frozenset() if lease.rank is Rank.SLOT_OPERATION else before,
        forget=before if forgets else frozenset(),
    )
    if known != book.known:
        down = book.down
        book = yield Persist(Enumerated(known=known))
        for port in sorted(down - book.down):
            yield tell(What.QUARANTINE_LIFTED, port, lease.id, lease.cause, by=f"{lease.holder}: the port is gone")
    return len(behind), book


def _relink(book: Book, bridge: Address, found: tuple[Known, ...]) -> Command[Book]:
    """Take the bridge's link as it is now: what another card has negotiated is no loss."""
    before, now = book.snapshot(bridge), next((one for one in found if one.function.address == bridge), None)
    if before is None or now is None or now.link in {before.link, None}:
        return book
    fresh = msgspec.structs.replace(before, link=now.link)
    known = tuple(fresh if one is before else one for one in book.known)
    after: Book = yield Persist(Enumerated(known=known))
    return after


def _believable(book: Book, bridge: Address) -> Command[bool]:
    """Tell whether finding nothing behind a bridge means that nothing is there: no port on the way holds it back."""
    topology = book.topology
    if book.quarantine_over(bridge) is not None:
        return False
    way = [topology.get(bridge), *topology.ancestors(bridge)]
    for port in (one for one in way if one.is_port):
        view = yield from look_at(port)
        if view is None or view.contained or view.in_reset:
            return False
    return True


def _plain(sent: tuple[Value, ...]) -> tuple[int | None, ...]:
    return tuple(value if answered(value) else None for value in sent)


def _as_fact(operation: Operation, value: int | None) -> dict[str, Any]:
    about: dict[str, Any] = {"verb": str(operation.verb), "function": str(operation.function), "value": value}
    if operation.verb is not Verb.ENUMERATE:
        about |= {"offset": operation.offset, "width": operation.width}
    if operation.verb is Verb.MODIFY:
        about["mask"] = operation.mask
    return about


# --- Role aer ---


def acknowledge(book: Book, asked: Acknowledge) -> Command[AcknowledgeReply]:
    """Clear the error bits that aer has read and published, and nothing else."""
    topology = book.topology
    known = [operation.function for operation in asked.operations if topology.find(operation.function) is not None]
    stale = asked.stale and (yield from is_stale(known, topology))
    for operation in asked.operations:
        function = topology.find(operation.function)
        if function is None:
            return refuse(Reason.UNKNOWN_PORT, f"no function at {operation.function}")
        wrong = malformed(operation)
        if wrong:
            return refuse(Reason.MALFORMED, wrong)
        if is_theirs(operation, topology, book.edr):
            return refuse(
                Reason.POLICY, f"{operation.function}: its error registers are the firmware's (firmware first)"
            )
        may = _acknowledgeable(function, uncorrectable=stale or bool(book.covering(operation.function)))
        if not any(_is_within(operation, register, base) for register, base in may):
            return refuse(Reason.POLICY, f"{operation.function} at {operation.offset:#x} is not for aer to clear (now)")
    got = _plain((yield from ask(asked.operations)))
    for operation, value in zip(asked.operations, got, strict=True):
        port = topology.lease_port(operation.function) or topology.get(operation.function)
        covering = next(iter(book.covering(operation.function)), None)
        yield tell(
            What.LEASE_ACKNOWLEDGED,
            port.address,
            covering.id if covering is not None else None,
            **_as_fact(operation, value),
        )
    first = book.covering(asked.operations[0].function) if asked.operations else ()
    return Executed(values=got, lease=first[0].ref if first else None)


def _acknowledgeable(function: Function, *, uncorrectable: bool) -> list[tuple[reg.Register, int]]:
    """Return the registers of a function that aer may clear bits of now."""
    caps = function.capabilities
    found = [(reg.DEVICE_STATUS, caps.express)] if caps.express else []
    if caps.aer:
        found += [(reg.CORRECTABLE_STATUS, caps.aer)]
        found += [(reg.UNCORRECTABLE_STATUS, caps.aer)] if uncorrectable else []
        found += [(reg.ROOT_ERROR_STATUS, caps.aer)] if function.kind.receives_errors else []
    return found


def _is_within(operation: Operation, register: reg.Register, base: int) -> bool:
    start = base + register.offset
    inside = start <= operation.offset and operation.offset + operation.width <= start + register.width
    return inside and bool(written(operation, register, base).mask)
