"""What the fabric's commands ask of the actor, in the order in which it is to happen (raft's Ready).

A command is a generator: it decides, the actor performs, and nothing is answered that is not on the disk. A test
drives the same generators and lets the fabric die between any two effects.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeAlias, TypeVar

import msgspec

from shared.pcie import Address
from shared.protocol.facts import What
from shared.recovery import Effect as RecoveryEffect

from ._book import Entry, Said


class Persist(msgspec.Struct, frozen=True):
    """Apply and keep an entry, synced before it goes on. Sent back: the Book after it.

    `sync` is False only for what may be lost with the power: the hardware forgets at the same moment.
    """

    entry: Entry
    sync: bool = True


class Tell(msgspec.Struct, frozen=True):
    """Establish a fact: in the ledger at once, on the bus after the answer is synced. Sent back: the Book."""

    said: Said


class Enumerate(msgspec.Struct, frozen=True):
    """Walk the buses. Sent back: a tuple of Known, every function that answers now."""


class Answer(msgspec.Struct, frozen=True):
    """Tell the firmware how the EDR event of a port ended. Sent back: whether somebody was there to hear it."""

    port: Address
    status: int


Effect: TypeAlias = RecoveryEffect | Persist | Tell | Enumerate | Answer
R = TypeVar("R")
# Sent values depend on the effect yielded, which the type system cannot tie together: hence Any.
Command: TypeAlias = Generator[Effect, Any, R]


def tell(what: What, port: Address, lease: str | None = None, cause: str | None = None, **data: Any) -> Tell:
    """Return the effect that establishes a fact."""
    return Tell(Said(what=what, port=port, lease=lease, cause=cause, data=data))
