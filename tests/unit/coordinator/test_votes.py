from __future__ import annotations

from itertools import permutations, product

import pytest

from services.coordinator._votes import gave_up, merge, verdict
from shared.protocol.fabric import Result
from shared.protocol.records import Verdict
from shared.protocol.requests import Vote

F = "0000:03:00.0"


@pytest.mark.parametrize("votes", [tuple(Vote), *product(Vote, repeat=3)])
def test_the_order_of_votes_changes_nothing(votes: tuple[Vote, ...]) -> None:
    """The kernel's merge_result depends on it: of CAN_RECOVER and RECOVERED the last wins (err.c)."""
    orders = permutations(votes) if len(votes) == 3 else (votes, votes[::-1], votes[3:] + votes[:3])
    assert len({merge(order) for order in orders}) == 1


def test_merging_is_associative_and_idempotent() -> None:
    for a, b, c in product(Vote, repeat=3):
        assert merge((merge((a, b)), c)) is merge((a, merge((b, c)))) is merge((a, b, c, a))


@pytest.mark.parametrize("harmless", [Vote.NONE, Vote.NO_HANDLER, Vote.DISCONNECT])
def test_a_driver_without_callbacks_or_hope_costs_its_siblings_nothing(harmless: Vote) -> None:
    for vote in (Vote.RECOVERED, Vote.CAN_RECOVER, Vote.NEED_RESET):
        assert merge((harmless, vote)) is vote
    assert merge((harmless,)) is Vote.NONE


def test_whoever_asks_for_more_decides() -> None:
    assert merge((Vote.RECOVERED, Vote.CAN_RECOVER)) is Vote.CAN_RECOVER
    assert merge((Vote.CAN_RECOVER, Vote.NEED_RESET, Vote.RECOVERED)) is Vote.NEED_RESET
    assert merge(()) is Vote.NONE


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (Result.REMOVED, Verdict.REMOVED),
        (Result.REPLACED, Verdict.REPLACED),
        (Result.FAILED, Verdict.FAILED),
        (Result.RECOVERED, Verdict.KEPT),
    ],
)
def test_the_hardware_has_the_first_word(result: Result, expected: Verdict) -> None:
    assert verdict(F, result, {"slot_reset": {F: Vote.RECOVERED}}, ()) is expected


def test_what_a_driver_says_last_counts() -> None:
    told = {"error_detected": {F: Vote.DISCONNECT}, "slot_reset": {F: Vote.RECOVERED}}
    assert not gave_up(F, told, ())
    assert gave_up(F, {"error_detected": {F: Vote.CAN_RECOVER}, "mmio_enabled": {F: Vote.DISCONNECT}}, ())
    assert gave_up(F, {"error_detected": {F: Vote.NEED_RESET}, "slot_reset": {F: Vote.NEED_RESET}}, ())
    assert not gave_up(F, {"error_detected": {F: Vote.NEED_RESET}}, ())


def test_a_driver_that_hangs_fails_alone() -> None:
    told = {"error_detected": {F: Vote.DISCONNECT, "0000:03:00.1": Vote.NEED_RESET}}
    assert verdict(F, Result.RECOVERED, told, (F,)) is Verdict.FAILED
    assert verdict("0000:03:00.1", Result.RECOVERED, told, (F,)) is Verdict.KEPT


def test_p3_a_function_without_callbacks_is_rebound() -> None:
    told = {"error_detected": {F: Vote.NO_HANDLER}, "unbind": {F: Vote.NONE}}
    assert verdict(F, Result.RECOVERED, {**told, "bind": {F: Vote.NONE}}, ()) is Verdict.REBOUND
    assert verdict(F, Result.RECOVERED, {**told, "bind": {F: Vote.DISCONNECT}}, ()) is Verdict.FAILED
    assert verdict(F, Result.RECOVERED, told, ()) is Verdict.FAILED
    assert verdict(F, Result.RECOVERED, {"error_detected": {F: Vote.NO_HANDLER}}, ()) is Verdict.KEPT


def test_who_was_told_that_it_is_lost_has_failed_although_it_answers_by_now() -> None:
    told = {"error_detected": {F: Vote.CAN_RECOVER}, "perm_failure": {F: Vote.NONE}}
    assert verdict(F, Result.RECOVERED, told, ()) is Verdict.FAILED
