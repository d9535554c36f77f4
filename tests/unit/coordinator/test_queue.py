from __future__ import annotations

from itertools import product

import pytest

from services.coordinator._queue import Move, Pending, Running, combine, judge
from shared.pcie import Address
from shared.protocol.requests import Cause, Recover

PORT, CARD, OTHER = (Address.parse(text) for text in ("00:01.0", "01:00.0", "01:00.1"))
PENDING = Pending("r-2", Cause.AER_NONFATAL, (CARD,))


def running(*, reset: bool = True, joinable: bool = True, same_port: bool = True) -> Running:
    return Running("r-1", reset=reset, joinable=joinable, same_port=same_port)


@pytest.mark.parametrize(
    ("now", "pending", "cause", "move"),
    [
        (None, None, Cause.DPC, Move.START),
        (None, PENDING, Cause.DPC, Move.WAIT),
        (running(), None, Cause.DPC, Move.JOIN),
        (running(), None, Cause.AER_NONFATAL, Move.JOIN),
        (running(reset=False), None, Cause.AER_NONFATAL, Move.JOIN),
        (running(reset=False), None, Cause.AER_FATAL, Move.ESCALATE),
        (running(reset=False), None, Cause.DPC, Move.ESCALATE),
        (running(joinable=False), None, Cause.DPC, Move.WAIT),
        (running(reset=False, same_port=False), None, Cause.DPC, Move.WAIT),
        (running(reset=True, same_port=False), None, Cause.DPC, Move.JOIN),
    ],
)
def test_a_request_meets_what_is_under_way(
    now: Running | None, pending: Pending | None, cause: Cause, move: Move
) -> None:
    assert judge(now, pending, cause) is move


def test_p6_nothing_starts_beside_a_recovery_that_runs() -> None:
    causes = (Cause.DPC, Cause.AER_FATAL, Cause.AER_NONFATAL)
    for reset, joinable, same, pending, cause in product((0, 1), (0, 1), (0, 1), (None, PENDING), causes):
        now = running(reset=bool(reset), joinable=bool(joinable), same_port=bool(same))
        assert judge(now, pending, cause) is not Move.START


def test_causes_that_wait_become_one_under_the_first_id_and_the_graver_cause() -> None:
    first = combine(None, Recover(port=PORT, cause=Cause.AER_NONFATAL, functions=(CARD,), evidence={"a": 1}), "r-2")
    both = combine(first, Recover(port=PORT, cause=Cause.DPC, functions=(CARD, OTHER), evidence={"b": 2}), "r-3")
    assert both == Pending("r-2", Cause.DPC, (CARD, OTHER), {"a": 1, "b": 2})
    assert combine(both, Recover(port=PORT, cause=Cause.AER_NONFATAL), "r-4").cause is Cause.DPC
