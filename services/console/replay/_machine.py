"""The machine of a replay: what each function of the rebuilt tree is, written as a topology file."""

from __future__ import annotations

import json
from typing import Any, Final

from services.console.kernel_log import (
    Containment,
    Decision,
    FirmwareEvent,
    Found,
    HostLink,
    KernelLog,
    LinkStatus,
    Report,
    Unreachable,
)

from ._drivers import DEFAULT_USUAL, USUAL
from ._facts import Planned, Source
from ._topology import Node, Tree

TRAINING_S: Final = 0.1
_SERIAL_BASE: Final = 0x0011_2233_4400_0000
_ASSUMED_PORT: Final = (0x1B36, 0x000C)  # QEMU's root port
_ASSUMED_SWITCH: Final = (0x1000, 0xC030)


def topology(log: KernelLog, tree: Tree) -> str:
    """Furnish every function of the tree, and return the topology file. What is known of each goes to `tree.facts`."""
    for node in tree.walk():
        _name_device(log, tree, node)
        if node.takes_card:
            _furnish_port(log, tree, node)
    firmware = next((e for e in log.events if isinstance(e, FirmwareEvent)), None)
    if firmware is not None:
        said = "the host is firmware first: containment is reported by EDR"
        tree.facts.append(Planned(said, Source.LOG, firmware.line))
    return _toml(tree, firmware_first=firmware is not None)


def _furnish_port(log: KernelLog, tree: Tree, node: Node) -> None:
    if any(isinstance(e, Containment) and e.port == node.address for e in log.events):
        node.settings["dpc"] = True
    _give_slot(log, tree, node)
    status = next((e for e in log.events if isinstance(e, LinkStatus) and e.port == node.address), None)
    host = next((e for e in log.events if isinstance(e, HostLink) and e.speed), None)
    link: dict[str, Any] = {"training_s": TRAINING_S}
    if status is not None:
        link |= {"speed": status.value & 0xF, "width": status.value >> 4 & 0x3F}
    elif host is not None and node.kind == "root_port" and len(tree.root_ports()) == 1:
        link |= {"speed": host.speed, "width": host.width}
    line = status or host
    if "speed" in link and line is not None:
        said = f"the link below {node.address} runs at generation {link['speed']}, x{link['width']}"
        tree.facts.append(Planned(said, Source.LOG, line.line))
    node.settings["link"] = link


def _give_slot(log: KernelLog, tree: Tree, node: Node) -> None:
    slot = next((e for e in log.events if isinstance(e, Decision) and e.slot and e.function == node.address), None)
    served = next(
        (e for e in log.events if isinstance(e, Unreachable) and e.hotplug and e.function == node.address), None
    )
    if slot is not None:
        digits = "".join(filter(str.isdigit, (slot.slot or "").partition("-")[0])) or "0"
        name = f"Slot({slot.slot})"
        tree.facts.append(Planned(f"{node.address} is {name}, served by pciehp", Source.LOG, slot.line))
    elif served is not None:
        digits, name = "0", f"the slot of {node.address}"
        tree.facts.append(Planned(f"{node.address} has a slot that pciehp serves", Source.INFERRED, served.line))
        tree.facts.append(Planned(f"{name} has the number 0: no line names it", Source.ASSUMED))
    else:
        tree.facts.append(Planned(f"{node.address} has no slot: no line names one", Source.ASSUMED))
        return
    node.settings["slot"] = {"number": int(digits), "hotplug": True, "surprise": True}
    said = f"{name}: surprise removal, no power controller, no out-of-band presence"
    tree.facts.append(Planned(said, Source.ASSUMED))


def _name_device(log: KernelLog, tree: Tree, node: Node) -> None:
    report = next((e for e in log.events if isinstance(e, Report) and e.function == node.address and e.vendor), None)
    found = next((e for e in log.events if isinstance(e, Found) and e.function == node.address), None)
    if found is not None:
        vendor, device = found.vendor, found.device
        node.settings["class"] = found.class_code
        tree.facts.append(Planned(f"{node.address} is [{vendor:04x}:{device:04x}]", Source.LOG, found.line))
    elif report is not None:
        vendor, device = report.vendor, report.device
        tree.facts.append(Planned(f"{node.address} is [{vendor:04x}:{device:04x}]", Source.LOG, report.line))
    elif node.is_bridge:
        vendor, device = _ASSUMED_PORT if node.kind == "root_port" else _ASSUMED_SWITCH
        tree.facts.append(Planned(f"{node.address} is [{vendor:04x}:{device:04x}]", Source.ASSUMED))
    else:
        driver = node.settings.get("driver", {}).get("name", "")
        vendor, device, node.settings["class"] = USUAL.get(driver, DEFAULT_USUAL)
        said = f"{node.address} is [{vendor:04x}:{device:04x}]" + (f", as {driver} drives" if driver else "")
        tree.facts.append(Planned(said, Source.ASSUMED))
    node.settings["vendor"], node.settings["device"] = vendor, device
    if not node.is_bridge:
        # One card, one serial number for all its functions.
        node.settings["serial"] = _SERIAL_BASE | node.address.domain << 8 | node.address.bus
        node.settings["bars"] = [0x4000]


# --- The topology file ---


def _toml(tree: Tree, *, firmware_first: bool) -> str:
    lines: list[str] = ["firmware_first = true", ""] if firmware_first else []
    for node in tree.walk():
        table: dict[str, Any] = {"address": str(node.address), "kind": node.kind}
        if node.under is not None:
            table["under"] = str(node.under)
        if node.is_bridge:
            table["bus"] = list(tree.buses(node.address))
        lines.append("[[function]]")
        lines += [f"{key} = {_value(value)}" for key, value in (table | node.settings).items()]
        lines.append("")
    return "\n".join(lines)


def _value(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return str(value)
        case str():
            return json.dumps(value)
        case list():
            return f"[{', '.join(_value(item) for item in value)}]"
        case dict():
            return "{" + ", ".join(f"{key} = {_value(item)}" for key, item in value.items()) + "}"
        case _:
            raise TypeError(f"{type(value).__name__} has no place in a topology file")
