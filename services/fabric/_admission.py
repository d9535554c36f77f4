"""Who may open a lease, whose leases it absorbs, and who stands in its way: rank by ancestry, as one table. Pure.

Rank first, then ancestry (DESIGN 4). Two leases touch if one's port is, or is above, the other's. Leases that do not
touch never meet here.
"""

from __future__ import annotations

from enum import Enum, StrEnum
from typing import Final

import msgspec

from shared.pcie import Address, Topology
from shared.protocol.fabric import Lease, Rank, Reach


class Place(StrEnum):
    """Where the other lease is, seen from the port that is asked for."""

    ABOVE = "above"
    SAME = "same"
    BELOW = "below"


class Standing(StrEnum):
    """How the other lease's rank compares with the rank that is asked for."""

    SLOT = "slot"  # a slot operation, and the asker is not one
    LOWER = "lower"
    EQUAL = "equal"  # two slot operations included
    HIGHER = "higher"


class Ruling(Enum):
    """What becomes of the asker, or of the other."""

    ABSORB = "absorb"
    WAIT = "wait"


_A, _W = Ruling.ABSORB, Ruling.WAIT

# (standing of the other, place of the other) -> ruling if the asker resets, ruling if it does not
RULES: Final[dict[tuple[Standing, Place], tuple[Ruling, Ruling]]] = {
    (Standing.SLOT, Place.ABOVE): (_A, _A),  # P5: a slot operation loses its lease at once, wherever it overlaps
    (Standing.SLOT, Place.SAME): (_A, _A),
    (Standing.SLOT, Place.BELOW): (_A, _A),
    (Standing.LOWER, Place.ABOVE): (_W, _W),  # its domain is wider than ours: what it owes there we could not inherit
    (Standing.LOWER, Place.SAME): (_A, _A),
    (Standing.LOWER, Place.BELOW): (_A, _W),  # callbacks alone wait for those below
    (Standing.EQUAL, Place.ABOVE): (_W, _W),
    (Standing.EQUAL, Place.SAME): (_W, _W),
    (Standing.EQUAL, Place.BELOW): (_A, _W),
    (Standing.HIGHER, Place.ABOVE): (_W, _W),
    (Standing.HIGHER, Place.SAME): (_W, _W),
    (Standing.HIGHER, Place.BELOW): (_W, _W),  # nobody absorbs a rank above his own
}


class Admission(msgspec.Struct, frozen=True):
    """Whose leases are absorbed; or, if `waits_for` is set, who stands in the way, and nothing happens."""

    absorbed: tuple[Lease, ...] = ()
    waits_for: Lease | None = None


def place(port: Address, other: Address, topology: Topology) -> Place | None:
    """Return where `other` is, seen from `port`; None if the two do not touch."""
    if port == other:
        return Place.SAME
    if any(bridge.address == other for bridge in topology.ancestors(port)):
        return Place.ABOVE
    return Place.BELOW if any(bridge.address == port for bridge in topology.ancestors(other)) else None


def standing(rank: Rank, other: Rank) -> Standing:
    """Compare the other's rank with the asker's."""
    if other is Rank.SLOT_OPERATION and rank is not Rank.SLOT_OPERATION:
        return Standing.SLOT
    if other is rank:
        return Standing.EQUAL
    return Standing.LOWER if other < rank else Standing.HIGHER


def admit(port: Address, rank: Rank, reach: Reach, leases: tuple[Lease, ...], topology: Topology) -> Admission:
    """Judge a request for `port` against all open leases (without the asker's own, when it escalates)."""
    absorbed = []
    for lease in leases:
        where = place(port, lease.port, topology)
        if where is None:
            continue
        resets, reaches_less = RULES[standing(rank, lease.rank), where]
        # A slot operation never resets, so by the same table it waits for every lease that it touches.
        ruling = resets if reach is Reach.RESET else reaches_less
        if ruling is Ruling.WAIT:
            return Admission(waits_for=lease)
        absorbed.append(lease)
    return Admission(absorbed=tuple(absorbed))
