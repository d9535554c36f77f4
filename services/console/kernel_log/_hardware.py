"""Lines that tell of links, slots and who answers: what hardware does without an error report."""

from __future__ import annotations

import re
from typing import Final

from shared.pcie import Address

from ._events import (
    BusRelease,
    HostLink,
    Hung,
    Latched,
    LinkLost,
    LinkStatus,
    LogEvent,
    Resetting,
    Retraining,
    RootPortError,
    SlowCommand,
    Unreachable,
)
from ._said import Said
from ._shape import Shape


def _root_port_error(said: Said, match: re.Match[str]) -> LogEvent:
    status, mask = (int(match[name], 16) for name in ("status", "mask"))
    return RootPortError(line=said.line, at=said.at, port=said.address, status=status, mask=mask)


def _latched(said: Said, match: re.Match[str]) -> LogEvent:
    return Latched(line=said.line, at=said.at, port=said.address, status=int(match["status"], 16))


def _link_status(said: Said, match: re.Match[str]) -> LogEvent:
    return LinkStatus(line=said.line, at=said.at, port=said.address, value=int(match["value"], 16))


def _lost(said: Said, _match: re.Match[str]) -> LogEvent:
    return LinkLost(line=said.line, at=said.at, port=said.address)


def _host_link(said: Said, match: re.Match[str]) -> LogEvent | None:
    if said.instance is None:
        return None
    found = match.groupdict()
    return HostLink(
        line=said.line,
        at=said.at,
        controller=said.instance,
        up=match["state"] == "up",
        speed=int(found.get("speed") or 0),
        width=int(found.get("width") or 0),
    )


def _unreachable(said: Said, _match: re.Match[str]) -> LogEvent:
    hotplug = said.message.startswith("pciehp: ")
    return Unreachable(line=said.line, at=said.at, function=said.function, instance=said.instance, hotplug=hotplug)


def _fallen(said: Said, match: re.Match[str]) -> LogEvent:
    return Unreachable(line=said.line, at=said.at, function=Address.parse(f"{match['card']}.0"))


def _slow(said: Said, _match: re.Match[str]) -> LogEvent:
    return SlowCommand(line=said.line, at=said.at, port=said.address)


def _retraining(said: Said, match: re.Match[str]) -> LogEvent:
    return Retraining(line=said.line, at=said.at, port=said.address, failed="failed" in match.groupdict())


def _resetting(said: Said, match: re.Match[str]) -> LogEvent:
    return Resetting(line=said.line, at=said.at, function=said.address, done="done" in match.groupdict())


def _hung(said: Said, match: re.Match[str]) -> LogEvent:
    return Hung(line=said.line, at=said.at, task=match["task"])


def _bus_release(said: Said, match: re.Match[str]) -> LogEvent | None:
    if said.driver != "pci_bus":
        return None
    first, domain = int(match["first"], 16), int((said.instance or "0").partition(":")[0], 16)
    return BusRelease(
        line=said.line, at=said.at, domain=domain, first=first, last=int(match["last"] or match["first"], 16)
    )


SHAPES: Final = (
    Shape(
        "rp_pio_status",
        r"DPC: rp_pio_status: 0x(?P<status>[0-9a-f]{8}), rp_pio_mask: 0x(?P<mask>[0-9a-f]{8})",
        _root_port_error,
    ),
    Shape("from Slot Status", r"(?:pciehp: )?pending interrupts 0x(?P<status>[0-9a-f]{4}) from Slot Status", _latched),
    Shape("lnk_status = ", r".*lnk_status = (?P<value>[0-9a-f]{4})", _link_status),
    Shape("Root Port due to", r"Recovering Root Port due to Link Down", _lost),
    Shape("link up detected", r".*link (?P<state>up) detected", _host_link, anybody=True, common=True),
    Shape("link down detected", r".*link (?P<state>down) detected", _host_link, anybody=True, common=True),
    Shape(
        "PCIe Gen.",
        r"PCIe Gen\.(?P<speed>\d) x(?P<width>\d+) link (?P<state>up)",
        _host_link,
        anybody=True,
        common=True,
    ),
    Shape("config space inacc", r".*\(config space inaccessible\)", _unreachable),
    Shape("no response from", r"(?:pciehp: )?pcie\w*: no response from device", _unreachable, common=True),
    Shape("int_status(ffffffff)", r".*int_status\(ffffffff\)!?", _unreachable, anybody=True),
    Shape(
        "fallen off the bus",
        r"Xid \(PCI:(?P<card>[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2})\): \d+, .*GPU has fallen off the bus.*",
        _fallen,
        anybody=True,
        common=True,
    ),
    Shape("on hotplug command", r"(?:pciehp: )?Timeout on hotplug command 0x[0-9a-f]{4} .*", _slow),
    Shape("broken device, retr", r"broken device, retraining .*", _retraining),
    Shape("retraining failed", r"(?P<failed>retraining failed).*", _retraining),
    Shape("resetting", r"resetting", _resetting, common=True),
    Shape("reset done", r"(?P<done>reset done)", _resetting, common=True),
    Shape(
        "blocked for more", r"task (?P<task>\S+) blocked for more than \d+ seconds\.?", _hung, anybody=True, common=True
    ),
    Shape(
        "is released",
        r"busn_res: \[bus (?P<first>[0-9a-f]{2})(?:-(?P<last>[0-9a-f]{2}))?\] is released",
        _bus_release,
        anybody=True,
        common=True,
    ),
)
