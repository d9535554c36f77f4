"""Records in the key-value bucket PCIE: ownership, the recovery journal, and the registry of devices.

One bucket, history 1: a journal or registry write is conditional on the revision of its writer's ownership record,
which must stand in the same stream.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

from shared.pcie import Address, Identity

from ._base import Message
from .fabric import Rank, Reach
from .requests import Channel, Vote


class Owner(Message, frozen=True):
    """Who acts for a host in one role. `beat` counts up; a standby takes over when it stands still."""

    owner: str
    beat: int
    released: bool = False


class RecoveryState(StrEnum):
    """Whether a recovery is under way."""

    OPEN = "open"
    CLOSED = "closed"


class Verdict(StrEnum):
    """What became of a device, as an operator reads it."""

    KEPT = "kept"
    REBOUND = "rebound"
    REPLACED = "replaced"
    REMOVED = "removed"
    FAILED = "failed"
    QUARANTINED = "quarantined"


class Recovery(Message, frozen=True):
    """The journal of one recovery: what the fabric cannot know. Written before each step, never deleted."""

    lease: str
    port: Address
    cause: str
    rank: Rank
    reach: Reach
    state: RecoveryState
    step: str
    told: dict[str, dict[str, Vote]] = msgspec.field(default_factory=dict)  # step -> function -> vote
    verdicts: dict[str, Verdict] = msgspec.field(default_factory=dict)  # function -> verdict, when closed
    details: dict[str, Any] = msgspec.field(default_factory=dict)
    failures: dict[str, int] = msgspec.field(default_factory=dict)  # port -> how often it did not come up again
    retrying: tuple[Address, ...] = ()  # ports that are reset once more
    quarantine: tuple[Address, ...] = ()  # ports that are held down for good when the lease is closed ...
    why: str = ""  # ... and why
    begun: tuple[float, ...] = ()  # recoveries of the port lately: seconds before the lease, its own first (0)
    broken: str | None = None  # who ended it against its holder's will


class Device(Message, frozen=True):
    """One function in the registry. `generation` counts its registrations: it grows when it is removed and added."""

    function: Address
    port: Address
    identity: Identity
    generation: int
    present: bool
    driver: str | None = None
    channel: Channel = Channel.NORMAL
    rebound: tuple[str, ...] = ()  # leases whose verdict `rebound` is counted in the generation, each once
    switched_off: bool = False  # removed when its slot was switched off on purpose
