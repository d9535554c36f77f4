"""What a fabric believes when it starts, or when the hardware comes back: registers, unless a lease says otherwise."""

from __future__ import annotations

from shared.pcie import Address
from shared.recovery import look_at

from ._book import Book
from ._effects import Command
from ._snapshot import Known
from ._topology import merge


def held_back(book: Book) -> Command[frozenset[Address]]:
    """Return the functions known that may be there although enumeration does not find them.

    Those are all that a lease or a quarantine covers, and all behind a port that is contained, disabled, in reset or
    away.
    """
    topology = book.topology
    found: set[Address] = set()
    for holding in book.leases:
        if topology.find(holding.lease.port) is not None:
            found |= {function.address for function in topology.domain(holding.lease.port)}
    for record in book.quarantines:
        found |= {record.port, *(function.address for function in topology.below(record.port))}
    for port in (function for function in topology if function.is_port):
        view = yield from look_at(port)
        if view is None or view.contained or view.disabled or view.in_reset:
            found |= {function.address for function in topology.below(port.address)}
    return frozenset(found)


def after_enumeration(book: Book, found: tuple[Known, ...], back: frozenset[Address]) -> tuple[Known, ...]:
    """Return what is known from now on.

    Under a lease that masks or resets, registers hold what the lease has made of them, so the snapshot stands; and so in
    quarantine. Other functions are taken as they are now.
    """
    missing = {one.function.address for one in book.known} - {one.function.address for one in found}
    covered = frozenset(address for address in back if book.covering(address) or book.quarantine_over(address))
    return merge(book.known, found, keep=covered, forget=frozenset(missing - back))
