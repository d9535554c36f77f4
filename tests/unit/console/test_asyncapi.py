"""The AsyncAPI document: every row of ROUTES and nothing else, and the committed copy is what the tree says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Final, get_args

import msgspec
import pytest

from services.console import _asyncapi
from services.console._exit import ExitCode
from shared.protocol import Message
from shared.protocol.facts import Fact, What
from shared.protocol.requests import Accepted
from shared.protocol.routes import PEOPLE, ROUTES, Route, User

ROOT: Final = Path(__file__).parents[3]
COMMITTED: Final = ROOT / "deploy" / "asyncapi.json"
RENEW: Final = "holdfast asyncapi --output deploy/asyncapi.json"

DOCUMENT: Final = _asyncapi.document()
CHANNELS: Final = DOCUMENT["channels"]
OPERATIONS: Final = DOCUMENT["operations"]
each_row = pytest.mark.parametrize("route", ROUTES, ids=[route.name for route in ROUTES])


def differs(made: str) -> bool:
    """Compare with the committed copy."""
    return made != COMMITTED.read_text(encoding="utf-8")


def target(reference: dict[str, str]) -> Any:
    """Follow a reference within the document."""
    found: Any = DOCUMENT
    for part in reference["$ref"].removeprefix("#/").split("/"):
        found = found[part]
    return found


# --- Drift ---


def test_the_committed_copy_is_what_the_message_types_say() -> None:
    assert not differs(_asyncapi.text()), f"deploy/asyncapi.json is not of this tree; renew it: {RENEW}"


class Moved(Message, frozen=True):
    """Take a lease, in another way."""

    id: str
    port: int


def changed(**fields: Any) -> tuple[Route, ...]:
    """Return the table with its first command changed."""
    return tuple(
        msgspec.structs.replace(route, **fields) if route.name == "fabric.coordinator.open" else route
        for route in ROUTES
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"message": Moved},
        {"reply": Accepted},
        {"subject": "pcie.{host}.fabric.coordinator.take"},
        {"about": "Take it."},
        {"senders": frozenset({User.VIEWER})},
        {"takers": frozenset({User.MACHINE})},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_a_changed_row_is_a_drift(fields: dict[str, Any]) -> None:
    assert differs(_asyncapi.text(changed(**fields)))


def test_a_changed_message_type_is_a_drift(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same names on the wire, another type: only the schema can tell."""
    (row,) = [route for route in ROUTES if route.name == "fabric.coordinator.open"]
    fields = [
        (field.name, int if field.name == "holder" else field.type, field.default)
        if field.default is not msgspec.NODEFAULT
        else (field.name, int if field.name == "holder" else field.type)
        for field in msgspec.structs.fields(row.message)
        if field.name != "v"
    ]
    other = msgspec.defstruct("Open", fields, bases=(Message,), frozen=True, kw_only=True)
    monkeypatch.setattr(other, "__doc__", row.message.__doc__)
    made = _asyncapi.document(tuple(
        msgspec.structs.replace(route, message=other) if route.message is row.message else route for route in ROUTES
    ))  # fmt: skip
    before, after = (found["components"]["schemas"]["Open"]["properties"] for found in (DOCUMENT, made))
    assert {name for name in before if before[name] != after[name]} == {"holder"}


def test_a_row_more_or_less_is_a_drift() -> None:
    assert differs(_asyncapi.text(ROUTES[1:]))
    assert differs(_asyncapi.text((*ROUTES, msgspec.structs.replace(ROUTES[0], name="another"))))


@pytest.mark.parametrize("seed", ["0", "1"])
def test_it_is_the_same_text_in_every_process(seed: str) -> None:
    """Sets of users have no order of their own."""
    made = subprocess.run(
        [sys.executable, "-m", "services.console", "asyncapi"],
        env={**os.environ, "PYTHONHASHSEED": seed}, cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert made.stdout == _asyncapi.text()


def test_a_file_that_cannot_be_written_is_a_usage_error(tmp_path: Path) -> None:
    file = tmp_path / "nowhere" / "asyncapi.json"
    made = subprocess.run(
        [sys.executable, "-m", "services.console", "asyncapi", "--output", str(file)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert made.returncode == ExitCode.USAGE
    assert made.stderr == f"holdfast: {file} cannot be written: No such file or directory\n"


# --- Channels ---


@each_row
def test_every_row_is_a_channel_with_its_subject_and_its_messages(route: Route) -> None:
    channel = CHANNELS[route.name]
    assert channel["address"] == route.subject
    assert channel["description"] == route.about
    assert channel["x-senders"] == sorted(route.senders)
    assert channel["x-takers"] == sorted(route.takers)
    titles = {target(message)["title"] for message in channel["messages"].values()}
    assert titles == {route.name.removeprefix("fact.") if route.message is Fact else route.message.__name__}


def test_nothing_else_is_a_channel_but_the_inbox() -> None:
    assert set(CHANNELS) - {route.name for route in ROUTES} == {"reply"}
    assert CHANNELS["reply"]["address"] is None


@each_row
def test_every_variable_of_a_subject_is_described(route: Route) -> None:
    parameters = CHANNELS[route.name].get("parameters", {})
    assert set(parameters) == set(re.findall(r"\{(\w+)\}", route.subject))
    assert all(target(parameter)["description"] for parameter in parameters.values())


# --- Operations ---


@each_row
def test_what_people_send_is_received_and_what_they_may_read_is_sent(route: Route) -> None:
    actions = {action for action in ("send", "receive") if f"{action}.{route.name}" in OPERATIONS}
    if not (route.senders | route.takers) & PEOPLE:
        assert actions == {"send", "receive"}  # between services: both
    else:
        assert ("receive" in actions) is bool(route.senders & PEOPLE)
        assert ("send" in actions) is bool(route.takers & PEOPLE)


def test_every_operation_is_that_of_a_row() -> None:
    named = {f"{action}.{route.name}" for route in ROUTES for action in ("send", "receive")}
    assert set(OPERATIONS) <= named
    assert all(operation["action"] == name.partition(".")[0] for name, operation in OPERATIONS.items())


@each_row
def test_a_request_names_all_that_may_be_answered_and_a_hint_nothing(route: Route) -> None:
    for operation in (found for name, found in OPERATIONS.items() if name.partition(".")[2] == route.name):
        if route.reply is None:
            assert "reply" not in operation
            continue
        answers = {target(target(reference))["title"] for reference in operation["reply"]["messages"]}
        assert answers == {kind.__name__ for kind in get_args(route.reply)}
        assert "Refused" in answers


# --- Messages ---


@each_row
def test_a_request_and_its_answer_travel_as_msgpack_or_as_json_all_else_as_msgpack(route: Route) -> None:
    kinds = {target(message)["contentType"] for message in CHANNELS[route.name]["messages"].values()}
    assert kinds == {"application/msgpack"} | (set() if route.reply is None else {"application/json"})


@pytest.mark.parametrize("what", list(What))
def test_a_fact_says_what_it_is_and_what_it_carries(what: What) -> None:
    (message,) = CHANNELS[f"fact.{what}"]["messages"].values()
    common, own = target(message)["payload"]["allOf"]
    assert set(target(common)["required"]) == {"what", "host", "port", "service", "seq", "at"}
    assert own["properties"]["what"] == {"const": what}
    assert target(own["properties"]["data"])["properties"]


def test_every_message_and_every_schema_is_used_and_none_is_missing() -> None:
    text = _asyncapi.text()
    for kind in ("messages", "schemas", "parameters"):
        used = set(re.findall(rf'"#/components/{kind}/([^"]+)"', text))
        assert used == set(DOCUMENT["components"][kind])


def test_a_message_is_of_the_version_that_is_spoken() -> None:
    versions = [
        schema["properties"]["v"] for schema in DOCUMENT["components"]["schemas"].values()
        if "v" in schema.get("properties", {})
    ]  # fmt: skip
    assert versions
    assert all(version["const"] == 1 for version in versions)


def test_numbers_that_have_names_are_explained() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    assert "3 recovery" in schemas["Rank"]["description"]
    assert "0x40 hotplug_capable" in schemas["SlotCapabilities"]["description"]
    assert "enum" not in schemas["SlotCapabilities"]  # a set of bits is any sum of them


def test_schemas_are_in_the_words_of_draft_7() -> None:
    """AsyncAPI's own schema: no `prefixItems`, no discriminator object, nothing beside a reference."""
    pending: list[Any] = [DOCUMENT["components"]["schemas"]]
    while pending:
        found = pending.pop()
        if isinstance(found, dict):
            assert not {"prefixItems", "$defs", "discriminator"} & set(found)
            assert "$ref" not in found or len(found) == 1 or not isinstance(found["$ref"], str)
            pending += found.values()
        elif isinstance(found, list):
            pending += found
