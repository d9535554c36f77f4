from __future__ import annotations

from itertools import product

import pytest

from services.coordinator._recovery import STEPS, Situation, before, entry, following, joinable
from shared.protocol.requests import Vote
from shared.recovery import Step


def path(*, reset: bool, votes: dict[Step, Vote] | None = None) -> list[Step]:
    said = votes or {}
    steps = [Step.OPENED]
    while steps[-1] is not Step.CLOSED:
        reset = reset or steps[-1] is Step.RESET
        asked = said.get(steps[-1], Vote.NONE)
        again = reset and Step.RESET in steps
        steps.append(
            following(steps[-1], Situation(reset=reset and not (again and steps[-1] is Step.ERRORS), votes=asked))
        )
    return steps


def test_the_table_names_every_step_in_order() -> None:
    assert list(STEPS) == list(Step)


def test_a_fatal_error_is_reset_whatever_drivers_vote() -> None:
    for vote in Vote:
        assert path(reset=True, votes={Step.ERROR_DETECTED: vote}) == [
            Step.OPENED,
            Step.ERROR_DETECTED,
            Step.RESET,
            Step.RELEASE,
            Step.SLOT_RESET,
            Step.RESUME,
            Step.CLOSE,
            Step.CLOSED,
        ]


def test_after_any_reset_drivers_hear_slot_reset() -> None:
    for first, second, reset in product(Vote, Vote, (False, True)):
        steps = path(reset=reset, votes={Step.ERROR_DETECTED: first, Step.MMIO_ENABLED: second})
        assert (Step.RESET in steps) == (Step.SLOT_RESET in steps)
        if Step.SLOT_RESET in steps:
            assert steps.index(Step.RELEASE) < steps.index(Step.SLOT_RESET) < steps.index(Step.RESUME)


def test_drivers_that_can_recover_look_first() -> None:
    assert Step.MMIO_ENABLED in path(reset=False, votes={Step.ERROR_DETECTED: Vote.CAN_RECOVER})
    assert Step.MMIO_ENABLED not in path(reset=False, votes={Step.ERROR_DETECTED: Vote.RECOVERED})


def test_who_needs_a_reset_after_looking_gets_one() -> None:
    asked = {Step.ERROR_DETECTED: Vote.CAN_RECOVER, Step.MMIO_ENABLED: Vote.NEED_RESET}
    assert Step.RESET in path(reset=False, votes=asked)


def test_a_second_cause_may_join_until_verification_has_begun() -> None:
    assert [step for step in Step if joinable(step)] == list(Step)[: list(Step).index(Step.VERIFY)]


def test_a_joined_cause_that_needs_a_reset_gets_one_from_every_joinable_step() -> None:
    for step in (Step.ERROR_DETECTED, Step.MMIO_ENABLED, Step.ERRORS):
        assert following(step, Situation(reset=True, votes=Vote.NONE)) is Step.RESET


@pytest.mark.parametrize("reset", [True, False])
def test_a_successor_verifies_before_it_tells_any_driver_to_go_on(reset: bool) -> None:
    for step in (Step.VERIFY, Step.SLOT_RESET, Step.RESUME):
        assert entry(step, reset=reset) is (Step.RELEASE if reset else Step.ERRORS)
    assert entry(Step.ERROR_DETECTED, reset=reset) is Step.ERROR_DETECTED
    assert entry(Step.RESET, reset=reset) is Step.RESET
    assert entry(Step.CLOSE, reset=reset) is Step.CLOSE


def test_closed_is_the_end() -> None:
    with pytest.raises(KeyError):
        following(Step.CLOSED, Situation(reset=False, votes=Vote.NONE))
    assert not any(before(Step.CLOSED, step) for step in Step)
