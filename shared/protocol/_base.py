"""The root of all messages: its version, and what a refusal says."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec

VERSION: Final = 1
# Header of a request: for how many seconds its asker waits. Left out by people, who wait for as long as it takes.
PATIENCE: Final = "Holdfast-Patience"


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whatever travels on the bus. `v` may be left out by a person who writes JSON by hand."""

    v: int = VERSION


class Reason(StrEnum):
    """Why a request was refused. The console turns each into an exit code of its own."""

    MALFORMED = "malformed"  # not msgpack, not JSON, or not of the request's type
    VERSION = "version"  # a version that this side does not speak
    UNKNOWN_PORT = "unknown_port"  # no such function, or not a port, in the host's topology
    UNKNOWN_LEASE = "unknown_lease"
    HELD = "held"  # another lease covers the port; `lease` names it
    FENCED = "fenced"  # the token is not, or no longer, that of the lease (P7)
    ROLE = "role"  # this role may not do this
    UNMASKED = "unmasked"  # a reset bit without the mask that P1 asks for
    OUTSIDE = "outside"  # an operation on a function outside the lease's domain
    CONDITION = "condition"  # a `provided` condition does not hold
    STALE = "stale"  # `n` is below the last command executed, and its answer is no longer kept
    IN_RESET = "in_reset"  # close refused: a reset bit is still set
    ABSENT = "absent"  # the device is gone
    QUARANTINED = "quarantined"  # the port is in quarantine until an operator releases it
    POLICY = "policy"  # refused by rule or interlock; the message says which
    UNSUPPORTED = "unsupported"  # no method of the function can do it
    NOT_OWNER = "not_owner"  # this instance does not own the host (yet)
    STOPPING = "stopping"  # the service is shutting down


class LeaseRef(msgspec.Struct, frozen=True, kw_only=True):
    """Who stands in the way, or who covers a function: enough to name it, not enough to act for it (no token)."""

    id: str
    port: str
    rank: str
    cause: str
    holder: str


class Refused(Message, frozen=True, tag="refused"):
    """The request changed nothing. `message` says what to do; `lease` names the lease concerned, if any."""

    reason: Reason
    message: str
    lease: LeaseRef | None = None
