"""The card that goes into a slot: the last one, with changes."""

from __future__ import annotations

from typing import Any

from ._port import Card, Port
from ._specs import FunctionSpec, MachineError
from ._topology_file import changed, new_function


def next_card(port: Port, changes: dict[str, dict[str, Any]]) -> Card:
    """Return the card that INSERT or SWAP puts in: function number -> changed fields. Raises MachineError.

    A function number that the last card did not have is described in full, but for its address and kind.
    """
    spec = port.function.spec
    assert spec.bus is not None
    known = {str(below.address.function): below for below in port.card if below.under == spec.address}
    if not known and not changes:
        raise MachineError(f"{spec.address} never had a card: describe one in `card`")
    inside = tuple(below for below in port.card if below.under != spec.address)
    top = [_function(spec, number, known.get(number), changes.get(number, {})) for number in sorted({*known, *changes})]
    return (*top, *inside)


def _function(port: FunctionSpec, number: str, last: FunctionSpec | None, fields: dict[str, Any]) -> FunctionSpec:
    if last is not None:
        return changed(last, {**fields, "present": True})
    assert port.bus is not None
    address = f"{port.address.domain:04x}:{port.bus[0]:02x}:00.{number}"
    return new_function({"address": address, "under": str(port.address), "kind": "endpoint", **fields})
