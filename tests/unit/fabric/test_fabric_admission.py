"""Admission: rank by ancestry, the whole matrix, and against a deliberately dumb second version."""

from __future__ import annotations

from itertools import product

import pytest

from services.fabric._admission import RULES, Place, Ruling, Standing, admit, place, standing
from shared.pcie import Address, Capabilities, Function, Identity, Topology
from shared.pcie.registers import DeviceType
from shared.protocol.fabric import Lease, Rank, Reach, Role

ABOVE, PORT, BELOW, ASIDE = (Address.parse(text) for text in ("00:01.0", "02:00.0", "04:00.0", "02:01.0"))
_NOBODY = Identity(vendor=1, device=1, class_code=0, revision=0, subsystem=0)


def _port(address: Address, parent: Address | None) -> Function:
    return Function(address, DeviceType.DOWNSTREAM_PORT, _NOBODY, Capabilities(), parent)


TOPOLOGY = Topology((_port(ABOVE, None), _port(PORT, ABOVE), _port(BELOW, PORT), _port(ASIDE, ABOVE)))


def lease(port: Address, rank: Rank, name: str = "other") -> Lease:
    return Lease(
        id=name,
        token=1,
        port=port,
        rank=rank,
        reach=Reach.NOTHING,
        role=Role.COORDINATOR,
        cause="",
        holder="",
        allowed_s=5,
    )


def _dumb(rank: Rank, reach: Reach, other: Rank, where: Address) -> str:
    """DESIGN 4 and the brief, sentence by sentence."""
    if where == ASIDE:
        return "nothing"
    if rank is Rank.SLOT_OPERATION:
        return "waits"  # refused if any lease overlaps
    if other is Rank.SLOT_OPERATION:
        return "absorbs"  # slot operations anywhere overlapping are absorbed by any higher rank
    if where == ABOVE or (where == PORT and other >= rank):
        return "waits"
    if where == PORT:
        return "absorbs"  # lower ranks on the port
    return "absorbs" if reach is Reach.RESET and other <= rank else "waits"


ASKED = [
    (rank, reach)
    for rank, reach in product(Rank, Reach)
    if rank is not Rank.SLOT_OPERATION or reach is Reach.NOTHING  # else refused before admission
]


@pytest.mark.parametrize(("rank", "reach"), ASKED)
@pytest.mark.parametrize("other", Rank)
@pytest.mark.parametrize("where", [ABOVE, PORT, BELOW, ASIDE])
def test_p6_one_owner_per_subtree(rank: Rank, reach: Reach, other: Rank, where: Address) -> None:
    admission = admit(PORT, rank, reach, (lease(where, other),), TOPOLOGY)
    said = "waits" if admission.waits_for else "absorbs" if admission.absorbed else "nothing"
    assert said == _dumb(rank, reach, other, where)


def test_the_table_rules_on_every_standing_and_place() -> None:
    assert set(RULES) == set(product(Standing, Place))


def test_nobody_absorbs_a_rank_above_his_own() -> None:
    assert all(RULES[Standing.HIGHER, where] == (Ruling.WAIT, Ruling.WAIT) for where in Place)


def test_one_lease_in_the_way_is_enough_and_nothing_is_absorbed() -> None:
    leases = (lease(BELOW, Rank.SLOT_OPERATION, "slot"), lease(ABOVE, Rank.RECOVERY, "recovery"))
    admission = admit(PORT, Rank.RECOVERY, Reach.RESET, leases, TOPOLOGY)
    assert admission.absorbed == ()
    assert admission.waits_for is leases[1]


def test_place_and_standing() -> None:
    assert [place(PORT, other, TOPOLOGY) for other in (ABOVE, PORT, BELOW, ASIDE)] == [
        Place.ABOVE,
        Place.SAME,
        Place.BELOW,
        None,
    ]
    assert standing(Rank.SLOT_OPERATION, Rank.SLOT_OPERATION) is Standing.EQUAL
    assert standing(Rank.USER, Rank.RECOVERY) is Standing.HIGHER
