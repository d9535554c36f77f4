"""The server's users as text that nats-server includes: who they are, what each may do, and what crosses to people."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Final

from shared.protocol import permissions
from shared.protocol.permissions import Permissions
from shared.protocol.routes import PEOPLE, User

_HEAD: Final = """\
# The users of Holdfast's bus, for nats-server to include. Made by `holdfast keys init`, which makes it anew: do not
# edit. After a change: `nats-server --signal reload`; in a container, which has the file that it was started with,
# restart.
"""


def user_names(hosts: Iterable[str]) -> dict[str, tuple[User, tuple[str, ...]]]:
    """Return every user by the name of its file: who it is, and on which hosts."""
    hosts = tuple(hosts)
    found: dict[str, tuple[User, tuple[str, ...]]] = {}
    for user in User:
        if user in permissions.PER_HOST:
            found |= {f"{user}-{host}": (user, (host,)) for host in hosts}
        else:
            found[user] = (user, hosts)
    return found


def allowed(name: str, hosts: Iterable[str], public_keys: Mapping[str, str]) -> Permissions:
    """Return what the user of this name may do. `public_keys` by the names of `user_names`."""
    user, served = user_names(hosts)[name]
    inboxes = [(one, permissions.inbox(public_keys[other])) for other, (one, _) in user_names(served).items()]
    return permissions.permissions(user, served, own_inbox=permissions.inbox(public_keys[name]), inboxes=inboxes)


def config(hosts: Iterable[str], public_keys: Mapping[str, str]) -> str:
    """Return users.conf. `public_keys` by the names of `user_names`."""
    hosts = tuple(hosts)
    people, services = "", ""
    for name, (user, _) in user_names(hosts).items():
        entry = _user(name, public_keys[name], allowed(name, hosts, public_keys))
        if user in PEOPLE:
            people += entry
        else:
            services += entry
    crossing = permissions.crossing()
    exports = [f"{{ service: {json.dumps(subject)} }}" for subject in crossing.requests]
    exports += [f"{{ service: {json.dumps(subject)}, response_type: stream }}" for subject in crossing.streamed]
    exports += [f"{{ stream: {json.dumps(subject)} }}" for subject in crossing.heard]
    imports = [
        _import("service", subject, permissions.among_people(subject))
        for subject in (*crossing.requests, *crossing.streamed)
    ]
    imports += [_import("stream", subject) for subject in crossing.heard]
    asked = (*crossing.requests, *crossing.streamed)
    mapped = [
        f"{json.dumps(one)}: {json.dumps(permissions.among_people(one))}"
        for one in asked
        if permissions.among_people(one) != one
    ]
    return (
        f"{_HEAD}accounts {{\n"
        f"  SERVICES {{\n    jetstream: enabled\n    users: [\n{services}    ]\n    exports: [\n{_lines(exports)}    ]\n  }}\n"
        f"  PEOPLE {{\n    users: [\n{people}    ]\n    imports: [\n{_lines(imports)}    ]\n"
        f"    mappings: {{\n{_lines(mapped)}    }}\n  }}\n"
        "}\n"
    )


def _user(name: str, public_key: str, may: Permissions) -> str:
    return (
        f"      {{ # {name}\n        nkey: {public_key}\n        permissions: {{\n"
        f"          publish: {{ allow: {_list(may.publish)} }}\n"
        f"          subscribe: {{ allow: {_list(may.subscribe)} }}\n"
        "        }\n      }\n"
    )


def _list(subjects: Iterable[str]) -> str:
    lines = "".join(f"            {json.dumps(subject)}\n" for subject in subjects)
    return f"[\n{lines}          ]"


def _import(kind: str, subject: str, local: str | None = None) -> str:
    renamed = "" if local in {None, subject} else f", to: {json.dumps(local)}"
    return f"{{ {kind}: {{ account: SERVICES, subject: {json.dumps(subject)} }}{renamed} }}"


def _lines(entries: Iterable[str]) -> str:
    return "".join(f"      {entry}\n" for entry in entries)
