"""Which ports are reset again inside the same lease: the whole table, and what rolling forward says of each case."""

from __future__ import annotations

from itertools import product

import pytest

from shared.pcie import Address
from shared.protocol.fabric import FunctionOutcome, Reach, Result
from shared.recovery import Bounds, PortState, Verified, hopeless
from shared.recovery._forward import PortOutcome
from shared.recovery._hopeless import TABLE, Behind
from tests.unit.fabric.fabric_bench import CARD, DOWN, DPC_STATUS, NESTED, ROOT, UP

from .forward_bench import BUSY, TRIGGER, ForwardBench

RESULTS = {
    Behind.SOME: (Result.RECOVERED, Result.FAILED),
    Behind.CHANGED: (Result.REPLACED, Result.FAILED),
    Behind.NONE: (Result.FAILED, Result.FAILED),
}
ALWAYS = {PortState.UNSTABLE, PortState.LOST, PortState.BUSY}


def _dumb(state: PortState, behind: Behind) -> bool:
    """The contract, sentence by sentence."""
    if behind in {Behind.SOME, Behind.CHANGED}:
        return False
    if state in ALWAYS:
        return True
    return state is PortState.UP and behind is Behind.NONE


def test_the_table_answers_for_every_state_and_everything_behind() -> None:
    assert set(TABLE) == set(PortState)
    assert all(set(row) == set(Behind) for row in TABLE.values())


@pytest.mark.parametrize(("state", "behind"), list(product(PortState, Behind)))
def test_a_port_is_reset_again_only_where_that_may_help(state: PortState, behind: Behind) -> None:
    bench = ForwardBench()
    lease = bench.lease()
    children = (CARD, NESTED)
    results = RESULTS.get(behind, ())
    if behind is Behind.NOBODY:
        functions = tuple(one for one in lease.functions if one.address not in children)
        lease = type(lease)(
            **{name: getattr(lease, name) for name in lease.__struct_fields__} | {"functions": functions}
        )
    outcomes = tuple(
        FunctionOutcome(function=one, result=result) for one, result in zip(children, results, strict=False)
    )
    verified = Verified(outcomes=outcomes, ports=(PortOutcome(DOWN, state),))
    assert (hopeless(verified, lease, bench.topology) == (DOWN,)) is _dumb(state, behind)


def test_of_two_nested_ports_only_the_upper_one_is_named() -> None:
    bench = ForwardBench()
    outcomes = tuple(FunctionOutcome(function=one, result=Result.FAILED) for one in (UP, DOWN, CARD, NESTED))
    ports = (PortOutcome(ROOT, PortState.UP), PortOutcome(DOWN, PortState.UNSTABLE))
    assert hopeless(Verified(outcomes, ports), bench.lease(), bench.topology) == (ROOT,)


def test_a_lease_that_takes_no_link_down_has_nothing_to_reset_again() -> None:
    bench = ForwardBench()
    verified = Verified((), (PortOutcome(DOWN, PortState.UNSTABLE),))
    assert hopeless(verified, bench.lease(reach=Reach.CALLBACKS), bench.topology) == ()


def _named(bench: ForwardBench) -> tuple[dict[Address, PortState], tuple[Address, ...]]:
    verified = bench.roll(bounds=Bounds(ready_s=2.0))
    return {one.port: one.state for one in verified.ports}, hopeless(verified, bench.lease(), bench.topology)


def test_a_link_that_drops_6_ms_after_every_training_is_unstable() -> None:
    """dmesg 15: from the second reset on, the link comes up and goes down again, for ever."""
    bench = ForwardBench()
    bench.drops_s[DOWN] = 0.006
    bench.trigger(ROOT)
    states, named = _named(bench)
    assert states == {ROOT: PortState.UP, DOWN: PortState.UNSTABLE}
    assert named == (DOWN,)


def test_a_link_that_was_up_once_and_never_again_is_unstable_too() -> None:
    bench = ForwardBench()
    bench.ready_s[CARD] = bench.ready_s[NESTED] = 0.5
    bench.trigger(DOWN)
    bench.at.append((0.3, lambda: bench.stick(DOWN)))
    states, named = _named(bench)
    assert states[DOWN] is PortState.UNSTABLE
    assert named == (DOWN,)


def test_a_link_that_never_trains_has_nobody_at_its_other_end() -> None:
    bench = ForwardBench()
    bench.stuck.add(DOWN)
    bench.trigger(DOWN)
    states, named = _named(bench)
    assert states[DOWN] is PortState.NO_LINK
    assert named == ()


def test_a_port_behind_which_nothing_becomes_ready_is_named_and_one_with_a_sibling_that_does_is_not() -> None:
    bench = ForwardBench()
    bench.ready_s[CARD] = bench.ready_s[NESTED] = 1e9
    bench.trigger(DOWN)
    assert _named(bench)[1] == (DOWN,)
    bench.ready_s[NESTED] = 0.0
    bench.trigger(DOWN)
    assert _named(bench)[1] == ()


def test_a_root_port_that_stays_busy_is_named() -> None:
    bench = ForwardBench()
    bench.trigger(ROOT)
    bench.set(ROOT, DPC_STATUS, TRIGGER | BUSY)
    assert _named(bench) == ({ROOT: PortState.BUSY}, (ROOT,))


def test_p8_a_card_that_is_gone_and_one_that_was_swapped_are_hotplugs_business() -> None:
    bench = ForwardBench()
    bench.trigger(DOWN)
    bench.pull(DOWN)
    assert _named(bench)[1] == ()
    bench = ForwardBench()
    for card in (CARD, NESTED):
        bench.swap(card, serial=0x99)
    bench.trigger(DOWN)
    assert _named(bench)[1] == ()


def test_what_is_behind_a_port_that_is_tried_again_is_judged_afresh() -> None:
    """A nested port's state of a walk before the last is no state."""
    bench = ForwardBench()
    bench.stuck.add(DOWN)
    bench.drops_s[ROOT] = 1.0
    bench.trigger(ROOT)
    states, _ = _named(bench)
    assert states == {ROOT: PortState.UNSTABLE}


def test_p8_a_card_that_is_pulled_while_its_link_is_tried_again_is_gone_and_not_tried_any_more() -> None:
    bench = ForwardBench()
    bench.drops_s[DOWN] = 0.006
    bench.trigger(DOWN)
    bench.at.append((0.3, lambda: bench.pull(DOWN)))
    states, named = _named(bench)
    assert states[DOWN] is PortState.GONE
    assert named == ()
