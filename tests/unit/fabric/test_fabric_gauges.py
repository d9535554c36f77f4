"""What /metrics says of leases: read from the book at the scrape."""

from __future__ import annotations

from services.fabric._book import Book, Holding
from services.fabric._gauges import lease_gauges
from services.fabric._silence import Hearing
from shared.pcie import Address
from shared.protocol.fabric import Lease, Quarantine, Rank, Reach, Role, SavedSlot

PORT, BELOW = Address.parse("0000:3b:00.0"), Address.parse("0000:3d:00.0")


def lease(name: str, rank: Rank, *masked: Address) -> Lease:
    return Lease(
        id=name,
        token=1,
        port=PORT,
        rank=rank,
        reach=Reach.RESET if masked else Reach.NOTHING,
        role=Role.COORDINATOR,
        cause="dpc",
        holder="one",
        allowed_s=5.0,
        slots=tuple(SavedSlot(port=port, enables=1, surprise_down_masked=None) for port in masked),
    )


def read(hearing: Hearing, now: float, *leases: Lease) -> dict[str, dict[tuple[str, ...], float]]:
    found: dict[str, dict[tuple[str, ...], float]] = {}
    book = Book(leases=tuple(map(Holding, leases)))
    for reading in lease_gauges(book, hearing, "lab", now):
        assert reading.labels not in found.setdefault(reading.gauge.name, {})
        found[reading.gauge.name][reading.labels] = reading.value
    return found


def test_without_leases_every_rank_is_told_to_have_none() -> None:
    got = read(Hearing(), 0.0)
    assert got == {"holdfast_leases_open": {("lab", rank.name.lower()): 0 for rank in Rank}}


def test_a_mask_s_age_counts_from_its_opening_and_its_holder_s_silence_from_the_last_word() -> None:
    hearing = Hearing()
    hearing.note("r-1", 100.0)
    hearing.note("r-1", 107.0)
    got = read(hearing, 110.0, lease("r-1", Rank.RECOVERY, PORT, BELOW))
    assert got["holdfast_mask_age_seconds"] == {
        ("lab", str(PORT), "r-1", "dpc"): 10.0,
        ("lab", str(BELOW), "r-1", "dpc"): 10.0,
    }
    assert got["holdfast_lease_silent_seconds"] == {("lab", str(PORT), "r-1"): 3.0}
    assert got["holdfast_lease_allowed_seconds"] == {("lab", str(PORT), "r-1"): 5.0}
    assert got["holdfast_leases_open"]["lab", "recovery"] == 1


def test_every_port_in_quarantine_is_told() -> None:
    book = Book(quarantines=(Quarantine(port=PORT, lease="r-1", why="storm"),))
    readings = [one for one in lease_gauges(book, Hearing(), "lab", 0.0) if one.gauge.name == "holdfast_quarantined"]
    assert [(one.labels, one.value) for one in readings] == [(("lab", str(PORT)), 1)]


def test_a_lease_that_masks_nothing_is_no_mask() -> None:
    got = read(Hearing(), 1.0, lease("slot-1", Rank.SLOT_OPERATION))
    assert "holdfast_mask_age_seconds" not in got
    assert got["holdfast_leases_open"]["lab", "slot_operation"] == 1
