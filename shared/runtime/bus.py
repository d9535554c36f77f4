"""The bus, as every actor sees it.

What it does **not** promise: that a published message arrives; that it arrives once, in order, or soon; that a request
which timed out was not executed. So events are hints, commands carry a token and a number, and a timeout is *unknown*:
read back and compare (prior-art/nats.md, C1 to C11). Nothing is buffered while the connection is down: publishing then
raises BusUnreachable at once, because a command that is delivered seconds later is worse than one that failed (C2).

Handlers are plain functions. They run in the connection's own loop and may only hand the message to a mailbox.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Protocol, TypeVar

import msgspec

from shared.protocol import Message
from shared.protocol.facts import Fact

M = TypeVar("M", bound=Message)
R = TypeVar("R")


class BusError(Exception):
    """The bus did not do what was asked."""


class BusUnreachable(BusError):  # noqa: N818 - named for what is true
    """There is no connection. Nothing was sent."""


class BusRefused(BusError):  # noqa: N818 - named for what is true
    """The bus will not have us, or we will not have it: trying again would not help. Says which file or server.

    `exit_code`: that of a process that ends because of it, of sysexits.h (EX_PROTOCOL for the server's certificate,
    EX_NOPERM for our credential).
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class NotPermitted(BusError):  # noqa: N818 - named for what is true
    """The credential does not allow that. Nothing was sent on."""


class Unanswered(BusError):  # noqa: N818 - named for what is true
    """No answer in time: the request may have been executed, or may be later. Not a refusal."""


class NobodyListens(Unanswered):
    """No service answers on that subject: the request was not executed."""


class WrongRevision(BusError):  # noqa: N818 - named for what is true
    """A conditional write lost: somebody else wrote first, or the writer no longer owns the host."""


class Incoming(msgspec.Struct, frozen=True):
    """A message that was delivered: its subject and the decoded message."""

    subject: str
    message: Message


class Request(Protocol):
    """A request to be answered exactly once, from any task, at any time."""

    @property
    def subject(self) -> str:
        """Where it was sent."""

    @property
    def message(self) -> Message:
        """What was asked, decoded and validated."""

    @property
    def abandoned(self) -> bool:
        """Whether its asker has given up: the time for which it said that it would wait is over, counted from here."""

    async def answer(self, reply: Message) -> None:
        """Answer in the asker's form (msgpack or JSON). Never raises: an asker who is gone is a log line."""


class Entry(msgspec.Struct, frozen=True):
    """A record and its revision, the ticket for the next conditional write."""

    key: str
    value: bytes
    revision: int


class Subscription(Protocol):
    """What was subscribed or served, until closed."""

    async def close(self) -> None:
        """Stop delivery."""


class BusStatistics(msgspec.Struct, frozen=True):
    """Counters since the start."""

    reconnects: int
    malformed: int
    slow: int  # messages dropped because a subscriber was slow
    facts_pending: int  # established, not yet stored
    connected: bool


class Bus(Protocol):
    """NATS, or its twin in memory. One per process."""

    async def publish(self, subject: str, message: Message) -> None:
        """Send a hint, at most once. Raises BusUnreachable."""

    async def request(self, subject: str, message: Message, reply: Any, *, timeout_s: float) -> Any:
        """Ask and await the reply, decoded as `reply` (a Message type or a union that includes Refused).

        Raises BusUnreachable (not sent), NobodyListens (not executed), Unanswered (unknown), ProtocolError (the reply
        is not of the type).
        """

    async def request_all(
        self, subject: str, message: Message, reply: Any, *, timeout_s: float, quiet_s: float
    ) -> tuple[Any, ...]:
        """Ask everybody who listens; return the replies, in the order of their arrival.

        The first is awaited for `timeout_s`, each other for `quiet_s` after the one before. Malformed ones are counted
        and left out. Raises BusUnreachable.
        """

    async def subscribe(self, subject: str, kind: type[M], handler: Callable[[Incoming], None]) -> Subscription:
        """Deliver messages of `kind`; malformed ones are counted and logged, never delivered. Survives reconnects."""

    async def serve(
        self, name: str, endpoints: Mapping[str, tuple[type[Message], Callable[[Request], None]]]
    ) -> Subscription:
        """Register a micro service: subject -> (request type, handler). Malformed requests are answered with Refused.

        `name` is what `nats micro ls` shows. Several hosts or ports may be served by several calls.
        """

    def record(self, fact: Fact) -> None:
        """Put a fact into the outbox: kept in order, stored in PCIE_FACTS once there is a bus, never lost in between.

        Never blocks and never raises.
        """

    def facts(
        self, subjects: tuple[str, ...] = (), *, since_sequence: int = 1, follow: bool = False
    ) -> AsyncIterator[Fact]:
        """Iterate over stored facts in stream order, filtered by subject; with `follow`, go on with what comes.

        `since_sequence` 0: none of those stored before the call, only what comes.
        """

    async def watch_facts(self, subject: str, handler: Callable[[Incoming], None]) -> Subscription:
        """Deliver facts as they are published, as hints, without history (a core subscription on fact subjects)."""

    async def get(self, key: str) -> Entry | None:
        """Read a record from its leader. None where there is none."""

    async def put(self, key: str, message: Message, *, revision: int) -> int:
        """Write if the key's revision still is `revision` (0: it must not exist). Return the new revision.

        Raises WrongRevision, or Unanswered where the outcome is unknown.
        """

    async def put_owned(self, key: str, message: Message, *, owner_key: str, owner_revision: int) -> int:
        """Write if the ownership record still has `owner_revision`. Return the new revision. Raises as `put`."""

    async def keys(self, prefix: str) -> tuple[Entry, ...]:
        """List the records whose key starts with `prefix` (whole tokens, for example `device.lab.`)."""

    def statistics(self) -> BusStatistics:
        """Return the counters."""

    async def close(self) -> None:
        """Flush the outbox as far as possible, drain and close, in bounded time."""
