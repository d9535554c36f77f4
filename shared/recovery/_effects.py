"""What the recovery logic asks of whoever runs it. Generators yield these and are sent the result.

The logic itself neither waits nor touches a register, so that the coordinator (over the bus, under a token), the
fabric (at the hardware, when it closes) and a test (over a bare config space) all run the very same lines.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from enum import StrEnum
from typing import Any, TypeAlias, TypeVar

import msgspec

from shared.pcie import Address, Value
from shared.protocol.fabric import Condition, Operation, Verb


class Step(StrEnum):
    """The steps of a recovery in their order; each names what is true when it has been entered."""

    OPENED = "opened"  # the lease is ours; every slot that can be reached is masked
    ERROR_DETECTED = "error_detected"  # drivers are being told; the link may still be up
    MMIO_ENABLED = "mmio_enabled"  # drivers that can recover look at their devices
    RESET = "reset"  # a reset bit is being written, or containment was the reset
    RELEASE = "release"  # reset bits are being cleared and containment released
    LINK = "link"  # waiting for the link
    READY = "ready"  # waiting for the functions to answer
    RESTORE = "restore"  # config space is being written back, top-down
    ERRORS = "errors"  # error status, readable again, is being published and then cleared
    VERIFY = "verify"  # identities are compared; no joining from here on
    QUARANTINE = "quarantine"  # ports that do not come up again are being held down for good
    SLOT_RESET = "slot_reset"  # drivers are told that their device was reset
    RESUME = "resume"  # drivers go on
    CLOSE = "close"  # the fabric verifies, drains, unmasks and retires
    CLOSED = "closed"


class Do(msgspec.Struct, frozen=True):
    """Execute these operations as one step. Sent back: a tuple of Value, one per operation."""

    operations: tuple[Operation, ...]
    provided: tuple[Condition, ...] = ()


class Pause(msgspec.Struct, frozen=True):
    """Let time pass. Sent back: the clock after it, in seconds, as a float."""

    seconds: float
    why: str = ""


class Note(msgspec.Struct, frozen=True):
    """A step was entered or something is worth a fact. Sent back: None."""

    step: Step
    detail: dict[str, Any] = msgspec.field(default_factory=dict)


Effect: TypeAlias = Do | Pause | Note
R = TypeVar("R")
# Sent values depend on the effect yielded, which the type system cannot tie together: hence Any.
Logic: TypeAlias = Generator[Effect, Any, R]


def read(function: Address, offset: int, width: int) -> Operation:
    """Return a read of one register."""
    return Operation(verb=Verb.READ, function=function, offset=offset, width=width)


def write(function: Address, offset: int, width: int, value: int) -> Operation:
    """Return a plain write of one register."""
    return Operation(verb=Verb.WRITE, function=function, offset=offset, width=width, value=value)


def modify(function: Address, offset: int, width: int, *, mask: int, value: int) -> Operation:
    """Return a read-modify-write of the bits in `mask`."""
    return Operation(verb=Verb.MODIFY, function=function, offset=offset, width=width, mask=mask, value=value)


def ask(operations: Iterable[Operation]) -> Logic[tuple[Value, ...]]:
    """Execute these as one step; return a value for each. Nothing is done for nothing."""
    asked = tuple(operations)
    if not asked:
        return ()
    answer: tuple[Value, ...] = yield Do(asked)
    assert len(answer) == len(asked)
    return answer
