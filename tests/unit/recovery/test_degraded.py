"""A link that comes back slower or narrower: one retrain, then it is said, and the device is recovered all the same."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from shared.pcie import Address
from shared.protocol.fabric import Lease, Result, SavedLink
from shared.recovery import Do, close_lease
from tests.unit.fabric.fabric_bench import CARD, DOWN, LINK_CONTROL, LINK_STATUS, NESTED, ROOT, UP

from .forward_bench import RETRAIN, ForwardBench

FULL, SLOW, NARROW = 16 << 4 | 4, 16 << 4 | 1, 4 << 4 | 4
X16 = SavedLink(port=DOWN, speed=4, width=16)


def bench_with(*negotiated: int) -> tuple[ForwardBench, Lease]:
    bench = ForwardBench()
    bench.negotiates[DOWN] = list(negotiated)
    bench.trigger(DOWN)
    return bench, msgspec.structs.replace(bench.lease(), links=(X16,))


def retrains(bench: ForwardBench, port: Address = DOWN) -> int:
    return sum(one.function == port and one.offset == LINK_CONTROL and one.value & RETRAIN > 0 for one in bench.writes)


def test_a_link_that_is_as_it_was_is_not_trained_again() -> None:
    bench, lease = bench_with(FULL)
    verified = bench.roll(lease)
    assert retrains(bench) == 0
    assert not any(one.degraded for one in verified.outcomes)


@pytest.mark.parametrize("lesser", [SLOW, NARROW])
def test_one_retrain_is_enough_where_it_helps(lesser: int) -> None:
    bench, lease = bench_with(lesser, FULL)
    verified = bench.roll(lease)
    assert retrains(bench) == 1
    assert not any(one.degraded for one in verified.outcomes)
    assert not any("degraded" in note.detail for note in bench.notes)


@pytest.mark.parametrize(("lesser", "told"), [(SLOW, "speed 1 x16"), (NARROW, "speed 4 x4")])
def test_a_link_that_stays_less_is_recovered_and_degraded_with_what_is_behind_it_and_nothing_else(
    lesser: int, told: str
) -> None:
    bench, lease = bench_with(lesser)
    verified = bench.roll(lease)
    assert retrains(bench) == 1
    assert {one.result for one in verified.outcomes} == {Result.RECOVERED}
    assert {one.function for one in verified.outcomes if one.degraded} == {CARD, NESTED}
    (note,) = (note for note in bench.notes if note.detail.get("degraded"))
    assert note.detail == {"port": str(DOWN), "degraded": True, "from": "speed 4 x16", "to": told}


def test_a_wider_link_than_before_is_no_loss() -> None:
    bench, lease = bench_with(16 << 4 | 5)
    assert not any(one.degraded for one in bench.roll(lease).outcomes)


def test_nothing_is_restored_before_the_retrain_that_may_reset_it() -> None:
    bench, lease = bench_with(SLOW)
    bench.roll(lease)
    card = next(n for n, one in enumerate(bench.writes) if one.function == CARD)
    retrain = next(n for n, one in enumerate(bench.writes) if one.function == DOWN and one.value & RETRAIN)
    assert retrain < card


def test_the_fabric_comes_to_the_same_word_at_close() -> None:
    bench, lease = bench_with(NARROW)
    rolled = bench.roll(lease)
    closed = _close(bench, lease)
    assert {one.function for one in closed.outcomes if one.degraded} == {CARD, NESTED}
    assert [one.degraded for one in closed.outcomes] == [one.degraded for one in rolled.outcomes]


def test_a_function_that_did_not_recover_is_not_degraded() -> None:
    bench, lease = bench_with(SLOW)
    bench.ready_s[NESTED] = 1e9
    assert {one.function for one in bench.roll(lease).outcomes if one.degraded} == {CARD}


def test_p9_a_port_that_does_not_answer_says_nothing_of_its_link() -> None:
    bench = ForwardBench()
    lease = msgspec.structs.replace(bench.lease(), links=(X16,))
    bench.set(ROOT, LINK_STATUS, 0)
    bench.stuck.add(ROOT)
    assert not any(one.degraded for one in bench.roll(lease).outcomes)
    assert UP in {one.address for one in lease.functions}


def _close(bench: ForwardBench, lease: Lease) -> Any:
    logic: Any = close_lease(lease, bench.topology)
    sent: Any = None
    while True:
        try:
            effect = logic.send(sent)
        except StopIteration as done:
            return done.value
        assert isinstance(effect, Do)
        sent = bench.answer(effect)
