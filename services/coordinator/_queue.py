"""A request for recovery meets what is under way on its port: start, join, escalate, or wait. Pure.

A second cause on the same domain joins until verification has begun, and may escalate the plan; later it queues. Two
that queue are one: what runs afterwards looks at the registers anyway.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Final

import msgspec

from shared.pcie import Address
from shared.protocol.requests import Cause, Recover

from ._plan import PLANS

_SEVERITY: Final = (Cause.AER_NONFATAL, Cause.AER_FATAL, Cause.DPC, Cause.EDR)


class Running(msgspec.Struct, frozen=True):
    """The recovery that covers the port: its own, or one on a port above."""

    lease: str
    reset: bool  # it resets, or will
    joinable: bool  # verification has not begun
    same_port: bool = True  # on this very port, so it can be escalated for this port's sake


class Pending(msgspec.Struct, frozen=True):
    """A cause that waits for its turn, under the id that its asker was told."""

    lease: str
    cause: Cause
    functions: tuple[Address, ...] = ()
    evidence: dict[str, Any] = msgspec.field(default_factory=dict)


class Move(StrEnum):
    """What becomes of a request."""

    START = "start"
    JOIN = "join"
    ESCALATE = "escalate"  # join, and the plan becomes a reset
    WAIT = "wait"


def judge(running: Running | None, pending: Pending | None, cause: Cause) -> Move:
    """Return what to do with a request of `cause`."""
    if running is None:
        return Move.START if pending is None else Move.WAIT
    if not running.joinable:
        return Move.WAIT
    if running.reset or not PLANS[cause].reset:
        return Move.JOIN
    return Move.ESCALATE if running.same_port else Move.WAIT


def combine(pending: Pending | None, request: Recover, lease: str) -> Pending:
    """Add a request to what waits: the graver cause counts; `lease` is the id for a first one."""
    if pending is None:
        return Pending(lease, request.cause, request.functions, request.evidence)
    return Pending(
        pending.lease,
        max(pending.cause, request.cause, key=_SEVERITY.index),
        tuple(dict.fromkeys((*pending.functions, *request.functions))),
        {**pending.evidence, **request.evidence},
    )
