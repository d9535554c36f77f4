"""The card that goes into a slot: the last one, with changes."""

from __future__ import annotations

from typing import Any, Final

from shared.pcie import Address

from ._port import Card, Port
from ._specs import FunctionSpec, MachineError
from ._topology_file import changed, new_function

_LAST: Final = 0xFF  # §6.13: with ARI; without it only numbers up to 7 can be reached


def next_card(port: Port, changes: dict[str, dict[str, Any]]) -> Card:
    """Return the card that INSERT or SWAP puts in: function number -> changed fields. Raises MachineError.

    A function number that the last card did not have is described in full, but for its address and kind. Numbers go on
    from 8 where the card has ARI.
    """
    spec = port.function.spec
    assert spec.bus is not None
    known = {str(_number(below)): below for below in port.card if below.under == spec.address}
    if not known and not changes:
        raise MachineError(f"{spec.address} never had a card: describe one in `card`")
    inside = tuple(below for below in port.card if below.under != spec.address)
    top = [_function(spec, number, known.get(number), changes.get(number, {})) for number in sorted({*known, *changes})]
    return (*top, *inside)


def _function(port: FunctionSpec, number: str, last: FunctionSpec | None, fields: dict[str, Any]) -> FunctionSpec:
    if last is not None:
        return changed(last, {**fields, "present": True})
    assert port.bus is not None
    if not number.isdecimal() or int(number) > _LAST:
        raise MachineError(f"{number!r} is no function number of a card: 0 to {_LAST}")
    address = str(Address(port.address.domain, port.bus[0], 0, 0).with_requester_id(port.bus[0] << 8 | int(number)))
    return new_function({"address": address, "under": str(port.address), "kind": "endpoint", **fields})


def _number(function: FunctionSpec) -> int:
    """Return the function's number on its card: with ARI, the device number's bits count too (§6.13)."""
    return function.address.requester_id & 0xFF
