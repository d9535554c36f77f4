"""The fabric dies at every point at which it persists or touches hardware; its successor makes the promises true.

The holder repeats what was not answered, as a holder does.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

from shared.pcie import registers as reg
from shared.protocol import Message
from shared.protocol.fabric import Close, Closed, Execute, Open, Opened, Rank, Reach
from shared.recovery import modify

from .fabric_bench import CARD, CHANGED, DOWN, ENABLES, NESTED, ROOT, SLOT_STATUS, UP, Bench, Rig

SBR = int(reg.BridgeControl.SECONDARY_BUS_RESET)
POINTS = 90  # more than the story has; the last test says so


class Died(BaseException):
    """The process is gone."""


class Mortal(Rig):
    """A rig whose fabric dies just after its `at`th append, sync or write to hardware."""

    def __init__(self, path: Path, at: int) -> None:
        super().__init__(path, Bench())
        self.left = at
        self.died = False

    async def start(self) -> Rig:
        await super().start()
        if not self.died:
            self.ledger.append = self._dying(self.ledger.append)  # type: ignore[method-assign]
            self.ledger.sync = self._dying(self.ledger.sync)  # type: ignore[method-assign]
            self.bench.before_write = lambda *_: self._count()
        return self

    def _dying(self, method: Any) -> Any:
        def wrapped(*arguments: Any) -> None:
            method(*arguments)
            self._count()

        return wrapped

    def _count(self) -> None:
        self.left -= 1
        if self.left == 0 and not self.died:
            self.died = True
            raise Died

    async def ask_until_answered(self, message: Message) -> Any:
        try:
            return await self.ask(message)
        except Died:
            self.bench.before_write = lambda *_: None
            self._check_p1()
            await self.restart()
            self._check_p1()
            return await self.ask(message)

    def _check_p1(self) -> None:
        """Assert that a reset bit is never set over an enable."""
        if self.bench.get(ROOT, reg.BRIDGE_CONTROL.offset) & SBR:
            assert self.bench.enables(ROOT) == self.bench.enables(DOWN) == 0


async def story(rig: Mortal) -> None:
    """Open twice (the second absorbs), reset, release, close: each repeated when the fabric dies in it."""
    below = await rig.ask_until_answered(
        Open(id="below", port=DOWN, rank=Rank.USER, cause="", holder="me", reach=Reach.RESET)
    )
    assert isinstance(below, Opened)
    opened = await rig.ask_until_answered(Open(id="l", port=ROOT, rank=Rank.RECOVERY, cause="", holder="me"))
    assert isinstance(opened, Opened)
    assert {slot.port: slot.enables for slot in opened.lease.slots} == {ROOT: ENABLES, DOWN: ENABLES}
    token = opened.lease.token
    assert token > below.lease.token
    for n, value in ((1, SBR), (2, 0)):
        order = modify(ROOT, reg.BRIDGE_CONTROL.offset, 2, mask=SBR, value=value)
        answer = await rig.ask_until_answered(Execute(token=token, n=n, operations=(order,)))
        assert answer.values == (value,)
        assert rig.bench.get(ROOT, reg.BRIDGE_CONTROL.offset) == value
    rig.bench.take_down(ROOT, UP, DOWN, CARD, NESTED)
    rig.bench.bring_up(ROOT, UP, DOWN, CARD, NESTED)
    closed = await rig.ask_until_answered(Close(token=token))
    assert isinstance(closed, Closed)
    assert len(closed.outcomes) == 5


@pytest.mark.parametrize("at", range(1, POINTS))
async def test_p2_whoever_crashes_and_whenever(tmp_path: Path, at: int) -> None:
    rig = Mortal(tmp_path / "ledger", at)
    await rig.start()
    before = {port: rig.bench.spaces[port].image() for port in (ROOT, DOWN)}
    await story(rig)
    assert {port: rig.bench.spaces[port].image() for port in (ROOT, DOWN)} == before
    assert rig.bench.get(ROOT, SLOT_STATUS) & CHANGED == 0
    assert rig.ledger.book.leases == ()
    rig.ledger.close()


async def test_the_story_is_shorter_than_the_points_tried(tmp_path: Path) -> None:
    rig = Mortal(tmp_path / "ledger", POINTS)
    await rig.start()
    await story(rig)
    assert not rig.died
    assert rig.left > 0
    rig.ledger.close()


@pytest.mark.parametrize("at", range(1, 12))
async def test_p2_a_close_that_has_begun_is_finished_also_if_nobody_asks_again(tmp_path: Path, at: int) -> None:
    rig = Mortal(tmp_path / "ledger", POINTS)
    await rig.start()
    lease = (await rig.ask(Open(id="l", port=ROOT, rank=Rank.RECOVERY, cause="", holder="me"))).lease
    rig.left = at
    with contextlib.suppress(Died):
        await rig.ask(Close(token=lease.token))
    begun = rig.ledger.book.leases == () or rig.ledger.book.leases[0].closing
    await rig.restart()
    assert begun
    assert rig.ledger.book.leases == ()
    assert rig.bench.enables(ROOT) == rig.bench.enables(DOWN) == ENABLES
    rig.ledger.close()


async def test_p10_facts_that_the_dead_fabric_had_not_told_are_told_by_its_successor(tmp_path: Path) -> None:
    rig = await Rig(tmp_path / "ledger").start()
    await rig.ask(Open(id="l", port=ROOT, rank=Rank.RECOVERY, cause="", holder="me"))
    await rig.restart()
    assert [fact.lease for fact in rig.facts("lease.masked")] == ["l"]
    rig.ledger.close()
