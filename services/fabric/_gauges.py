"""The fabric's figures: every open lease, every slot that one masks, and every quarantine. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from shared.protocol.fabric import Rank
from shared.runtime import Reading, gauges

from ._book import Book
from ._silence import Hearing, silent


def lease_gauges(book: Book, hearing: Hearing, host: str, now: float) -> Iterator[Reading]:
    """Yield the open leases by rank, and for each how old, how silent and how patient it is."""
    leases = tuple(holding.lease for holding in book.leases)
    for rank in Rank:
        count = sum(lease.rank is rank for lease in leases)
        yield gauges.LEASES_OPEN.reads(count, host, rank.name.lower())
    for lease in leases:
        heard = hearing.get(lease.id, now)
        yield gauges.LEASE_SILENT.reads(silent(heard, now), host, lease.port, lease.id)
        yield gauges.LEASE_ALLOWED.reads(lease.allowed_s, host, lease.port, lease.id)
        for slot in lease.slots:
            yield gauges.MASK_AGE.reads(now - heard.opened, host, slot.port, lease.id, lease.cause)
    for record in book.quarantines:
        yield gauges.QUARANTINED.reads(1, host, record.port)
