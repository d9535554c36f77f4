"""What the fabric remembers, and the entries that it is made of: the book is the fold of the ledger.

A command changes the book only by an entry, and an entry is on the disk before anything that follows from it happens.
So what a restarted fabric reads is what the dead one knew, by the same function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

import msgspec

from shared.pcie import Address, Topology
from shared.protocol import Message
from shared.protocol.fabric import (
    Debts,
    FunctionOutcome,
    Lease,
    Operation,
    Quarantine,
    RetiredLease,
    Role,
    SavedSlot,
    quarantine_over,
)
from shared.protocol.facts import What

from ._snapshot import Known
from ._topology import topology_of

_ENDED_MAX: Final = 64  # leases remembered after their end: for `leases`, and for holders who ask again


class Holding(msgspec.Struct, frozen=True):
    """An open lease, and what its token executed last. `answer` belongs to `lease.last_n`."""

    lease: Lease
    operations: tuple[Operation, ...] = ()
    answer: tuple[int | None, ...] | None = None
    closing: bool = False  # close has begun: a restarted fabric finishes it
    quarantine: tuple[Address, ...] = ()  # the ports that this close leaves down ...
    why: str = ""  # ... and why


class Ended(msgspec.Struct, frozen=True):
    """A lease that is over. Its token stays known, so that a close that is asked again is answered again."""

    token: int
    role: Role
    port: Address
    retired: RetiredLease


class Answer(msgspec.Struct, frozen=True):
    """What the firmware has to be told of an EDR event, and under which lease it was dealt with."""

    port: Address
    status: int
    lease: str | None = None  # None: of a port that is not known
    cause: str | None = None


class Said(Message, frozen=True, tag="said"):
    """A fact, established and not yet known to be stored on the bus."""

    what: What
    port: Address
    lease: str | None = None
    cause: str | None = None
    data: dict[str, Any] = msgspec.field(default_factory=dict)

    def applied_to(self, book: Book) -> Book:
        """Return the book after this entry."""
        return msgspec.structs.replace(book, said=(*book.said, self))


class Book(msgspec.Struct, frozen=True):
    """Everything durable. `minted` is the highest token ever given out."""

    minted: int = 0
    leases: tuple[Holding, ...] = ()
    ended: tuple[Ended, ...] = ()  # newest first
    known: tuple[Known, ...] = ()
    quarantines: tuple[Quarantine, ...] = ()
    firmware_first: bool = False
    edr: tuple[Address, ...] = ()  # ports whose EDR event has not been answered
    answers: tuple[Answer, ...] = ()  # decided, and not yet known to have reached the firmware
    said: tuple[Said, ...] = ()

    @property
    def topology(self) -> Topology:
        """The tree of all functions known."""
        return msgspec.structs.replace(topology_of(self.known), firmware_first=self.firmware_first)

    def by_id(self, lease: str) -> Holding | None:
        """Return the open lease of this id."""
        return next((holding for holding in self.leases if holding.lease.id == lease), None)

    def by_token(self, token: int) -> Holding | None:
        """Return the open lease that this token is good for now."""
        return next((holding for holding in self.leases if holding.lease.token == token), None)

    def covering(self, function: Address) -> tuple[Lease, ...]:
        """Return the open leases that cover `function`: on its port or on an ancestor; highest rank, nearest first."""
        topology = self.topology
        above = topology.path(function)
        found = [holding.lease for holding in self.leases if holding.lease.port in above]
        return tuple(sorted(found, key=lambda lease: (-lease.rank, above.index(lease.port))))

    @property
    def down(self) -> frozenset[Address]:
        """The ports in quarantine."""
        return frozenset(one.port for one in self.quarantines)

    def quarantine_over(self, function: Address) -> Quarantine | None:
        """Return the highest quarantine that covers `function`: of the port itself, or of one above it."""
        return quarantine_over(self.topology.path(function), self.quarantines)

    def snapshot(self, function: Address) -> Known | None:
        """Return what is known of a function."""
        return next((one for one in self.known if one.function.address == function), None)


# --- Entries ---


class Began(Message, frozen=True, tag="book"):
    """The whole book, as compaction leaves it: always the first entry of a ledger."""

    book: Book

    def applied_to(self, book: Book) -> Book:
        """Return the book after this entry."""
        assert book == Book(), "a book begins a ledger"
        return self.book


class Enumerated(Message, frozen=True, tag="enumerated"):
    """All functions known from now on. The quarantine of a port that is forgotten is over: its card was taken away."""

    known: tuple[Known, ...]

    def applied_to(self, book: Book) -> Book:
        """Return the book after this entry."""
        here = {one.function.address for one in self.known}
        quarantines = tuple(one for one in book.quarantines if one.port in here)
        return msgspec.structs.replace(book, known=self.known, quarantines=quarantines)


class Found(Message, frozen=True, tag="found"):
    """Whether the host is firmware first, as its hardware says."""

    firmware_first: bool

    def applied_to(self, book: Book) -> Book:
        """Return the book after this entry."""
        return msgspec.structs.replace(book, firmware_first=self.firmware_first)


class Took(Message, frozen=True, tag="took"):
    """A lease was opened, or its reach widened; those absorbed ended with it, and the quarantine that it lifts."""

    lease: Lease
    absorbed: tuple[str, ...] = ()
    lifts: Address | None = None

    def applied_to(self, book: Book) -> Book:
        """Return the book after this entry."""
        return _took(book, self)


class Saved(Message, frozen=True, tag="saved"):
    """Slots that became reachable under a lease, as they were found, before they are masked."""

    id: str
    slots: tuple[SavedSlot, ...]

    def applied_to(self, book: Book) -> Book:
        """Return the book after this entry."""
        return _update(book, self.id, lambda it: _lease(it, slots=(*it.lease.slots, *self.slots)))


class Meant(Message, frozen=True, tag="meant"):
    """A command is about to be executed. `debts` is the most that the lease may owe after it."""

    id: str
    n: int
    operations: tuple[Operation, ...]
    debts: Debts

    def applied_to(self, book: Book) -> Book:
        """Return the book after this entry."""
        return _update(book, self.id, lambda it: _lease(it, debts=self.debts))


class Did(Message, frozen=True, tag="did"):
    """A command was executed: its answer, what the lease owes now, and the snapshots that it renewed."""

    id: str
    n: int
    operations: tuple[Operation, ...]
    answer: tuple[int | None, ...]
    debts: Debts
    renewed: tuple[Known, ...] = ()

    def applied_to(self, book: Book) -> Book:
        """Return the book after this entry."""
        return _did(book, self)


class Passed(Message, frozen=True, tag="passed"):
    """A lease was adopted: the old token is dead."""

    id: str
    token: int
    holder: str
    debts: Debts

    def applied_to(self, book: Book) -> Book:
        """Return the book after this entry."""
        book = msgspec.structs.replace(book, minted=max(book.minted, self.token))
        return _update(book, self.id, lambda it: _passed(it, self))


class Closing(Message, frozen=True, tag="closing"):
    """Close has begun, and leaves these ports down."""

    id: str
    quarantine: tuple[Address, ...] = ()
    why: str = ""

    def applied_to(self, book: Book) -> Book:
        """Return the book after this entry."""
        begun = {"closing": True, "quarantine": self.quarantine, "why": self.why}
        return _update(book, self.id, lambda it: msgspec.structs.replace(it, **begun))


class Retired(Message, frozen=True, tag="retired"):
    """A lease is over: what it leaves in quarantine, has renewed in the snapshot, and has the firmware told."""

    id: str
    outcomes: tuple[FunctionOutcome, ...]
    quarantines: tuple[Quarantine, ...] = ()
    renewed: tuple[Known, ...] = ()
    answers: tuple[Answer, ...] = ()

    def applied_to(self, book: Book) -> Book:
        """Return the book after this entry."""
        book = _renewed(_retire(book, self.id, self.outcomes), self.renewed)
        return msgspec.structs.replace(
            book, quarantines=(*book.quarantines, *self.quarantines), answers=(*book.answers, *self.answers)
        )


class HandedOver(Message, frozen=True, tag="handed_over"):
    """The firmware has notified of a port: its EDR event is open."""

    port: Address

    def applied_to(self, book: Book) -> Book:
        """Return the book after this entry."""
        return msgspec.structs.replace(book, edr=tuple(sorted({*book.edr, self.port})))


class Decided(Message, frozen=True, tag="decided"):
    """What the firmware is to be told of a port, though no lease has dealt with it."""

    answer: Answer

    def applied_to(self, book: Book) -> Book:
        """Return the book after this entry."""
        return msgspec.structs.replace(book, answers=(*book.answers, self.answer))


class Answered(Message, frozen=True, tag="answered"):
    """The firmware has been told of a port: its EDR event is over."""

    port: Address

    def applied_to(self, book: Book) -> Book:
        """Return the book after this entry."""
        return msgspec.structs.replace(
            book,
            edr=tuple(port for port in book.edr if port != self.port),
            answers=tuple(one for one in book.answers if one.port != self.port),
        )


class Stored(Message, frozen=True, tag="stored"):
    """The first `count` facts are stored on the bus, and need not be kept here."""

    count: int

    def applied_to(self, book: Book) -> Book:
        """Return the book after this entry."""
        return msgspec.structs.replace(book, said=book.said[self.count :])


Entry: TypeAlias = (
    Began | Enumerated | Found | Took | Saved | Meant | Did | Passed | Closing | Retired | HandedOver | Decided | Answered | Said
    | Stored
)  # fmt: skip


def _lease(holding: Holding, **changes: Any) -> Holding:
    return msgspec.structs.replace(holding, lease=msgspec.structs.replace(holding.lease, **changes))


def _update(book: Book, lease: str, change: Callable[[Holding], Holding]) -> Book:
    leases = tuple(change(one) if one.lease.id == lease else one for one in book.leases)
    return msgspec.structs.replace(book, leases=leases)


def _took(book: Book, entry: Took) -> Book:
    for absorbed in entry.absorbed:
        book = _retire(book, absorbed, (), heir=entry.lease.id)
    own = book.by_id(entry.lease.id)
    taken = Holding(entry.lease) if own is None else msgspec.structs.replace(own, lease=entry.lease)
    others = tuple(one for one in book.leases if one.lease.id != entry.lease.id)
    return msgspec.structs.replace(
        book,
        minted=max(book.minted, entry.lease.token),
        leases=(*others, taken),
        quarantines=tuple(one for one in book.quarantines if one.port != entry.lifts),
    )


def _did(book: Book, entry: Did) -> Book:
    book = _renewed(book, entry.renewed)
    return _update(
        book,
        entry.id,
        lambda it: msgspec.structs.replace(
            _lease(it, debts=entry.debts, last_n=entry.n), operations=entry.operations, answer=entry.answer
        ),
    )


def _renewed(book: Book, several: tuple[Known, ...]) -> Book:
    renewed = {one.function.address: one for one in several}
    return msgspec.structs.replace(book, known=tuple(renewed.get(one.function.address, one) for one in book.known))


def _passed(holding: Holding, entry: Passed) -> Holding:
    lease = msgspec.structs.replace(holding.lease, token=entry.token, holder=entry.holder, debts=entry.debts, last_n=0)
    return Holding(lease, closing=holding.closing, quarantine=holding.quarantine, why=holding.why)


def _retire(book: Book, lease: str, outcomes: tuple[FunctionOutcome, ...], heir: str | None = None) -> Book:
    holding = book.by_id(lease)
    if holding is None:
        return book
    ended = Ended(
        token=holding.lease.token,
        role=holding.lease.role,
        port=holding.lease.port,
        retired=RetiredLease(
            lease=holding.lease.ref, outcomes=outcomes, absorbed_by=heir, accepted=holding.lease.accepts
        ),
    )
    return msgspec.structs.replace(
        book,
        leases=tuple(one for one in book.leases if one.lease.id != lease),
        ended=(ended, *book.ended)[:_ENDED_MAX],
    )
