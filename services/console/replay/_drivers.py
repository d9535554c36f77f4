"""Which driver sits on which function, how long its callbacks took and what they voted, as a log tells it."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from services.console.kernel_log import UNBOUND, Callback, Decided, Decision, Instance, KernelLog, LogEvent, NoCallback
from shared.pcie import Address
from shared.protocol.requests import DriverStep, Vote

from ._facts import Planned, Source
from ._topology import Tree

# vendor, device and class of a usual device, by driver, where the log does not print them.
USUAL: Final[dict[str, tuple[int, int, int]]] = {
    "mlx5_core": (0x15B3, 0x1017, 0x020000),
    "nvme": (0x144D, 0xA824, 0x010802),
    "nvidia": (0x10DE, 0x1B06, 0x030000),
    "mpt3sas": (0x1000, 0x00AC, 0x010700),
}
DEFAULT_USUAL: Final = (0x8086, 0x1533, 0x020000)


class _Heard(msgspec.Struct, frozen=True):
    """A callback of one function: entered, and left if the log says so."""

    entered: Callback
    left: Callback | None


def seat_drivers(log: KernelLog, tree: Tree, until: int | None) -> None:
    """Give every endpoint of the tree its driver. `until` is the line of the kernel's first action."""
    seats = _instances(log, tree)
    for name in sorted(set(_callback_instances(log)) - set(seats)):
        tree.facts.append(Planned(f"{name} is left out: the log names no address for it", Source.INFERRED))
    for node in tree.endpoints():
        driver = _driver_of(log, node.address, seats)
        if driver is None:
            tree.facts.append(Planned(f"{node.address} has no driver", Source.INFERRED))
            continue
        node.settings["driver"] = _behaviour(log, tree, node.address, driver, seats, until)


def _callback_instances(log: KernelLog) -> dict[str, str]:
    """Return the drivers' instance names that speak in callbacks, with their drivers, in order of appearance."""
    return {e.instance: e.driver for e in log.events if isinstance(e, Callback) and e.instance is not None}


def _instances(log: KernelLog, tree: Tree) -> dict[str, Address]:
    """Return which function each instance name means: as said, else in order, as drivers number their devices."""
    speaking = _callback_instances(log)
    said = {e.name: e for e in log.events if isinstance(e, Instance) and e.name in speaking}
    seats = tree.seats | {name: event.function for name, event in said.items()}
    for name, driver in speaking.items():
        if name in seats:
            continue
        free = [
            node.address
            for node in tree.endpoints()
            if node.address not in seats.values() and _own_driver(log, node.address) in {None, driver}
        ]
        if free:
            seats[name] = free[0]
            tree.facts.append(Planned(f"{name} is {free[0]}", Source.INFERRED, _first_line(log, name)))
    return seats


def _first_line(log: KernelLog, instance: str) -> int:
    return next(e.line for e in log.events if isinstance(e, Callback) and e.instance == instance)


def _own_driver(log: KernelLog, function: Address) -> str | None:
    return next((mention.driver for mention in log.drivers(function) if mention.driver not in UNBOUND), None)


def _driver_of(log: KernelLog, function: Address, seats: dict[str, Address]) -> str | None:
    named = _own_driver(log, function)
    if named is not None:
        return named
    speaking = _callback_instances(log)
    return next((speaking[name] for name, address in seats.items() if address == function), None)


def _behaviour(
    log: KernelLog, tree: Tree, function: Address, driver: str, seats: dict[str, Address], until: int | None
) -> dict[str, Any]:
    """Return the `driver` table of a topology file, and note where each part of it comes from."""
    table: dict[str, Any] = {"name": driver}
    missing = next((e for e in log.events if isinstance(e, NoCallback) and e.function == function and e.driver), None)
    if missing is not None:
        table["callbacks"] = False
        tree.facts.append(Planned(f"{function} {driver}: no error callbacks", Source.LOG, missing.line))
        return table
    heard = _heard(log, function, seats, DriverStep.ERROR_DETECTED, until)
    vote = Vote.NEED_RESET
    if heard is None:
        tree.facts.append(Planned(f"{function} {driver}: error_detected votes need_reset", Source.ASSUMED))
    else:
        vote = (heard.left.vote if heard.left is not None else None) or vote
        took, fact = _duration(log, function, driver, heard, vote)
        table["delay_s"] = {"error_detected": took}
        tree.facts.append(fact)
    table["error_detected"] = str(vote)
    table["slot_reset"] = str(Vote.RECOVERED)
    tree.facts.append(_slot_reset_fact(log, tree, function, driver, seats))
    return table


def _heard(
    log: KernelLog, function: Address, seats: dict[str, Address], step: DriverStep, until: int | None
) -> _Heard | None:
    mine = [
        event
        for event in log.events
        if isinstance(event, Callback) and event.step is step
        if function in {event.function, seats.get(event.instance or "")}
    ]
    # Entered before the kernel acted; left whenever the driver was done.
    entered = next((e for e in mine if e.entered and (until is None or e.line < until)), None)
    if entered is None:
        return None
    left = next((e for e in mine if not e.entered and e.line > entered.line), None)
    return _Heard(entered, left)


def _duration(log: KernelLog, function: Address, driver: str, heard: _Heard, vote: Vote) -> tuple[float, Planned]:
    """Return how long error_detected took. Without a line at its end: until the next callback, as they are serial."""
    entered, source = heard.entered, Source.LOG
    end: LogEvent | None = heard.left
    if end is None:
        source = Source.INFERRED
        end = next((e for e in log.events if e.line > entered.line and _ends_step(e)), None)
    if end is None or entered.at is None or end.at is None or end.at < entered.at:
        return 0.0, Planned(
            f"{function} {driver}: error_detected takes no time and votes {vote}", Source.ASSUMED, entered.line
        )
    took = round(end.at - entered.at, 3)
    bound = "" if source is Source.LOG else "at most "
    said = f"{function} {driver}: error_detected takes {bound}{took:.3f} s and votes {vote}"
    return took, Planned(said, source, end.line if source is Source.LOG else entered.line)


def _ends_step(event: LogEvent) -> bool:
    if isinstance(event, Callback):
        return True
    return isinstance(event, Decision) and event.what in {
        Decided.SLOT_RESET,
        Decided.RESET_FAILED,
        Decided.RECOVERED,
        Decided.FAILED,
    }


def _slot_reset_fact(log: KernelLog, tree: Tree, function: Address, driver: str, seats: dict[str, Address]) -> Planned:
    said = f"{function} {driver}: slot_reset votes recovered"
    asked = _heard(log, function, seats, DriverStep.SLOT_RESET, None)
    port = tree.port_above(function)
    done = next(
        (e for e in log.events if isinstance(e, Decision) and e.what is Decided.RECOVERED and e.function == port), None
    )
    if asked is not None and done is not None:
        return Planned(said, Source.INFERRED, done.line)
    return Planned(said, Source.ASSUMED)
