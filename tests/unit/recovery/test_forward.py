from __future__ import annotations

import pytest

from shared.pcie import Address, Topology, Value, describe, timing
from shared.pcie import registers as reg
from shared.protocol.fabric import Operation, Rank, Reach, Result
from shared.recovery import Bounds, Effect, Note, PortState, Step, hopeless, roll_forward, settle
from tests.unit.fabric.fabric_bench import (
    AER,
    CARD,
    DOWN,
    DPC_STATUS,
    ENABLES,
    ERROR_STATUS,
    EXPRESS,
    LINK_CONTROL,
    NESTED,
    ROOT,
    SLOT_CONTROL,
    SLOT_STATUS,
    UP,
)

from .forward_bench import (
    BAR0,
    BAR_VALUE,
    BRIDGE_CONTROL,
    BUSY,
    COMMAND,
    COMMAND_VALUE,
    DISABLE,
    OUT_OF_BAND,
    SBR,
    TRIGGER,
    ForwardBench,
)

POWER, D3_HOT = 0xC0, 0x3  # a power management capability of the bench's card, and a power state
EVERYBODY = (ROOT, UP, DOWN, CARD, NESTED)


def results(bench: ForwardBench, bounds: Bounds | None = None) -> dict[Address, Result]:
    return {one.function: one.result for one in bench.roll(bounds=bounds).outcomes}


def all_recovered(bench: ForwardBench) -> bool:
    return set(results(bench).values()) == {Result.RECOVERED}


def test_a_healthy_domain_is_left_untouched() -> None:
    bench = ForwardBench()
    assert all_recovered(bench)
    assert bench.writes == []


def test_containment_is_released_and_everything_restored_top_down() -> None:
    bench = ForwardBench()
    bench.trigger(ROOT)
    verified = bench.roll()
    assert {one.result for one in verified.outcomes} == {Result.RECOVERED}
    assert not bench.get(ROOT, DPC_STATUS) & TRIGGER
    for card in (CARD, NESTED):
        assert bench.get(card, BAR0, 4) == BAR_VALUE
        assert bench.get(card, COMMAND) == COMMAND_VALUE
    first_writes = list(dict.fromkeys(operation.function for operation in bench.writes))
    assert first_writes == [ROOT, UP, DOWN, CARD, NESTED]


@pytest.mark.parametrize("cause", ["dpc", "sbr", "disable"])
def test_running_twice_writes_nothing_the_second_time(cause: str) -> None:
    bench = ForwardBench()
    if cause == "dpc":
        bench.trigger(ROOT)
    elif cause == "sbr":
        bench.set(ROOT, BRIDGE_CONTROL, SBR)
    else:
        bench.set(ROOT, LINK_CONTROL, DISABLE)
    assert all_recovered(bench)
    bench.writes.clear()
    assert all_recovered(bench)
    assert bench.writes == []


@pytest.mark.parametrize("crash_after", range(1, 60, 4))
def test_a_successor_ends_where_the_dead_holder_would_have(crash_after: int) -> None:
    """Whoever dies anywhere, the same code run from the start ends in the same place."""
    bench = ForwardBench()
    bench.trigger(ROOT)
    logic = roll_forward(bench.lease(), bench.topology, Bounds())
    sent: object = None
    for _ in range(crash_after):
        try:
            sent = bench.answer(logic.send(sent))
        except StopIteration:
            break
    assert all_recovered(bench)


def test_p1_the_mask_stays_on_and_no_reset_bit_is_restored() -> None:
    bench = ForwardBench()
    bench.trigger(ROOT)
    bench.roll()
    for port in (ROOT, DOWN):
        assert not bench.get(port, SLOT_CONTROL) & ENABLES
        assert bench.get(port, AER + 0x08, 4) & reg.Uncorrectable.SURPRISE_DOWN
    sets_reset = [
        one for one in bench.writes if one.offset == BRIDGE_CONTROL and one.function != ROOT and one.value & SBR
    ]
    assert sets_reset == []


def test_p3_a_slow_device_is_awaited_and_reports_progress() -> None:
    bench = ForwardBench()
    bench.ready_s[CARD] = 3.5
    bench.trigger(ROOT)
    assert all_recovered(bench)
    told = [note for note in bench.notes if "waited_s" in note.detail]
    assert len(told) >= 3
    assert told[-1].detail["waiting"] == [str(CARD)]


def test_a_device_that_never_answers_fails_alone() -> None:
    bench = ForwardBench()
    bench.ready_s[NESTED] = 1e9
    bench.trigger(ROOT)
    found = results(bench)
    assert found[NESTED] is Result.FAILED
    assert all(found[one] is Result.RECOVERED for one in EVERYBODY if one != NESTED)


def test_p8_waiting_for_a_card_that_is_gone_ends_with_the_links_bound() -> None:
    bench = ForwardBench()
    bench.trigger(ROOT)
    bench.pull(ROOT)
    verified = bench.roll()
    assert bench.now < 1.5
    assert verified.result(UP) is verified.result(CARD) is Result.REMOVED
    assert verified.result(ROOT) is Result.RECOVERED
    assert not bench.get(ROOT, DPC_STATUS) & TRIGGER, "containment is released even so"
    assert (ROOT, PortState.GONE) in [(one.port, one.state) for one in verified.ports]


def test_p8_out_of_band_presence_ends_the_wait_at_once() -> None:
    bench = ForwardBench()
    bench.trigger(ROOT)
    bench.pull(ROOT)
    bench.set(ROOT, SLOT_CONTROL, bench.get(ROOT, SLOT_CONTROL) | OUT_OF_BAND)
    assert bench.roll().result(CARD) is Result.REMOVED
    assert bench.now < 0.1


def test_p8_a_card_pulled_while_it_is_awaited_is_removed_not_awaited() -> None:
    bench = ForwardBench()
    bench.ready_s[UP] = 1e9
    bench.trigger(ROOT)
    bench.at.append((0.5, lambda: bench.pull(ROOT)))
    assert bench.roll(bounds=Bounds()).result(CARD) is Result.REMOVED
    assert bench.now < 5.0


def test_p9_in_band_presence_means_nothing_while_contained() -> None:
    bench = ForwardBench()
    bench.trigger(ROOT)
    present = bench.get(ROOT, SLOT_STATUS)
    bench.set(ROOT, SLOT_STATUS, 0)
    bench.at.append((0.01, lambda: bench.set(ROOT, SLOT_STATUS, present)))
    assert all_recovered(bench)


def test_a_link_that_stays_down_over_a_card_gets_one_retrain_and_fails() -> None:
    bench = ForwardBench()
    bench.stuck.add(ROOT)
    bench.trigger(ROOT)
    verified = bench.roll()
    retrains = [one for one in bench.writes if one.offset == LINK_CONTROL and one.value & 0x20]
    assert len(retrains) == 1
    assert verified.result(UP) is verified.result(CARD) is Result.FAILED
    assert bench.now < 3.0


def test_p3_a_link_that_fell_and_was_up_again_between_two_looks_has_brought_nobody_back() -> None:
    bench = ForwardBench()
    bench.trigger(ROOT)
    bench.link_s = 0.0
    answer = bench.answer

    def falls(effect: Effect) -> object:
        if isinstance(effect, Note) and effect.step is Step.VERIFY:
            bench.take_down(DOWN)  # and up it is, at the next look
        return answer(effect)

    bench.answer = falls  # type: ignore[method-assign]
    lease = bench.lease()
    verified = bench.roll(lease)
    assert bench.get(CARD, COMMAND) == 0
    found = {outcome.function: outcome.result for outcome in verified.outcomes}
    assert [found[one] for one in (ROOT, UP, DOWN)] == [Result.RECOVERED] * 3
    assert [found[one] for one in (CARD, NESTED)] == [Result.FAILED] * 2, "nobody may resume on what is not set up"
    assert hopeless(verified, lease, bench.topology) == (DOWN,), "another reset may help"


def test_a_root_port_that_stays_busy_keeps_its_trigger_and_fails() -> None:
    bench = ForwardBench()
    bench.trigger(ROOT)
    bench.set(ROOT, DPC_STATUS, TRIGGER | BUSY)
    assert bench.roll().result(CARD) is Result.FAILED
    assert bench.get(ROOT, DPC_STATUS) & TRIGGER


def test_a_nested_port_that_was_contained_is_released_too() -> None:
    """What is below a contained port cannot be read, so its own trigger is found only on the way down."""
    bench = ForwardBench()
    bench.trigger(DOWN)
    bench.trigger(ROOT)
    assert all_recovered(bench)
    assert not bench.get(DOWN, DPC_STATUS) & TRIGGER


def test_a_new_containment_while_functions_are_awaited_is_released_again() -> None:
    bench = ForwardBench()
    bench.ready_s[UP] = 0.4
    bench.trigger(ROOT)
    bench.at.append((0.3, lambda: bench.trigger(ROOT)))
    assert all_recovered(bench)


@pytest.mark.parametrize(("rank", "waits"), [(Rank.USER, True), (Rank.EXTERNAL, True), (Rank.RECOVERY, False)])
def test_containment_is_left_to_its_recovery_before_a_lower_rank_releases_it(rank: Rank, waits: bool) -> None:
    """A fault during a user's reset must not be swallowed: its recovery absorbs the lease meanwhile, if it comes."""
    bench = ForwardBench()
    bench.trigger(ROOT)
    still_contained: list[int] = []
    bench.at.append(
        (timing.CONTAINMENT_GRACE / 2, lambda: still_contained.append(bench.get(ROOT, DPC_STATUS) & TRIGGER))
    )
    assert {one.result for one in bench.roll(bench.lease(rank=rank)).outcomes} == {Result.RECOVERED}
    assert not bench.get(ROOT, DPC_STATUS) & TRIGGER
    assert (TRIGGER in still_contained) is waits


@pytest.mark.parametrize(("swapped", "same"), [(CARD, NESTED), (NESTED, CARD)])
def test_p4_another_function_is_not_written_to_whatever_its_number(swapped: Address, same: Address) -> None:
    bench = ForwardBench()
    bench.trigger(DOWN)
    bench.swap(swapped, serial=0x99)
    found = results(bench)
    assert found[swapped] is Result.REPLACED
    assert found[same] is Result.RECOVERED
    assert not [one for one in bench.writes if one.function == swapped]


def test_original_and_provoked_errors_are_told_then_cleared_and_others_left() -> None:
    """DESIGN 5, aer: of bits newly set during a lease only those that a reset provokes are cleared."""
    original, provoked, new = (
        reg.Uncorrectable.MALFORMED_TLP,
        reg.Uncorrectable.COMPLETION_TIMEOUT,
        reg.Uncorrectable.ECRC,
    )
    bench = ForwardBench()
    bench.set(CARD, ERROR_STATUS, int(original | provoked | new), 4)
    bench.drive(settle(bench.lease(seen=int(original)), bench.topology))
    assert bench.get(CARD, ERROR_STATUS, 4) == new
    (told,) = [note for note in bench.notes if note.step is Step.ERRORS]
    assert told.detail["errors"][str(CARD)]["uncorrectable"] == int(original | provoked | new)


def test_what_could_not_be_read_at_open_is_read_and_cleared_afterwards() -> None:
    """Linux never reads the details of a fatal error of an endpoint; here they are published."""
    bench = ForwardBench()
    bench.set(CARD, ERROR_STATUS, int(reg.Uncorrectable.MALFORMED_TLP), 4)
    bench.trigger(ROOT)
    bench.roll(bench.lease(seen=None))
    assert bench.get(CARD, ERROR_STATUS, 4) == 0
    (told,) = [note for note in bench.notes if note.step is Step.ERRORS]
    assert "MalfTLP" in told.detail["errors"][str(CARD)]["names"]


def test_after_flr_functions_are_restored_and_no_port_is_touched() -> None:
    bench = ForwardBench()
    bench.spaces[CARD].hot_reset()
    verified = bench.roll(bench.lease(rank=Rank.USER, reach=Reach.NOTHING))
    assert verified.result(CARD) is Result.RECOVERED
    assert bench.get(CARD, BAR0, 4) == BAR_VALUE
    assert {one.function for one in bench.writes} == {CARD}


def test_p3_a_function_that_was_left_in_d3hot_is_woken_and_awaited_before_it_is_restored() -> None:
    bench = ForwardBench()
    card = bench.spaces[CARD]
    card.set(EXPRESS + 1, 1, POWER)
    card.set(POWER, 2, reg.CapabilityId.POWER_MANAGEMENT)
    card.place(reg.PM_CONTROL, base=POWER)
    at = POWER + reg.PM_CONTROL.offset
    function = describe(CARD, card.image(), DOWN)
    assert function is not None
    bench.images[CARD] = card.image()
    others = tuple(one for one in bench.topology if one.address != CARD)
    bench.topology = Topology(functions=(*others, function))
    bench.set(CARD, at, D3_HOT)
    access = bench._access

    def leaves_d3hot(operation: Operation) -> Value:
        was = bench.get(CARD, at)
        value = access(operation)
        if was and not bench.get(CARD, at):
            card.hot_reset()
            bench._ready_at[CARD] = bench.now + timing.PM_D3HOT_TO_D0 / 2
        return value

    bench._access = leaves_d3hot  # type: ignore[method-assign]
    verified = bench.roll(bench.lease(rank=Rank.USER, reach=Reach.NOTHING))
    assert verified.result(CARD) is Result.RECOVERED
    assert (bench.get(CARD, COMMAND), bench.get(CARD, BAR0, 4)) == (COMMAND_VALUE, BAR_VALUE)
    assert bench.get(CARD, at) == 0
    assert len([one for one in bench.writes if one.offset == at]) == 1


def test_a_slot_operation_owes_nothing_and_is_not_awaited() -> None:
    bench = ForwardBench()
    bench.pull(ROOT)
    bench.roll(bench.lease(rank=Rank.SLOT_OPERATION, reach=Reach.NOTHING))
    assert bench.writes == []
    assert bench.now == 0.0
