"""What every kind of fact carries is declared, and nothing else is stated anywhere in the tree."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
import pytest

import services
import shared
from shared.protocol import from_builtins
from shared.protocol.fact_data import DATA
from shared.protocol.facts import What

TREES: Final = tuple(Path(path) for package in (services, shared) for path in package.__path__)
# What `say` and `tell` take beside the data, and what the helpers in front of `say` add to it.
ENVELOPE: Final = {"lease", "cause", "what", "port", "data"}


def declared(what: What) -> set[str]:
    return {field.encode_name for field in msgspec.structs.fields(DATA[what])}


@pytest.mark.parametrize("what", list(What))
def test_every_kind_of_fact_is_declared(what: What) -> None:
    assert declared(what)


def test_each_in_the_order_of_their_subjects() -> None:
    assert list(DATA) == list(What)


def stated() -> Iterator[tuple[str, What, set[str]]]:
    """Find every `say(What.X, …, name=…)` and `tell(What.X, …)`: where it is, and the names that it spells."""
    for file in sorted(found for tree in TREES for found in tree.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            kind = node.args[0]
            if isinstance(kind, ast.Attribute) and isinstance(kind.value, ast.Name) and kind.value.id == "What":
                spelled = {keyword.arg for keyword in node.keywords if keyword.arg is not None}
                yield f"{file.name}:{node.lineno}", What[kind.attr], spelled - ENVELOPE


STATED: Final = tuple(stated())


@pytest.mark.parametrize(("what", "spelled"), [pytest.param(what, names, id=where) for where, what, names in STATED])
def test_whoever_states_a_fact_spells_only_what_is_declared(what: What, spelled: set[str]) -> None:
    assert spelled <= declared(what)


def test_the_places_that_state_facts_are_found() -> None:
    found = {what for _, what, _ in STATED}
    computed = {What.ERROR_NONFATAL, What.ERROR_FATAL, What.LEASE_REFUSED}  # by severity; as a value of its own
    assert found >= set(What) - computed


def test_data_that_is_not_as_declared_is_told_from_data_that_is() -> None:
    """What the integration tests use to hold real facts against the table."""
    from_builtins({"slot": 4, "from": "on", "to": "off", "why": "x", "a later field": 1}, DATA[What.SLOT_STATE])
    with pytest.raises(ValueError, match="slot"):
        from_builtins({"from": "on", "to": "off", "why": "x"}, DATA[What.SLOT_STATE])
