"""Whether the bench of a topology file could stand on a table. Each refusal names the function at fault."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, get_args

from shared.pcie import Address

from ._error_names import status_bits
from ._specs import FunctionSpec, Kind, MachineError, SriovSpec

PARENTS: Final[dict[Kind, frozenset[Kind]]] = {
    "upstream_port": frozenset({"root_port", "downstream_port"}),
    "downstream_port": frozenset({"upstream_port"}),
    "endpoint": frozenset({"root_port", "downstream_port"}),
    "pci_bridge": frozenset({"root_port", "downstream_port"}),
    "conventional": frozenset({"pci_bridge"}),
}
_PORTS: Final[frozenset[Kind]] = frozenset({"root_port", "downstream_port"})
_EXPRESS: Final[frozenset[Kind]] = frozenset(get_args(Kind)) - {"conventional"}
# What only some kinds can have: the field, whether it is given, who may have it, and how they are called.
_BELONGS: Final[tuple[tuple[str, Callable[[FunctionSpec], bool], frozenset[Kind], str], ...]] = (
    ("slot", lambda spec: spec.slot is not None, _PORTS, "root ports and downstream ports"),
    ("dpc", lambda spec: spec.dpc, _PORTS, "root ports and downstream ports"),
    ("link_active_reporting", lambda spec: not spec.link_active_reporting, _PORTS, "root ports and downstream ports"),
    ("rrs_visibility", lambda spec: not spec.rrs_visibility, frozenset({"root_port"}), "root ports"),
    ("collects", lambda spec: bool(spec.collects), frozenset({"event_collector"}), "event collectors"),
    ("ari", lambda spec: spec.ari, frozenset({"endpoint"}), "endpoints"),
    ("sriov", lambda spec: spec.sriov is not None, frozenset({"endpoint"}), "endpoints"),
    ("acs", lambda spec: spec.acs, _EXPRESS, "functions that speak PCI Express"),
    ("ltr", lambda spec: spec.ltr, _EXPRESS, "functions that speak PCI Express"),
    ("flr", lambda spec: spec.flr, _EXPRESS, "functions that speak PCI Express"),
    ("serial", lambda spec: spec.serial is not None, _EXPRESS, "functions that speak PCI Express"),
)
_LAST_BUS: Final = 0xFF
_NUMBER: Final = 0xFF  # of a requester id: the function's number on its device, with ARI
_LAST_FUNCTION, _LAST_FUNCTION_ARI = 7, 0xFF  # §6.13
_BAR_SMALLEST: Final = 0x80  # §7.5.1.2.1: a PCI Express memory BAR asks for 128 bytes at least
_BAR_LARGEST: Final = 0x0800_0000  # more would not fit below 4 GiB together with the rest
_BARS_MAX: Final = 6
_MSI_X_MAX: Final = 2048  # §7.7.2.2
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
    for name, is_given, kinds, owners in _BELONGS:
        if is_given(spec) and spec.kind not in kinds:
            raise MachineError(f"{here}: {name} belongs to {owners}, this is an {spec.kind}")
    if not spec.link_active_reporting and spec.slot is not None and spec.slot.hotplug:
        raise MachineError(f"{here}: a hotplug slot needs link_active_reporting (§7.5.3.6)")
    if not spec.present and not spec.is_seated:
        raise MachineError(f"{here}: only what is seated in a port can be absent, not a {spec.kind}")
    if spec.sriov is not None:
        _check_virtual(here, spec, spec.sriov)
    _check_bars(here, spec)
    _check_errors(here, spec)
    if isinstance(spec.serial, str):
        _check_serial(here, spec.serial)


def _check_virtual(here: str, spec: FunctionSpec, sriov: SriovSpec) -> None:
    if not 0 <= sriov.enabled <= sriov.total or sriov.total < 1 or sriov.offset < 1 or sriov.stride < 1:
        raise MachineError(f"{here}: sriov needs total, offset and stride from 1 on, and enabled at most total")
    last = (spec.address.requester_id & _NUMBER) + sriov.offset + sriov.stride * (sriov.total - 1)
    if last > (_LAST_FUNCTION_ARI if spec.ari else _LAST_FUNCTION):
        hint = "the bus ends at 255" if spec.ari else "without ari there are 7"
        raise MachineError(f"{here}: the last of its virtual functions would be number {last}; {hint}")


def _check_errors(here: str, spec: FunctionSpec) -> None:
    if spec.quirks and not spec.dpc:
        raise MachineError(f"{here}: {', '.join(spec.quirks)} is a quirk of ports with dpc")
    if spec.stale and not spec.aer:
        raise MachineError(f"{here}: stale names AER errors, and the function has no aer")
    try:
        status_bits(spec.stale)
    except MachineError as error:
        raise MachineError(f"{here}: stale: {error}") from error


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
    if spec.msi_x and not (spec.bars and 0 < spec.msi_x <= _MSI_X_MAX):
        raise MachineError(f"{here}: msi_x is a number of vectors up to {_MSI_X_MAX}, and needs a bar")
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
    if parent.is_port and spec.address.device and not spec.ari:
        raise MachineError(
            f"function {spec.address}: a link has one device, number 0; a function number above 7 needs ari"
        )
    if spec.bus is not None and spec.bus[1] > parent.bus[1]:
        raise MachineError(
            f"function {spec.address}: bus {spec.bus[1]:#04x} is above {parent.bus[1]:#04x}, the last of {parent.address}"
        )


def check_collectors(functions: tuple[FunctionSpec, ...]) -> None:
    """Event collectors stand beside those that report to them, and each of these reports to one (§7.9.10.2)."""
    known = {spec.address: spec for spec in functions}
    collected: dict[Address, Address] = {}
    for collector in functions:
        for address in collector.collects:
            here = f"function {collector.address}: collects {address}"
            spec = known.get(address)
            if spec is None or spec.kind != "integrated_endpoint":
                raise MachineError(f"{here}, which is no integrated_endpoint of this file")
            if (address.domain, address.bus) != (collector.address.domain, collector.address.bus):
                raise MachineError(f"{here}, which is on another bus")
            other = collected.setdefault(address, collector.address)
            if other != collector.address:
                raise MachineError(f"{here}, which reports to {other} already")


def check_virtual_places(functions: tuple[FunctionSpec, ...]) -> None:
    """Nothing else may stand where a virtual function will be when it is enabled."""
    taken = {spec.address: spec.address for spec in functions}
    for spec in functions:
        for virtual in spec.sriov.addresses(spec.address) if spec.sriov is not None else ():
            other = taken.setdefault(virtual, spec.address)
            if other != spec.address:
                raise MachineError(
                    f"function {spec.address}: its virtual function {virtual} is in the place of {other}"
                )


def check_buses(functions: tuple[FunctionSpec, ...]) -> None:
    """Two bridges side by side must not claim the same bus."""
    claimed: dict[tuple[int, Address | None, int], Address] = {}
    for spec in functions:
        for bus in range(spec.bus[0], spec.bus[1] + 1) if spec.bus else ():
            other = claimed.setdefault((spec.address.domain, spec.under, bus), spec.address)
            if other != spec.address:
                raise MachineError(f"function {spec.address}: bus {bus:#04x} belongs to {other} already")
