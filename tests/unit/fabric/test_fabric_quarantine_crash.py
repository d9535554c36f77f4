"""The fabric dies at every point of a quarantine, from the lease that enters it to the one that lifts it."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from shared.protocol.fabric import Close, Closed, Execute, Open, Opened, Rank, Result
from shared.recovery import modify

from .fabric_asking import DISABLE
from .fabric_bench import CARD, CHANGED, DOWN, ENABLES, LINK_CONTROL, NESTED, ROOT, SLOT_STATUS
from .fabric_quarantining import PDCE
from .test_fabric_crash import Died, Mortal

POINTS = 80  # more than the story has; the last test says so


async def story(rig: Mortal) -> None:
    """Disable the link, leave it in quarantine, lift it, let go, close: each repeated when the fabric dies in it."""
    opened = await rig.ask_until_answered(Open(id="r-1", port=DOWN, rank=Rank.RECOVERY, cause="", holder="me"))
    assert isinstance(opened, Opened)
    down = modify(DOWN, LINK_CONTROL, 2, mask=DISABLE, value=DISABLE)
    await rig.ask_until_answered(Execute(token=opened.lease.token, n=1, operations=(down,)))
    rig.bench.take_down(DOWN, CARD, NESTED)
    closed = await rig.ask_until_answered(Close(token=opened.lease.token, quarantine=(DOWN,), why="storm"))
    assert isinstance(closed, Closed)
    assert [one.function for one in closed.outcomes if one.result is Result.QUARANTINED] == [CARD, NESTED]
    assert rig.bench.enables(DOWN) == PDCE
    assert rig.bench.get(DOWN, LINK_CONTROL) & DISABLE
    lifted = await rig.ask_until_answered(
        Open(id="r-2", port=DOWN, rank=Rank.RECOVERY, cause="lift", holder="me", lifts=True)
    )
    assert isinstance(lifted, Opened)
    assert {slot.port: slot.enables for slot in lifted.lease.slots} == {DOWN: ENABLES}
    assert {one.address for one in lifted.lease.functions} == {DOWN, CARD, NESTED}
    up = modify(DOWN, LINK_CONTROL, 2, mask=DISABLE, value=0)
    await rig.ask_until_answered(Execute(token=lifted.lease.token, n=1, operations=(up,)))
    rig.bench.bring_up(DOWN, CARD, NESTED)
    closed = await rig.ask_until_answered(Close(token=lifted.lease.token))
    assert {one.result for one in closed.outcomes} == {Result.RECOVERED}


@pytest.mark.parametrize("at", range(1, POINTS))
async def test_p2_whoever_crashes_and_whenever_in_a_quarantine(tmp_path: Path, at: int) -> None:
    rig = Mortal(tmp_path / "ledger", at)
    await rig.start()
    before = {port: rig.bench.spaces[port].image() for port in (ROOT, DOWN)}
    await story(rig)
    assert {port: rig.bench.spaces[port].image() for port in (ROOT, DOWN)} == before
    assert rig.bench.get(DOWN, SLOT_STATUS) & CHANGED == 0
    assert (rig.ledger.book.leases, rig.ledger.book.quarantines) == ((), ())
    rig.ledger.close()


async def test_the_story_is_shorter_than_the_points_tried(tmp_path: Path) -> None:
    rig = Mortal(tmp_path / "ledger", POINTS)
    await rig.start()
    await story(rig)
    assert not rig.died
    rig.ledger.close()


@pytest.mark.parametrize("at", range(2, 14))  # at 1 it is appended, but not synced: it has not begun
async def test_a_quarantine_that_has_begun_is_entered_also_if_nobody_asks_again(tmp_path: Path, at: int) -> None:
    rig = Mortal(tmp_path / "ledger", POINTS)
    await rig.start()
    lease = (await rig.ask(Open(id="r-1", port=DOWN, rank=Rank.RECOVERY, cause="", holder="me"))).lease
    down = modify(DOWN, LINK_CONTROL, 2, mask=DISABLE, value=DISABLE)
    await rig.ask(Execute(token=lease.token, n=1, operations=(down,)))
    rig.bench.take_down(DOWN, CARD, NESTED)
    rig.left = at
    with contextlib.suppress(Died):
        await rig.ask(Close(token=lease.token, quarantine=(DOWN,), why="storm"))
    rig.bench.before_write = lambda *_: None
    await rig.restart()
    assert rig.ledger.book.leases == ()
    (record,) = rig.ledger.book.quarantines
    assert (record.port, record.why, [slot.enables for slot in record.slots]) == (DOWN, "storm", [ENABLES])
    assert rig.bench.enables(DOWN) == PDCE
    rig.ledger.close()
