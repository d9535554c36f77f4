"""What drivers answer, and what it comes to: for the plan of the whole domain, and for each function's verdict. Pure.

The kernel folds votes one by one (err.c, merge_result), and of CAN_RECOVER and RECOVERED the last one wins; one driver
without callbacks wins over all. Here votes are joined in a lattice, so their order changes nothing. It is a chain,
ordered by how much is still asked of the recovery:

    NONE, NO_HANDLER, DISCONNECT  <  RECOVERED  <  CAN_RECOVER  <  NEED_RESET

NO_HANDLER costs its siblings nothing: that function alone is rebound, if there is a reset. DISCONNECT gives up its own
function and nobody else's; it asks nothing of the plan. Both are the bottom here and are judged per function below.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from shared.protocol.fabric import Result
from shared.protocol.records import Verdict
from shared.protocol.requests import Channel, DriverStep, Vote

_ASKS: Final[dict[Vote, int]] = {
    Vote.NONE: 0,
    Vote.NO_HANDLER: 0,
    Vote.DISCONNECT: 0,
    Vote.RECOVERED: 1,
    Vote.CAN_RECOVER: 2,
    Vote.NEED_RESET: 3,
}
_JOINED: Final = (Vote.NONE, Vote.RECOVERED, Vote.CAN_RECOVER, Vote.NEED_RESET)
_GIVEN_UP: Final = frozenset({Vote.DISCONNECT, Vote.NEED_RESET})  # after the reset, asking for another is giving up

Told = Mapping[str, Mapping[str, Vote]]  # step -> function -> vote, as the journal has it


def merge(votes: Iterable[Vote]) -> Vote:
    """Return the join of all votes: NONE, RECOVERED, CAN_RECOVER or NEED_RESET. Commutative, associative, idempotent."""
    return _JOINED[max((_ASKS[vote] for vote in votes), default=0)]


def gave_up(function: str, told: Told, unanswered: Iterable[str]) -> bool:
    """Tell whether the function's driver has given its device up. What it said last counts.

    One that never answered hangs in its callback; a kernel would hang with it, here it fails alone.
    """
    if function in unanswered:
        return True
    after_reset = told.get(DriverStep.SLOT_RESET, {}).get(function)
    if after_reset is not None:
        return after_reset in _GIVEN_UP
    before = (DriverStep.MMIO_ENABLED, DriverStep.ERROR_DETECTED)
    last = next((told[step][function] for step in before if function in told.get(step, {})), Vote.NONE)
    return last is Vote.DISCONNECT


def verdict(function: str, result: Result, told: Told, unanswered: Iterable[str]) -> Verdict:
    """Return what became of one function: the hardware's outcome first, then what its driver says."""
    if result is not Result.RECOVERED:
        return _HARDWARE[result]
    if function in told.get(Channel.PERM_FAILURE, {}):
        return Verdict.FAILED  # its driver was told so: it answers too late
    bound = told.get(DriverStep.BIND, {}).get(function)
    if bound is not None and function not in unanswered:  # bound anew: what its driver said before is forgotten
        return Verdict.FAILED if bound is Vote.DISCONNECT else Verdict.REBOUND
    if gave_up(function, told, unanswered):
        return Verdict.FAILED
    return Verdict.FAILED if function in told.get(DriverStep.UNBIND, {}) else Verdict.KEPT


_HARDWARE: Final[dict[Result, Verdict]] = {
    Result.REPLACED: Verdict.REPLACED,
    Result.REMOVED: Verdict.REMOVED,
    Result.FAILED: Verdict.FAILED,
    Result.QUARANTINED: Verdict.QUARANTINED,
}
