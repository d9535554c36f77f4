"""Questions that every role may ask. They change nothing, and no lease stands in their way."""

from __future__ import annotations

import msgspec

from shared.pcie import answered
from shared.protocol import Reason
from shared.protocol.fabric import (
    AskTopologyReply,
    Lease,
    LeaseList,
    Leases,
    LeasesReply,
    Quarantine,
    Read,
    ReadReply,
    TopologyReply,
    Values,
    Verb,
)
from shared.recovery import ask

from ._book import Book
from ._effects import Command
from ._leases import refuse
from ._rules import malformed
from ._silence import Hearing, quarantine_key, silent


def read_registers(book: Book, asked: Read) -> Command[ReadReply]:
    """Read registers of any function."""
    for operation in asked.operations:
        if operation.verb is not Verb.READ:
            return refuse(Reason.POLICY, f"{operation.verb} needs a token: `read` only reads")
        if book.topology.find(operation.function) is None:
            return refuse(Reason.UNKNOWN_PORT, f"no function at {operation.function}")
        wrong = malformed(operation)
        if wrong:
            return refuse(Reason.MALFORMED, wrong)
    sent = yield from ask(asked.operations)
    covering = book.covering(asked.operations[0].function) if asked.operations else ()
    return Values(
        values=tuple(value if answered(value) else None for value in sent),
        lease=covering[0].ref if covering else None,
    )


def list_leases(book: Book, asked: Leases, hearing: Hearing, now: float) -> LeasesReply:
    """Return the open leases without their tokens, and those that ended last."""
    leases = tuple(holding.lease for holding in book.leases) if asked.port is None else book.covering(asked.port)
    return LeaseList(
        leases=tuple(_timed(lease, hearing, now) for lease in leases),
        retired=tuple(ended.retired for ended in book.ended if asked.port is None or _touches(book, ended.port, asked)),
        quarantines=tuple(
            _aged(one, hearing, now)
            for one in book.quarantines
            if asked.port is None or _touches(book, one.port, asked)
        ),
        edr=tuple(port for port in book.edr if asked.port is None or _touches(book, port, asked)),
        ended_s=hearing.ended((one.retired.lease.id for one in book.ended), now),
    )


def _touches(book: Book, port: object, asked: Leases) -> bool:
    assert asked.port is not None
    return port in book.topology.path(asked.port)


def _timed(lease: Lease, hearing: Hearing, now: float) -> Lease:
    heard = hearing.get(lease.id, now)
    return msgspec.structs.replace(lease, token=0, silent_s=silent(heard, now), age_s=now - heard.opened)


def _aged(record: Quarantine, hearing: Hearing, now: float) -> Quarantine:
    heard = hearing.get(quarantine_key(record.port), now)
    return msgspec.structs.replace(record, age_s=now - heard.opened)


def tell_topology(book: Book) -> AskTopologyReply:
    """Return the functions as last enumerated."""
    return TopologyReply(topology=book.topology)
