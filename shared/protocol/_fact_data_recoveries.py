"""What the coordinator's facts about its recoveries carry."""

from __future__ import annotations

from typing import Any

import msgspec

from shared.pcie import Address

from ._fact_data import Data
from .fabric import Reach
from .records import Verdict
from .requests import Cause, ResetMethod, Vote


class RecoveryStartedData(Data, frozen=True):
    """For which functions, how far it reaches; of a reset its method, of a hold its holder, `inside` whose lease."""

    functions: tuple[Address, ...]
    reach: Reach | None = None
    evidence: dict[str, Any] = msgspec.field(default_factory=dict)
    method: ResetMethod | None = None
    holder: str | None = None
    inside: str | None = None


class RecoveryJoinedData(Data, frozen=True):
    """A second cause was taken into a recovery under way."""

    second: Cause
    functions: tuple[Address, ...]
    evidence: dict[str, Any]


class RecoveryWaitingData(Data, frozen=True):
    """Behind whose lease."""

    behind: str | None
    why: str | None = None


class RecoveryEscalatedData(Data, frozen=True):
    """The cause or the vote that asks for a reset."""

    because: str


class RecoveryStepData(Data, frozen=True):
    """The step that was written down and now begins."""

    step: str


class RecoveryVoteData(Data, frozen=True):
    """A driver's answer to a step; `driver` is None where none is bound, `answered` false where it gave none."""

    function: Address
    step: str
    vote: Vote
    driver: str | None
    took_s: float
    answered: bool


class RecoveryProgressData(Data, frozen=True):
    """A step goes on: whom it waits for and since when, what was left out, what was found."""

    step: str
    waiting: tuple[Address, ...] = ()
    waited_s: float | None = None
    skipped: str | None = None
    method: ResetMethod | None = None
    state: str | None = None
    retrain: bool | None = None
    taken_over: bool | None = None
    why: str | None = None
    silent_s: float | None = None


class RecoveryErrorsData(Data, frozen=True):
    """Error status of a function after its link returned, and which bits are cleared."""

    uncorrectable: int
    correctable: int
    names: tuple[str, ...]
    reports: tuple[dict[str, Any], ...]
    cleared: dict[str, int]


class RecoveryBrokenData(Data, frozen=True):
    """Who ended it, and in which step it was."""

    by: str
    step: str


class RecoveryClosedData(Data, frozen=True):
    """What became of each function; `absorbed_by` names the lease that goes on with it, `why` a recovery not begun.

    `degraded`: the functions that recovered over a slower or narrower link than before.
    """

    verdicts: dict[str, Verdict]
    degraded: tuple[str, ...] = ()
    took_s: float | None = None
    absorbed_by: str | None = None
    why: str | None = None
