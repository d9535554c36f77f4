"""Message types as AsyncAPI schemas: msgspec's JSON Schema (2020-12) in the words of draft 7, which AsyncAPI extends."""

from __future__ import annotations

import enum
import inspect
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import msgspec

from shared.pcie import Address
from shared.protocol import VERSION, Message

_REFERENCE: Final = "#/components/schemas/{name}"
_ADDRESS: Final = {
    "type": "string",
    "description": "A PCI function as lspci writes it.",
    "examples": ["0000:3b:00.0"],
}


def components(types: Sequence[type]) -> dict[str, Any]:
    """Return the schemas of `types` and of all that they hold, by name and in alphabetical order."""
    _, schemas = msgspec.json.schema_components(types, schema_hook=_foreign, ref_template=_REFERENCE)
    schemas = {name: _draft_7(schemas[name]) for name in sorted(schemas)}
    for kind in types:
        if issubclass(kind, Message):
            schemas[kind.__name__]["properties"]["v"] = {"type": "integer", "const": VERSION, "default": VERSION}
    for numbers in _numbers(types):
        schemas[numbers.__name__] |= _numbered(numbers)
        if issubclass(numbers, enum.Flag):
            del schemas[numbers.__name__]["enum"]  # any sum of them
    return schemas


def _foreign(kind: type) -> dict[str, Any]:
    if kind is Address:
        return dict(_ADDRESS)
    raise NotImplementedError(f"{kind.__name__} does not travel on the bus")


def _draft_7(schema: Any) -> Any:
    """Return the schema with what draft 7 spells in another way, all the way down."""
    if isinstance(schema, list):
        return [_draft_7(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: value if key == "default" else _draft_7(value) for key, value in schema.items()}
    if isinstance(schema.get("description"), str):
        schema["description"] = inspect.cleandoc(schema["description"])
    if "prefixItems" in schema:
        schema["items"] = schema.pop("prefixItems")
    if isinstance(schema.get("$ref"), str) and len(schema) > 1:  # what stands beside a reference would be passed over
        schema["allOf"] = [{"$ref": schema.pop("$ref")}]
    return schema


# --- Enumerations that travel as numbers ---


def _numbers(types: Iterable[type]) -> Iterator[type[enum.IntEnum | enum.IntFlag]]:
    seen: set[Any] = set()
    waiting: list[Any] = list(msgspec.inspect.multi_type_info(types))
    while waiting:
        info = waiting.pop()
        if isinstance(info, msgspec.inspect.EnumType) and info.cls not in seen:
            seen.add(info.cls)
            if issubclass(info.cls, enum.IntEnum | enum.IntFlag):
                yield info.cls
        elif isinstance(info, msgspec.inspect.StructType) and info.cls not in seen:
            seen.add(info.cls)
            waiting += [field.type for field in info.fields]
        elif isinstance(info, msgspec.inspect.UnionType):
            waiting += info.types
        elif isinstance(info, msgspec.inspect.VarTupleType | msgspec.inspect.ListType):
            waiting.append(info.item_type)


def _numbered(kind: type[enum.IntEnum | enum.IntFlag]) -> dict[str, Any]:
    """Say what the numbers mean: JSON Schema has no place for their names."""
    form = "#x" if issubclass(kind, enum.Flag) else "d"
    names = ", ".join(f"{member.value:{form}} {member.name.lower()}" for member in kind if member.name)
    return {"type": "integer", "description": f"{inspect.cleandoc(kind.__doc__ or '')}\n\n{names}."}
