"""What each NATS user may publish and subscribe: made from ROUTES, and from what the records and the audit log need.

Whoever is not named here may do nothing. Three things are less plain than they look:

- **Replies go to the inboxes of askers only.** NATS lets a responder answer to *any* address that the asker names
  (`allow_responses`). So whoever may ask could have a service write where he may not: over a journal, say. A service
  may answer to the inboxes of those who may ask it instead, so that it can answer for nobody else, and each user may
  listen only to its own.
- **JetStream itself answers wherever it is told to**, with no permission to hold it back; a stored message, asked for
  directly, is sent to a subject of the asker's choice, as it is. So services, which can store facts, may not ask for
  them; and people, who may, live in an account of their own, where no such subject means anything to a service.
- **Nobody may change or empty the streams**, not even their makers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import msgspec

from . import subjects
from .routes import PEOPLE, ROUTES, SERVICES, Route, User

PER_HOST: Final = frozenset({User.MACHINE, User.FABRIC})  # one user for each host; the others serve any number
ANY_HOST: Final = ("*",)
INBOXES: Final = "_INBOX"  # what the client library calls them unless told otherwise
_ACROSS_ACCOUNTS: Final = "_R_.>"  # where the server has answers sent that leave the account
_DISCOVERY: Final = "$SRV.>"  # PING, INFO and STATS of the NATS services API (ADR-32)
_API: Final = "$JS.API"
_API_AMONG_PEOPLE: Final = "API"
_BUCKET_STREAM: Final = f"KV_{subjects.BUCKET}"
_STREAMS: Final = (subjects.FACT_STREAM, _BUCKET_STREAM)
_LOOK: Final = (
    *(f"{_API}.STREAM.INFO.{stream}" for stream in _STREAMS),
    f"{_API}.STREAM.MSG.GET.{_BUCKET_STREAM}",
)
_READ_FACTS: Final = f"{_API}.DIRECT.GET.{subjects.FACT_STREAM}"
_CREATE: Final = tuple(f"{_API}.STREAM.CREATE.{stream}" for stream in _STREAMS)
# The records that each keeps, its ownership of a host first. Nobody else can write them.
_KEEPS: Final[Mapping[User, tuple[str, ...]]] = {
    User.COORDINATOR: ("owner.{host}.coordinator", "recovery.{host}.*"),
    User.HOTPLUG: ("owner.{host}.hotplug", "device.{host}.*"),
    User.AER: ("owner.{host}.aer",),
    User.DPC: ("owner.{host}.dpc",),
}
_PLACEHOLDER: Final = re.compile(r"\{(\w+)\}")


class Permissions(msgspec.Struct, frozen=True):
    """Subjects that a user may publish and subscribe, in the order of their names. All others are refused."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]


class Crossing(msgspec.Struct, frozen=True):
    """What crosses from the services' account to that of people: requests to ask, and facts to hear."""

    requests: tuple[str, ...]
    streamed: tuple[str, ...]  # requests that have more than one answer
    heard: tuple[str, ...]


def inbox(public_key: str) -> str:
    """Return the prefix of the inboxes of the user with this nkey: a credential tells its own, and no other's."""
    return f"{INBOXES}.{public_key}"


def permissions(
    user: User, hosts: Iterable[str] = ANY_HOST, *, own_inbox: str, inboxes: Iterable[tuple[User, str]]
) -> Permissions:
    """Return what `user` may do on these hosts. Machine and fabric have one.

    `inboxes` are those of all users of these hosts, with whose they are: a service answers to some of them.
    """
    hosts = tuple(hosts)
    assert len(hosts) == 1 or user not in PER_HOST, hosts
    publish = set(_sends(user, hosts))
    subscribe = {*_takes(user, hosts), f"{own_inbox}.>"}
    if user in SERVICES:
        publish |= {*_LOOK, *_answers(user, inboxes), _ACROSS_ACCOUNTS}
        subscribe |= set(_answers_discovery(user, hosts))
    else:
        publish |= {_DISCOVERY, *map(among_people, (*_LOOK, _READ_FACTS))}
    if user in SERVICES - {User.MACHINE}:  # the machine neither states facts nor keeps records
        publish |= {*_CREATE, *_keys(user, hosts)}
    return Permissions(tuple(sorted(publish)), tuple(sorted(subscribe)))


def among_people(subject: str) -> str:
    """Return what a request to JetStream is called in the account of people. The server renames it on its way in.

    Under its own name it would be answered twice: by the streams, and by JetStream, which that account has none of.
    """
    return subject.replace(_API, _API_AMONG_PEOPLE, 1)


def crossing() -> Crossing:
    """Return what the services' account offers to people, whoever they are; their own permissions narrow it."""
    asked = {_filled(route, "*", "*") for route in ROUTES if route.senders & PEOPLE}
    heard = {_filled(route, "*", "*") for route in ROUTES if route.takers & PEOPLE}
    return Crossing(
        requests=tuple(sorted({*asked, *_LOOK})),
        streamed=(_READ_FACTS, _DISCOVERY),
        heard=tuple(sorted(heard)),
    )


def _sends(user: User, hosts: tuple[str, ...]) -> Iterator[str]:
    return (_filled(route, host, "*") for route in ROUTES if user in route.senders for host in hosts)


def _takes(user: User, hosts: tuple[str, ...]) -> Iterator[str]:
    """Yield what is sent to this user; a service takes only what names it, where a subject names a service."""
    return (_filled(route, host, user) for route in ROUTES if user in route.takers for host in hosts)


def _answers(user: User, inboxes: Iterable[tuple[User, str]]) -> Iterator[str]:
    """Yield where the services that may ask this one wait. People's inboxes are in another account."""
    askers = {
        sender for route in ROUTES if user in route.takers and route.reply is not None for sender in route.senders
    }
    return (f"{asker_inbox}.>" for asker, asker_inbox in inboxes if asker in askers & SERVICES)


def _keys(user: User, hosts: tuple[str, ...]) -> Iterator[str]:
    keys = _KEEPS.get(user, ())
    return (f"$KV.{subjects.BUCKET}.{key.format(host=host)}" for key in keys for host in hosts)


def _answers_discovery(user: User, hosts: tuple[str, ...]) -> Iterator[str]:
    """Any verb, to all, to this service by name (its own, or with its host), and to one instance of it."""
    yield "$SRV.*"
    for name in (user, *(f"{user}-{host}" for host in hosts)) if hosts != ANY_HOST else ("*",):
        yield f"$SRV.*.{name}"
        yield f"$SRV.*.{name}.*"


def _filled(route: Route, host: str, service: str) -> str:
    known = {"host": host, "service": service}
    return _PLACEHOLDER.sub(lambda found: known.get(found[1], "*"), route.subject)
