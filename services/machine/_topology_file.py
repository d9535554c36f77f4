"""What is on the bench: the topology file, validated. A mistake is named with the field or the address it is in."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import msgspec

from shared.pcie import Address, AddressError

from ._specs import DriverSpec, FunctionSpec, MachineError, TopologyFile
from ._topology_checks import (
    PARENTS,
    check_buses,
    check_collectors,
    check_function,
    check_place,
    check_virtual_places,
)


def load(path: Path) -> TopologyFile:
    """Read a topology file. Raises MachineError, naming the file and what is wrong with it."""
    try:
        return parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MachineError(f"topology file {path} cannot be read: {error.strerror}") from error
    except (MachineError, UnicodeDecodeError) as error:
        raise MachineError(f"topology file {path}: {error}") from error


def parse(text: str) -> TopologyFile:
    """Read a topology file's text. Raises MachineError."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise MachineError(f"not valid TOML: {error}") from error
    return complete(_convert(table, TopologyFile))


def complete(bench: TopologyFile) -> TopologyFile:
    """Fill in `under` where the bus says it, and check that the tree can exist. Raises MachineError."""
    bridges = {spec.bus[0]: spec for spec in bench.function if spec.bus is not None and spec.is_bridge}
    functions = tuple(_with_parent(spec, bridges) for spec in bench.function)
    known: dict[Address, FunctionSpec] = {}
    for spec in functions:
        if spec.address in known:
            raise MachineError(f"two functions at {spec.address}")
        known[spec.address] = spec
        check_function(spec)
    for spec in functions:
        if spec.under is not None:
            check_place(spec, known)
    check_buses(functions)
    check_collectors(functions)
    check_virtual_places(functions)
    return msgspec.structs.replace(bench, function=functions)


def changed(spec: FunctionSpec, fields: dict[str, Any]) -> FunctionSpec:
    """Return the function with fields of the topology file changed. Raises MachineError."""
    table = msgspec.to_builtins(spec, enc_hook=_encode)
    return new_function({**table, **fields})


def new_function(table: dict[str, Any]) -> FunctionSpec:
    """Return the function that a table describes. Raises MachineError."""
    spec: FunctionSpec = _convert(table, FunctionSpec)
    check_function(spec)
    return spec


def new_driver(table: dict[str, Any]) -> DriverSpec:
    """Return the driver that a table describes. Raises MachineError."""
    driver: DriverSpec = _convert(table, DriverSpec)
    return driver


def driver_table(driver: DriverSpec) -> dict[str, Any]:
    """Return the driver as a table of the topology file."""
    table: dict[str, Any] = msgspec.to_builtins(driver)
    return table


def _with_parent(spec: FunctionSpec, bridges: dict[int, FunctionSpec]) -> FunctionSpec:
    if spec.kind not in PARENTS:
        if spec.under is not None:
            raise MachineError(
                f"function {spec.address}: a {spec.kind} stands on a root bus, under {spec.under} it cannot"
            )
        return spec
    if spec.under is not None:
        return spec
    bridge = bridges.get(spec.address.bus)
    if bridge is None:
        raise MachineError(
            f"function {spec.address}: no bridge has the secondary bus {spec.address.bus:#04x}; name one in `under`"
        )
    return msgspec.structs.replace(spec, under=bridge.address)


def _convert(table: Any, kind: Any) -> Any:
    try:
        return msgspec.convert(table, kind, dec_hook=_decode)
    except (msgspec.ValidationError, AddressError) as error:
        raise MachineError(str(error)) from error


def _decode(kind: type, value: Any) -> Any:
    if kind is Address and isinstance(value, str):
        return Address.parse(value)
    raise AddressError(f"{value!r} is not a PCI address; write it as lspci does, for example 0000:3b:00.0")


def _encode(value: Any) -> Any:
    assert isinstance(value, Address)
    return str(value)
