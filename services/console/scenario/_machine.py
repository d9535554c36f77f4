"""The machine of a scenario: the text of its topology file, and what stands on it. What it means is the machine's."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Final

from shared.pcie import Address, AddressError

PACKAGED: Final = ("lab", "everything")  # topologies that travel with the command


def packaged(name: str) -> str:
    """Return the text of a topology that travels with the command. Raises OSError where it does not."""
    return resources.files("services.console").joinpath("data", f"{name}.toml").read_text(encoding="utf-8")


def text_of(named: Any, inline: Any, file: Path) -> str:
    """Return the topology file's text: packaged, beside the scenario's file, or within it. Raises ValueError."""
    if inline is not None:
        if named is not None:
            raise ValueError("topology and [[function]] are two machines: choose one")
        return f"function = {_value(inline)}\n"
    if not isinstance(named, str):
        raise ValueError(  # noqa: TRY004 - a mistake in a file, like all others
            f"topology: name a packaged one ({', '.join(PACKAGED)}), a file, or write [[function]] tables"
        )
    try:
        return packaged(named) if named in PACKAGED else (file.parent / named).read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"topology {named!r} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"topology {named!r} is not text: {error}") from error


def functions(text: str) -> frozenset[Address]:
    """Return the addresses that a topology names, virtual functions included. Raises ValueError."""
    try:
        tables = tomllib.loads(text).get("function")
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"topology: not valid TOML: {error}") from error
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise ValueError("topology: there must be at least one [[function]]")
    try:
        return frozenset(address for table in tables for address in _addresses(table))
    except AddressError as error:
        raise ValueError(f"topology: {error}") from error


def _addresses(table: dict[str, Any]) -> Iterator[Address]:
    address = Address.parse(str(table.get("address", "")))
    yield address
    match table.get("sriov"):
        case {"total": int(total), "offset": int(offset), "stride": int(stride)}:
            # §9.3.3.9, §9.3.3.10: First VF Offset and VF Stride count in Routing IDs.
            for number in range(total):
                yield address.with_requester_id(address.requester_id + offset + number * stride)


def _value(value: Any) -> str:
    """Write a value as TOML has it, on one line."""
    match value:
        case bool():
            return str(value).lower()
        case str():
            return json.dumps(value)
        case int() | float():
            return str(value)
        case dict():
            return "{" + ", ".join(f"{json.dumps(str(key))} = {_value(item)}" for key, item in value.items()) + "}"
        case Sequence():
            return f"[{', '.join(_value(item) for item in value)}]"
        case _:
            raise ValueError(f"{value!r} has no place in a topology file")
