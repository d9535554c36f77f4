"""The ledger: what is replayed, what is cut off, and what stops the fabric."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from services.fabric._book import Ended, Holding, Passed, Took
from services.fabric._ledger import EXIT_CORRUPT, EXIT_IN_USE, EXIT_UNWRITABLE, Ledger, LedgerError
from shared.pcie import Address
from shared.protocol.fabric import Debts, Lease, Rank, Reach, Role

PORT = Address.parse("00:01.0")


def lease(name: str, token: int) -> Lease:
    return Lease(
        id=name,
        token=token,
        port=PORT,
        rank=Rank.USER,
        reach=Reach.RESET,
        role=Role.COORDINATOR,
        cause="",
        holder="",
        allowed_s=5,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a ledger with three entries: the (empty) book, and two leases."""
    path = tmp_path / "deep" / "ledger"
    ledger = Ledger(path)
    ledger.append(Took(lease=lease("a", 1)))
    ledger.append(Took(lease=lease("b", 2), absorbed=("a",)))
    ledger.sync()
    ledger.close()
    return path


def test_what_was_appended_is_replayed(path: Path) -> None:
    ledger = Ledger(path)
    assert ledger.book.leases == (Holding(lease("b", 2)),)
    assert isinstance(ledger.book.ended[0], Ended)
    assert ledger.book.ended[0].retired.absorbed_by == "b"
    assert ledger.book.minted == 2
    ledger.close()


def test_p7_compaction_keeps_the_highest_token_when_no_lease_is_left(path: Path) -> None:
    ledger = Ledger(path)
    ledger.append(Passed(id="b", token=7, holder="x", debts=Debts()))
    ledger.compact()
    ledger.close()
    assert path.read_bytes().count(b"\n") == 1
    again = Ledger(path)
    assert again.book == ledger.book
    assert again.book.minted == 7
    again.close()


def test_a_torn_tail_is_cut_off_wherever_it_was_torn(path: Path) -> None:
    whole = path.read_bytes()
    start = whole.rindex(b"\n", 0, len(whole) - 1) + 1
    for end in range(start + 1, len(whole)):
        path.write_bytes(whole[:end])
        ledger = Ledger(path)
        assert [one.lease.id for one in ledger.book.leases] == ["a"]
        assert path.with_name("ledger.torn").read_bytes() == whole[start:end]
        ledger.close()


def test_damage_in_the_middle_stops_the_fabric_and_changes_nothing(path: Path) -> None:
    whole = path.read_bytes()
    offset = whole.index(b"\n") + 1
    for position in (offset, offset + 12, offset + 40):
        broken = bytearray(whole)
        broken[position] ^= 0x01
        path.write_bytes(broken)
        with pytest.raises(LedgerError, match=f"at byte {offset}") as caught:
            Ledger(path)
        assert caught.value.exit_code == EXIT_CORRUPT
        assert path.read_bytes() == broken
        assert not path.with_name("ledger.torn").exists()


def test_a_ledger_whose_beginning_is_missing_is_damaged(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[whole.index(b"\n") + 1 :])
    with pytest.raises(LedgerError, match="beginning"):
        Ledger(path)


def test_a_second_fabric_does_not_start(path: Path) -> None:
    first = Ledger(path)
    with pytest.raises(LedgerError, match="another fabric") as caught:
        Ledger(path)
    assert caught.value.exit_code == EXIT_IN_USE
    first.close()
    Ledger(path).close()


def test_a_failed_sync_is_final(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(path)
    ledger.append(Took(lease=lease("c", 3)))

    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(LedgerError, match="Input/output error") as caught:
        ledger.sync()
    assert caught.value.exit_code == EXIT_UNWRITABLE
    ledger.close()
