"""All that travels on the bus, as an AsyncAPI 3 document. Pure: made from ROUTES and the message types alone.

Holdfast as a whole is the application. What people send it, it receives; what people may read, it sends; what only its
services say to one another, it does both. Every row of ROUTES is a channel. The one channel that is no row is `reply`:
an asker's inbox, whose address stands in each request.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, get_args

import msgspec

from shared.protocol import PATIENCE, VERSION
from shared.protocol.fact_data import DATA
from shared.protocol.facts import Fact, What
from shared.protocol.routes import PEOPLE, ROUTES, Route

from . import _asyncapi_schemas

Document = dict[str, Any]

MSGPACK: Final = "application/msgpack"
JSON: Final = "application/json"
_REPLY: Final = "reply"
_FACT: Final = "fact."
_ABOUT: Final = (
    "PCIe reset coordination over NATS. Messages are msgpack (a time is a timestamp extension, bytes are bin). "
    "A request may also be sent as JSON (a time is RFC 3339, bytes are base64) and is then answered in JSON: the first "
    "byte tells. Facts are kept in the stream PCIE_FACTS; a fact's `data` may grow, so pass over what you do not know. "
    "An interrupt is a hint and may be lost. A request that was not answered in time may have been executed."
)
_PARAMETERS: Final = {
    "host": ("A host; letters, digits, dash and underscore.", ("lab",)),
    "port": ("A port by its address, with dashes for `:` and `.`.", ("0000-3b-00-0",)),
    "function": ("A function by its address, with dashes for `:` and `.`.", ("0000-3c-00-0",)),
    "service": ("A service by its name.", ("coordinator",)),
    "instance": ("One process of a service.", ("coordinator-1",)),
}
_ASKED: Final = "RequestHeaders"
_ASKED_SCHEMA: Final = {
    "type": "object",
    "properties": {
        PATIENCE: {
            "type": "string",
            "description": "For how many seconds the asker waits. A question may stay unanswered after that.",
            "examples": ["5"],
        }
    },
}
_PARAMETER: Final = re.compile(r"\{(\w+)\}")


def document(routes: Sequence[Route] = ROUTES) -> Document:
    """Return the document as plain values, in an order that depends on nothing but the table."""
    return {
        "asyncapi": "3.0.0",
        "id": "urn:holdfast:bus",
        "info": {
            "title": "Holdfast",
            "version": str(VERSION),
            "description": _ABOUT,
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "defaultContentType": MSGPACK,
        "servers": {
            "bus": {
                "host": "127.0.0.1:4222",
                "protocol": "nats",
                "description": "NATS 2.11 or newer with JetStream. Each user has a key and permissions of its own.",
            }
        },
        "channels": _channels(routes),
        "operations": {name: operation for route in routes for name, operation in _operations(route)},
        "components": {
            "parameters": {name: _parameter(name) for name in _PARAMETERS if _is_used(name, routes)},
            "messages": {name: message for route in routes for name, message in _messages(route)},
            "schemas": {**_asyncapi_schemas.components(_types(routes)), _ASKED: _ASKED_SCHEMA},
        },
    }


def text(routes: Sequence[Route] = ROUTES) -> str:
    """Return the document as it is written to a file."""
    return msgspec.json.format(msgspec.json.encode(document(routes)), indent=2).decode() + "\n"


# --- Channels ---


def _channels(routes: Sequence[Route]) -> Document:
    channels: Document = {route.name: _channel(route) for route in routes}
    answers = dict.fromkeys(name for route in routes for name in _answers(route))
    channels[_REPLY] = {
        "address": None,
        "title": "The asker's inbox",
        "description": "Where a request is answered: the reply subject of its NATS message.",
        "messages": {name: _component("messages", name) for name in answers},
    }
    return channels


def _channel(route: Route) -> Document:
    channel: Document = {
        "address": route.subject,
        "description": route.about,
        "messages": {name: _component("messages", name) for name in _sent(route)},
        "x-senders": sorted(route.senders),
        "x-takers": sorted(route.takers),
    }
    names = _PARAMETER.findall(route.subject)
    if names:
        channel["parameters"] = {name: _component("parameters", name) for name in names}
    return channel


def _parameter(name: str) -> Document:
    about, examples = _PARAMETERS[name]
    return {"description": about, "examples": list(examples)}


def _is_used(name: str, routes: Sequence[Route]) -> bool:
    return any(name in _PARAMETER.findall(route.subject) for route in routes)


# --- Operations ---


def _operations(route: Route) -> Iterator[tuple[str, Document]]:
    """Yield what Holdfast does with a row."""
    inside = not (route.senders | route.takers) & PEOPLE
    if inside or route.takers & PEOPLE:
        yield f"send.{route.name}", _operation(route, "send")
    if inside or route.senders & PEOPLE:
        yield f"receive.{route.name}", _operation(route, "receive")


def _operation(route: Route, action: str) -> Document:
    operation: Document = {
        "action": action,
        "channel": {"$ref": f"#/channels/{route.name}"},
        "summary": route.about,
        "messages": [_of_channel(route.name, name) for name in _sent(route)],
    }
    if route.reply is not None:
        operation["reply"] = {
            "channel": {"$ref": f"#/channels/{_REPLY}"},
            "messages": [_of_channel(_REPLY, name) for name in _answers(route)],
        }
    return operation


def _of_channel(channel: str, message: str) -> Document:
    return {"$ref": f"#/channels/{channel}/messages/{message}"}


def _component(kind: str, name: str) -> Document:
    return {"$ref": f"#/components/{kind}/{name}"}


# --- Messages ---


def _sent(route: Route) -> tuple[str, ...]:
    """Return the names of the messages that travel on a row's subject."""
    if route.message is Fact:
        return (route.name,)
    name = route.message.__name__
    return (name,) if route.reply is None else (name, _as_json(name))


def _answers(route: Route) -> tuple[str, ...]:
    names = [kind.__name__ for kind in _kinds(route.reply)]
    return (*names, *map(_as_json, names))


def _as_json(name: str) -> str:
    return f"{name}.json"


def _messages(route: Route) -> Iterator[tuple[str, Document]]:
    if route.message is Fact:
        yield route.name, _fact(route)
    elif route.reply is None:
        yield route.message.__name__, _message(route.message, MSGPACK)
    else:
        for kind in (route.message, *_kinds(route.reply)):
            headers = {"headers": _component("schemas", _ASKED)} if kind is route.message else {}
            yield kind.__name__, _message(kind, MSGPACK) | headers
            yield _as_json(kind.__name__), _message(kind, JSON) | headers


def _message(kind: type, content_type: str) -> Document:
    return {
        "name": kind.__name__,
        "title": kind.__name__,
        "contentType": content_type,
        "payload": _component("schemas", kind.__name__),
    }


def _fact(route: Route) -> Document:
    """Return the message of one kind of fact: what all facts have, and what this one carries."""
    what = _what(route)
    carries = {
        "type": "object",
        "properties": {"what": {"const": str(what)}, "data": _component("schemas", DATA[what].__name__)},
    }
    return {
        "name": str(what),
        "title": str(what),
        "contentType": MSGPACK,
        "payload": {"allOf": [_component("schemas", Fact.__name__), carries]},
    }


def _what(route: Route) -> What:
    return What(route.name.removeprefix(_FACT))


def _kinds(reply: Any) -> tuple[type, ...]:
    """Return the members of a union of messages."""
    return get_args(reply) or (() if reply is None else (reply,))


def _types(routes: Iterable[Route]) -> tuple[type, ...]:
    """Return all types that the document names, each once."""
    types: dict[type, None] = {}
    for route in routes:
        types |= dict.fromkeys((route.message, *_kinds(route.reply)))
        if route.message is Fact:
            types[DATA[_what(route)]] = None
    return tuple(types)
