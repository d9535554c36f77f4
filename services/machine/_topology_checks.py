"""Whether the bench of a topology file could stand on a table. Each refusal names the function at fault."""

from __future__ import annotations

from typing import Final

from shared.pcie import Address

from ._specs import FunctionSpec, Kind, MachineError

PARENTS: Final[dict[Kind, frozenset[Kind]]] = {
    "upstream_port": frozenset({"root_port", "downstream_port"}),
    "downstream_port": frozenset({"upstream_port"}),
    "endpoint": frozenset({"root_port", "downstream_port"}),
}
_LAST_BUS: Final = 0xFF
_BAR_SMALLEST: Final = 0x80  # §7.5.1.2.1: a PCI Express memory BAR asks for 128 bytes at least
_BAR_LARGEST: Final = 0x0800_0000  # more would not fit below 4 GiB together with the rest
_BARS_MAX: Final = 6
_SERIAL_BYTES: Final = 8


def check_function(spec: FunctionSpec) -> None:
    """Check what can be judged without looking at others. Raises MachineError."""
    here = f"function {spec.address}"
    if spec.is_bridge and (spec.bus is None or not spec.address.bus < spec.bus[0] <= spec.bus[1] <= _LAST_BUS):
        raise MachineError(
            f"{here}: a {spec.kind} needs bus = [secondary, subordinate], above its own and at most 0xff"
        )
    if not spec.is_bridge and spec.bus is not None:
        raise MachineError(f"{here}: bus belongs to bridges, this is an {spec.kind}")
    for name, given in (("slot", spec.slot is not None), ("dpc", spec.dpc)):
        if given and not spec.is_port:
            raise MachineError(f"{here}: {name} belongs to root ports and downstream ports, this is an {spec.kind}")
    if not spec.present and not spec.is_seated:
        raise MachineError(f"{here}: only what is seated in a port can be absent, not a {spec.kind}")
    _check_bars(here, spec)
    if isinstance(spec.serial, str):
        _check_serial(here, spec.serial)


def _check_serial(here: str, serial: str) -> None:
    try:
        size = len(bytes.fromhex(serial.replace("-", "")))
    except ValueError:
        size = 0
    if size != _SERIAL_BYTES:
        raise MachineError(f"{here}: serial {serial!r} is not eight bytes in hex, for example 00-11-22-33-44-55-66-77")


def _check_bars(here: str, spec: FunctionSpec) -> None:
    if spec.bars and spec.is_bridge:
        raise MachineError(f"{here}: bars belong to endpoints, this is a {spec.kind}")
    if len(spec.bars) > _BARS_MAX:
        raise MachineError(f"{here}: {len(spec.bars)} bars, a function has {_BARS_MAX}")
    for size in spec.bars:
        if not _BAR_SMALLEST <= size <= _BAR_LARGEST or size & (size - 1):
            raise MachineError(
                f"{here}: bar size {size:#x} is no power of two from {_BAR_SMALLEST:#x} to {_BAR_LARGEST:#x}"
            )


def check_place(spec: FunctionSpec, known: dict[Address, FunctionSpec]) -> None:
    assert spec.under is not None
    parent = known.get(spec.under)
    if parent is None:
        raise MachineError(f"function {spec.address}: there is no function {spec.under}, which it is under")
    if parent.kind not in PARENTS[spec.kind]:
        raise MachineError(f"function {spec.address}: a {spec.kind} cannot be under {parent.address}, an {parent.kind}")
    assert parent.bus is not None
    if spec.address.bus != parent.bus[0] or spec.address.domain != parent.address.domain:
        raise MachineError(
            f"function {spec.address}: is under {parent.address}, whose secondary bus is {parent.bus[0]:#04x}"
        )
    if spec.bus is not None and spec.bus[1] > parent.bus[1]:
        raise MachineError(
            f"function {spec.address}: bus {spec.bus[1]:#04x} is above {parent.bus[1]:#04x}, the last of {parent.address}"
        )


def check_buses(functions: tuple[FunctionSpec, ...]) -> None:
    """Two bridges side by side must not claim the same bus."""
    claimed: dict[tuple[int, Address | None, int], Address] = {}
    for spec in functions:
        for bus in range(spec.bus[0], spec.bus[1] + 1) if spec.bus else ():
            other = claimed.setdefault((spec.address.domain, spec.under, bus), spec.address)
            if other != spec.address:
                raise MachineError(f"function {spec.address}: bus {bus:#04x} belongs to {other} already")
