"""The fabric dies at every point at which it persists or touches hardware; its successor makes the promises true.

The holder repeats what was not answered, as a holder does.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import pytest

from shared.pcie import registers as reg
from shared.protocol import Message
from shared.protocol.fabric import Adopt, Close, Closed, Execute, Open, Opened, Rank, Reach
from shared.recovery import modify

from .fabric_asking import DISABLE
from .fabric_bench import (
    CARD,
    CHANGED,
    DOWN,
    ENABLES,
    LINK_CONTROL,
    NESTED,
    ROOT,
    SLOT_STATUS,
    UP,
    Bench,
    FakeRequest,
    Rig,
)

SBR = int(reg.BridgeControl.SECONDARY_BUS_RESET)
POINTS = 90  # more than the story has; the last test says so


class Died(BaseException):
    """The process is gone."""


class Mortal(Rig):
    """A rig whose fabric dies just after its `at`th append, sync or write to hardware, and forgets what is not synced."""

    def __init__(self, path: Path, at: int) -> None:
        super().__init__(path, Bench())
        self.left = at
        self.died = False
        self.synced = 0  # bytes of the ledger that are on the medium

    async def start(self) -> Rig:
        if self.died:
            os.truncate(self.path, self.synced)
        await super().start()
        if not self.died:
            self.synced = self.path.stat().st_size
            self.ledger.append = self._dying(self.ledger.append)  # type: ignore[method-assign]
            self.ledger.sync = self._dying(self._syncing(self.ledger.sync))  # type: ignore[method-assign]
            self.bench.before_write = lambda *_: self._count()
        return self

    def _syncing(self, method: Any) -> Any:
        def wrapped() -> None:
            method()
            self.synced = self.path.stat().st_size

        return wrapped

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


@pytest.mark.parametrize("at", range(2, 12))  # at 1 it is appended, but not synced: it has not begun
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


@pytest.mark.parametrize("at", range(1, 7))
async def test_p2_a_link_that_was_disabled_in_the_moment_of_death_is_owed(tmp_path: Path, at: int) -> None:
    """No register says who disabled a link: only what was written down before it was done."""
    rig = Mortal(tmp_path / "ledger", POINTS)
    await rig.start()
    lease = (await rig.ask(Open(id="l", port=ROOT, rank=Rank.RECOVERY, cause="", holder="me"))).lease
    order = modify(ROOT, LINK_CONTROL, 2, mask=DISABLE, value=DISABLE)
    rig.left = at
    with contextlib.suppress(Died):
        await rig.ask(Execute(token=lease.token, n=1, operations=(order,)))
    assert rig.died
    rig.bench.before_write = lambda *_: None
    await rig.restart()
    adopted = await rig.ask(Adopt(id="l", holder="successor"))
    disabled = (ROOT,) if rig.bench.get(ROOT, LINK_CONTROL) & DISABLE else ()
    assert adopted.lease.debts.link_disabled == disabled
    rig.ledger.close()


async def test_p10_what_is_answered_is_on_the_medium(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = await Rig(tmp_path / "ledger").start()
    order: list[str] = []
    for owner, name in ((rig.ledger, "append"), (rig.ledger, "sync"), (FakeRequest, "answer")):
        monkeypatch.setattr(owner, name, _noting(order, name, getattr(owner, name)))
    await rig.ask(Open(id="l", port=ROOT, rank=Rank.RECOVERY, cause="", holder="me"))
    assert order[-2:] == ["sync", "answer"]
    rig.ledger.close()


def _noting(order: list[str], name: str, method: Any) -> Any:
    def wrapped(*arguments: Any) -> Any:
        order.append(name)
        return method(*arguments)

    return wrapped


async def test_p10_facts_that_the_dead_fabric_had_not_told_are_told_by_its_successor(tmp_path: Path) -> None:
    rig = await Rig(tmp_path / "ledger").start()
    await rig.ask(Open(id="l", port=ROOT, rank=Rank.RECOVERY, cause="", holder="me"))
    await rig.restart()
    assert [fact.lease for fact in rig.facts("lease.masked")] == ["l"]
    rig.ledger.close()
