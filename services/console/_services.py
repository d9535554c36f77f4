"""Which services answer: each is asked by its micro-service name, and its ownership record names who acts."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final

import msgspec

from shared.protocol import Message, decode, subjects
from shared.protocol.records import Owner
from shared.runtime import Unanswered

from ._fleet import SERVICES
from ._session import ANSWER_S, Session

_PING: Final = "$SRV.PING"  # of the NATS services API (ADR-32); followed by the service's name


class _Ask(Message, frozen=True):
    """A ping has no content."""


class _Pong(Message, frozen=True, tag_field="type", tag="io.nats.micro.v1.ping_response"):
    """What a service says of itself."""

    name: str
    id: str
    version: str
    metadata: dict[str, Any] = msgspec.field(default_factory=dict)


class ServiceState(msgspec.Struct, frozen=True):
    """One service: whether an instance answers, and which instance owns the host."""

    service: str
    alive: bool
    owner: str | None


async def ask_services(session: Session) -> tuple[ServiceState, ...]:
    """Ask all services at once."""
    return tuple(await asyncio.gather(*(_ask(session, service) for service in sorted(SERVICES))))


async def _ask(session: Session, service: str) -> ServiceState:
    entry = await session.bus.get(subjects.owner_key(session.host, service))
    alive = await _pong(session, service)
    owner: Owner | None = None if entry is None else decode(entry.value, Owner)
    return ServiceState(service, alive, None if owner is None or owner.released else owner.owner)


async def _pong(session: Session, service: str) -> bool:
    """Tell whether any instance answers a ping."""
    for name in (service, f"{service}-{session.host}"):  # one for all hosts, or one for each
        with contextlib.suppress(Unanswered):
            await session.bus.request(f"{_PING}.{name}", _Ask(), _Pong, timeout_s=ANSWER_S)
            return True
    return False
