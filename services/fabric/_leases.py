"""The commands on a lease, but for `execute`: open (`_opening`), beat, adopt, close (`_closing`).

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
    open      the port, or one above, is in quarantine               QUARANTINED
    open      it lifts what is not in quarantine, or is no recovery  POLICY
    open      the firmware keeps what it would have to mask          POLICY
    open      admission (rank by ancestry): somebody comes first     HELD
    adopt     no such lease                                          UNKNOWN_LEASE
    close     a reset bit is set                                     IN_RESET
    close     a port for quarantine that nothing holds down          POLICY
    close     the hardware is away                                   CONDITION
"""

from __future__ import annotations

from shared.protocol import LeaseRef, Reason, Refused
from shared.protocol.fabric import Adopt, Adopted, AdoptReply, Role
from shared.protocol.facts import What

from . import _debts as debts
from ._book import Book, Holding, Passed
from ._effects import Command, Persist, tell


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
    owed = yield from debts.settle(before, before.debts, book.topology)
    book = yield Persist(Passed(id=asked.id, token=token, holder=asked.holder, debts=owed))
    about = {"holder": asked.holder, "before": before.holder, "silent_s": round(silent_s, 3)}
    expired = silent_s > before.allowed_s
    yield tell(What.LEASE_ADOPTED, before.port, before.id, before.cause, **about, expired=expired)
    adopted = book.by_id(asked.id)
    assert adopted is not None
    return Adopted(lease=adopted.lease)
