"""Finishing what somebody left: leases that nobody works under, and journals whose lease the fabric has closed.

Both go forward by the very code that a healthy recovery runs: a work is made from lease and journal, and begins at the
step that the journal names. What drivers have been told already is in the journal, and is not told again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import msgspec

from shared.pcie import Address
from shared.protocol import Refused, subjects
from shared.protocol.fabric import Lease, Open, Rank, RetiredLease
from shared.protocol.facts import What
from shared.protocol.records import Recovery, RecoveryState
from shared.protocol.requests import ResetMethod
from shared.recovery import Step
from shared.runtime import LeaseHandle

from ._function_resets import IN_FUNCTION
from ._holds import HELD, HoldWork
from ._journal import Journal, blank, inherit, record_of
from ._opening import named
from ._plan import PLANS, Chosen, choose
from ._recovering import RecoveryWork
from ._resetting import FUNCTION, INSIDE, METHOD, ResetWork
from ._salvage import Salvage
from ._votes import verdict
from ._work import Work
from ._works import Works

_RESUMABLE: Final = frozenset(str(step) for step in Step if step is not Step.CLOSED)  # as a journal names them


async def adopt(works: Works, lease: Lease, ended: Callable[[], object]) -> None:
    """Adopt an open lease and go on with its work. Raises RefusedError if it is open no more."""
    if works.find(lease.id) is not None:
        return
    # The journal first, which only the host's owner writes: whoever cannot read it leaves the lease to fall silent.
    record = await record_under(works, lease)
    inside = await _reset_inside(works, lease)
    if inside is not None:
        record = await with_what_was_left(works, msgspec.structs.replace(blank(lease), step=HELD), lease, but=inside)
    handle = await works.fabric.adopt(lease.id)
    _go_on(works, handle, record, ended)
    if inside is not None:
        _go_on_inside(works, inside, ended)


async def _reset_inside(works: Works, lease: Lease) -> Recovery | None:
    """Return the journal of a reset that was under way inside this lease, a hold's: it stands where the hold's stood."""
    found = await _journal_of(works, lease.port)
    if found is None or found.details.get(INSIDE) != lease.id or works.hopeless(lease.id) is not None:
        return None
    if (old := works.find(found.lease)) is not None:  # ours: it has lost the lease, and may not know yet
        await works.stop(old)
    return found if found.state is RecoveryState.OPEN else None


def _go_on_inside(works: Works, record: Recovery, ended: Callable[[], object]) -> None:
    """Go on with a reset inside a hold: the hold's user waits for its end, and the hold for its user."""
    hold = works.find(record.details[INSIDE])
    assert isinstance(hold, HoldWork), "a hold that was just taken over"
    journal = Journal(works.context, record)
    work = ResetWork(works.context, works.fabric, works.topology, hold.handle, journal, _chosen(works, record))
    works.launch(work, work.run_inside(hold), ended)


async def record_under(works: Works, lease: Lease) -> Recovery:
    """Return a lease's journal; for one who died before he wrote any, a blank one with what was left to it."""
    found = await _journal_of(works, lease.port)
    if found is not None and found.lease == lease.id:
        return found
    return await with_what_was_left(works, blank(lease), lease)


async def with_what_was_left(works: Works, record: Recovery, lease: Lease, *, but: Recovery | None = None) -> Recovery:
    """Return the record of a lease that begins, with what was begun with drivers before it, as far as journals tell.

    That is under the leases that it absorbed, under the one that began the quarantine that it lifts (drivers without
    callbacks were unbound there, P3), and in a reset inside this very lease; `but` one that is gone on with itself.
    """
    before = {one.lease.id for one in (await works.fabric.leases()).retired if one.absorbed_by == lease.id}
    if lease.lifted is not None:
        before.add(lease.lifted)
    entries = await works.context.bus.keys(f"recovery.{works.context.host}.")
    records = (record_of(works.context, entry) for entry in entries)
    left = (one for one in records if one is not None and one != but)
    return inherit(record, (one for one in left if one.lease in before or one.details.get(INSIDE) == lease.id))


async def _journal_of(works: Works, port: Address) -> Recovery | None:
    return record_of(works.context, await works.context.bus.get(subjects.recovery_key(works.context.host, port)))


async def reopen(works: Works, record: Recovery, retired: RetiredLease | None, ended: Callable[[], object]) -> None:
    """Finish a journal whose lease is gone: tell the drivers what they have not been told, under a new lease."""
    if works.find(record.lease) is not None or await _journal_of(works, record.port) != record:
        return  # it was closed, or gone on with, since the survey read it
    journal = Journal(works.context, record)
    heir = retired.absorbed_by if retired else None
    untold = record.rank in {Rank.RECOVERY, Rank.USER} and record.step != Step.CLOSE
    if heir is not None or INSIDE in record.details or not untold:
        await _conclude(works, journal, retired)
        return
    settings = works.context.settings
    command = Open(
        id=works.new_id("r" if record.rank is Rank.RECOVERY else "u", record.port),
        port=named(record.port, works.topology),
        rank=record.rank,
        cause=record.cause,
        holder=settings.instance,
        reach=record.reach,
        allowed_s=settings.allowed_s,
    )
    reply = await works.fabric.open(command)
    if isinstance(reply, Refused):
        return  # somebody covers the port: the next survey tries again, or finds the journal overwritten
    left = await works.absorbed(reply.absorbed, reply.lease.id, record.port)
    details = {**record.details, "continues": record.lease}
    again = inherit(msgspec.structs.replace(record, lease=reply.lease.id, details=details), left)
    _go_on(works, LeaseHandle(reply.lease), again, ended)


def _go_on(works: Works, handle: LeaseHandle, record: Recovery, ended: Callable[[], object]) -> None:
    count_on(works, record, handle.lease.age_s)
    work = _work(works, handle, record)
    works.launch(work, work.run(), ended)
    work.say(What.RECOVERY_PROGRESS, taken_over=True, step=record.step)


def count_on(works: Works, record: Recovery, begun_s: float) -> None:
    """Count a predecessor's recoveries of the port on; the last was begun `begun_s` seconds ago by the fabric's clock."""
    ages = tuple(age + begun_s for age in record.begun)
    works.storms.take_over(record.port, ages, asyncio.get_running_loop().time())


def _work(works: Works, handle: LeaseHandle, record: Recovery) -> Work:
    """Return the work that lease and record speak of. Causes and steps of another version are closed as a hold would be.

    Whatever the journal says, the lease must not be lost to it: it would be adopted for ever and nothing follow.
    """
    journal = Journal(works.context, record)
    common = (works.context, works.fabric, works.topology, handle, journal)
    if (failure := works.hopeless(handle.id)) is not None:
        return Salvage(*common, failure)
    if record.rank is Rank.RECOVERY and record.cause in PLANS and record.step in _RESUMABLE:
        return RecoveryWork(*common)
    if record.rank is Rank.USER:
        return ResetWork(*common, _chosen(works, record))
    return HoldWork(*common)


def _chosen(works: Works, record: Recovery) -> Chosen | None:
    """Return what was chosen before; None where it cannot be chosen any more."""
    address, method = record.details.get(FUNCTION), record.details.get(METHOD)
    function = None if address is None else works.topology.find(Address.parse(address))
    if function is None or method is None:
        return None
    chosen = choose(function, works.topology, ResetMethod(method), IN_FUNCTION, domain=True)  # it was able, and allowed
    return chosen if isinstance(chosen, Chosen) else None


async def _conclude(works: Works, journal: Journal, retired: RetiredLease | None) -> None:
    record = journal.record
    outcomes = () if retired is None else retired.outcomes
    verdicts = {
        str(one.function): verdict(str(one.function), one.result, record.told, journal.unanswered) for one in outcomes
    }
    heir = retired.absorbed_by if retired else None
    await journal.close(verdicts, absorbed_by=heir)
    works.context.facts.say(
        What.RECOVERY_CLOSED, record.port, lease=record.lease, cause=record.cause, verdicts=verdicts, absorbed_by=heir
    )
