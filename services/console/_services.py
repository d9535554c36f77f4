"""Which services answer: all their instances are asked by the service's name, and its ownership record says who acts."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import msgspec

from shared.protocol import Message, decode, subjects
from shared.protocol.records import Owner

from ._fleet import SERVICES
from ._session import ANSWER_S, Session

_PING: Final = "$SRV.PING"  # of the NATS services API (ADR-32); followed by the service's name
_QUIET_S: Final = 0.25  # after an answer, until no other instance is waited for


class _Ask(Message, frozen=True):
    """A ping has no content."""


class _Pong(Message, frozen=True, tag_field="type", tag="io.nats.micro.v1.ping_response"):
    """What an instance says of itself."""

    name: str
    id: str
    version: str
    metadata: dict[str, Any] = msgspec.field(default_factory=dict)


class ServiceState(msgspec.Struct, frozen=True):
    """One service: whether an instance answers, which one owns the host, and which ones would take it over."""

    service: str
    alive: bool
    owner: str | None
    standby: tuple[str, ...] = ()


async def ask_services(session: Session) -> tuple[ServiceState, ...]:
    """Ask all services at once."""
    return tuple(await asyncio.gather(*(_ask(session, service) for service in sorted(SERVICES))))


async def instances(session: Session, service: str) -> tuple[str, ...]:
    """Return the names of the instances of a service that answer for the session's host, each once."""
    pongs: tuple[_Pong, ...] = await session.bus.request_all(
        f"{_PING}.{service}", _Ask(), _Pong, timeout_s=ANSWER_S, quiet_s=_QUIET_S
    )
    here = (pong.metadata for pong in pongs if session.host in str(pong.metadata.get("hosts", "")).split(","))
    return tuple(sorted({str(metadata.get("instance")) for metadata in here}))


async def _ask(session: Session, service: str) -> ServiceState:
    entry = await session.bus.get(subjects.owner_key(session.host, service))
    found = await instances(session, service)
    record: Owner | None = None if entry is None else decode(entry.value, Owner)
    if record is None or record.released:
        return ServiceState(service, bool(found), None)
    owner = record.owner.rpartition(":")[0]
    return ServiceState(service, bool(found), record.owner, tuple(name for name in found if name != owner))
