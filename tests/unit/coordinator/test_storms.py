"""When trying again is over (DESIGN 4, Storms): three failures in a row, or too many recoveries in a minute."""

from __future__ import annotations

from services.coordinator._storms import FAILURES_MAX, Storms, delay_s, judge_failures
from shared.pcie import Address

PORT, OTHER = Address.parse("00:01.0"), Address.parse("00:02.0")


def test_a_port_is_reset_again_after_1_and_2_s_and_then_given_up() -> None:
    failures: dict[str, int] = {}
    waited = []
    for _ in range(FAILURES_MAX - 1):
        judged = judge_failures(failures, [PORT])
        failures = judged.failures
        assert (judged.retrying, judged.quarantine) == ((PORT,), ())
        waited.append(delay_s(failures, judged.retrying))
    assert waited == [1.0, 2.0]
    last = judge_failures(failures, [PORT])
    assert (last.retrying, last.quarantine) == ((), (PORT,))


def test_who_may_be_tried_again_goes_before_who_is_given_up_and_that_ends() -> None:
    failures = {str(PORT): FAILURES_MAX - 1}
    rounds = []
    for _ in range(FAILURES_MAX):
        judged = judge_failures(failures, [PORT, OTHER])
        failures = judged.failures
        rounds.append((judged.retrying, judged.quarantine))
    assert rounds == [((OTHER,), ()), ((OTHER,), ()), ((), (PORT, OTHER))]


def test_without_a_failure_nothing_is_tried_again() -> None:
    judged = judge_failures({str(PORT): 2}, [])
    assert (judged.retrying, judged.quarantine) == ((), ())


def test_the_sixth_recovery_in_a_minute_is_one_too_many_and_a_port_that_rests_begins_anew() -> None:
    storms = Storms(5, 60.0)
    for second in range(5):
        assert not storms.is_over(PORT, second)
        storms.begin(PORT, second)
    assert storms.is_over(PORT, 5.0)
    assert not storms.is_over(OTHER, 5.0)
    assert storms.is_over(PORT, 59.9)
    assert not storms.is_over(PORT, 60.0), "the first is a minute old"


def test_a_successor_counts_what_the_journal_says_and_a_lifted_port_begins_anew() -> None:
    storms = Storms(2, 60.0)
    storms.begin(PORT, 100.0)
    ages = storms.begin(PORT, 130.0)
    assert ages == (0.0, 30.0)
    after = Storms(2, 60.0)
    after.take_over(PORT, [age + 20 for age in ages], 1000.0)
    assert after.is_over(PORT, 1009.0)
    assert not after.is_over(PORT, 1010.0)
    after.begin(PORT, 1010.0)
    after.forget(PORT)
    assert not after.is_over(PORT, 1010.0)
