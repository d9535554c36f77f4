"""From a parsed kernel log to a machine and what happens to it.

Inputs are what hardware and drivers did, up to the kernel's first action; what the kernel concluded is laid beside the
outcome (`_verdicts`), never injected.
"""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec

from shared.pcie import Address
from shared.pcie.errors import Severity
from shared.pcie.registers import DpcReason
from shared.protocol.requests import Inject, Injection

from ._kernel_log import KernelLog, LogError
from ._log_events import Containment, ContainmentHeader, Decided, Decision, FirmwareEvent, Found, LinkStatus, Report
from ._replay_drivers import DEFAULT_USUAL, USUAL, seat_drivers
from ._replay_facts import Planned, Source, is_hardware, kernel_acts
from ._replay_topology import Node, Tree, rebuild

GAP_MAX_S: Final = 5.0  # a longer gap between two injections ...
GAP_SHORT_S: Final = 1.0  # ... is made this long
UNTIMED_GAP_S: Final = 0.1  # between injections whose lines have no usable timestamps
TRAINING_S: Final = 0.1
_SERIAL_BASE: Final = 0x0011_2233_4400_0000
_ASSUMED_PORT: Final = (0x1B36, 0x000C)  # QEMU's root port
_ASSUMED_SWITCH: Final = (0x1000, 0xC030)
_SURPRISE_DOWN: Final = "SDES"
_DPC_REASONS: Final = {
    DpcReason.UNCORRECTABLE: "uncorrectable",
    DpcReason.ERR_NONFATAL: "err_nonfatal",
    DpcReason.ERR_FATAL: "err_fatal",
    DpcReason.RP_PIO: "rp_pio",
    DpcReason.SOFTWARE: "software",
}
_DPC_WORDS: Final = {
    DpcReason.UNCORRECTABLE: "an unmasked uncorrectable error of its own",
    DpcReason.ERR_NONFATAL: "ERR_NONFATAL received",
    DpcReason.ERR_FATAL: "ERR_FATAL received",
    DpcReason.RP_PIO: "an RP PIO error",
    DpcReason.SOFTWARE: "a software trigger",
}


class Step(msgspec.Struct, frozen=True):
    """One injection, `after_s` seconds after the one before."""

    after_s: float
    inject: Inject
    what: str
    line: int


class Plan(msgspec.Struct, frozen=True):
    """A replay: the machine as a topology file, what is done to it, and where each fact comes from."""

    log: str
    topology: str
    steps: tuple[Step, ...]
    facts: tuple[Planned, ...]
    functions: tuple[Address, ...]  # the endpoints, which are judged
    registered: tuple[Address, ...]  # everything below a port: hotplug registers it
    above: dict[Address, tuple[Address, ...]]  # the ports above each of them, nearest first
    broken: tuple[str, ...] = ()


def plan(log: KernelLog) -> Plan:
    """Plan the replay of a log. Raises LogError where nothing in it can be injected."""
    until = kernel_acts(log)
    strikes = [e for e in log.events if is_hardware(e) and (until is None or e.line < until)]
    hits = [e for e in strikes if isinstance(e, Containment | Report)]
    if not hits:
        raise LogError(
            f"{log.name}: unsupported: no containment (DPC) and no error report (AER) before the kernel acted on it; "
            "what it holds are the kernel's own conclusions, and those are not injected"
        )
    targets = tuple(dict.fromkeys(e.port if isinstance(e, Containment) else e.function for e in hits))
    tree = rebuild(log, targets)
    seat_drivers(log, tree, until)
    for node in tree.walk():
        _furnish(log, tree, node)
    steps, facts = _steps(log, tree, hits)
    facts += tree.facts + _remarks(log, until)
    return Plan(
        log=log.name,
        topology=_toml(tree),
        steps=tuple(steps),
        facts=tuple(sorted(facts, key=lambda fact: (list(Source).index(fact.source), fact.line or 0))),
        functions=tuple(node.address for node in tree.endpoints()),
        registered=tuple(node.address for node in tree.walk() if node.under is not None),
        above={node.address: tree.ports_above(node.address) for node in tree.endpoints()},
        broken=tuple(f"line {broken.line} is skipped: {broken.why}" for broken in log.broken),
    )


# --- What each function is ---


def _furnish(log: KernelLog, tree: Tree, node: Node) -> None:
    _name_device(log, tree, node)
    if not node.takes_card:
        return
    if any(isinstance(e, Containment) and e.port == node.address for e in log.events):
        node.settings["dpc"] = True
    slot = next((e for e in log.events if isinstance(e, Decision) and e.slot and e.function == node.address), None)
    if slot is not None:
        digits = "".join(filter(str.isdigit, (slot.slot or "").partition("-")[0])) or "0"
        node.settings["slot"] = {"number": int(digits), "hotplug": True, "surprise": True}
        tree.facts.append(Planned(f"{node.address} is Slot({slot.slot}), served by pciehp", Source.LOG, slot.line))
        said = f"Slot({slot.slot}): surprise removal, no power controller, no out-of-band presence"
        tree.facts.append(Planned(said, Source.ASSUMED))
    status = next((e for e in log.events if isinstance(e, LinkStatus) and e.port == node.address), None)
    link: dict[str, Any] = {"training_s": TRAINING_S}
    if status is not None:
        link |= {"speed": status.value & 0xF, "width": status.value >> 4 & 0x3F}
        said = f"the link below {node.address} runs at generation {link['speed']}, x{link['width']}"
        tree.facts.append(Planned(said, Source.LOG, status.line))
    node.settings["link"] = link


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


# --- What happens to it ---


def _steps(log: KernelLog, tree: Tree, hits: list[Containment | Report]) -> tuple[list[Step], list[Planned]]:
    steps: list[Step] = []
    facts: list[Planned] = []
    explained: set[int] = set()  # reports that tell why a containment happened
    last: float | None = None
    for hit in hits:
        if hit.line in explained:
            continue
        report = _cause(hit, hits) if isinstance(hit, Containment) else hit
        if report is not None:
            explained.add(report.line)
        inject, what = _injection(log, tree, hit, report, facts)
        after, remark = _gap(last, hit.at, hit.line) if steps else (0.0, None)
        if remark is not None:
            facts.append(remark)
        last = hit.at
        steps.append(Step(after, inject, what, hit.line))
    return steps, facts


def _cause(hit: Containment, hits: list[Containment | Report]) -> Report | None:
    """Return the report of the error that triggered a containment: the port's own, or that of the message's sender."""
    if hit.reason in {DpcReason.RP_PIO, DpcReason.SOFTWARE}:
        return None
    where = hit.port.with_requester_id(hit.source) if hit.source else hit.port
    return next((r for r in hits if isinstance(r, Report) and r.function == where and r.line > hit.line), None)


def _injection(
    log: KernelLog, tree: Tree, hit: Containment | Report, report: Report | None, facts: list[Planned]
) -> tuple[Inject, str]:
    if isinstance(hit, Containment):
        reason = "a reserved reason" if hit.reason is None else _DPC_WORDS[hit.reason]
        facts.append(Planned(f"{hit.port} contained by DPC: {reason}", Source.LOG, hit.line))
    if report is not None:
        _tell_report(report, facts)
        if _SURPRISE_DOWN in report.names and (port := tree.port_above(report.function)) is not None:
            return _link_lost(log, port, report, facts)
        return Inject(
            what=Injection.ERROR,
            target=report.function,
            names=report.names,
            header=report.header,
            severity=None if report.severity is Severity.CORRECTABLE else str(report.severity),
        ), f"{report.severity} error {', '.join(report.names)} at {report.function}"
    assert isinstance(hit, Containment)
    header = next((e.header for e in log.events if isinstance(e, ContainmentHeader) and e.port == hit.port), ())
    return Inject(
        what=Injection.DPC,
        target=hit.port,
        reason=_DPC_REASONS[hit.reason or DpcReason.UNCORRECTABLE],
        source=hit.port.with_requester_id(hit.source) if hit.source else None,
        header=header[:4],
    ), f"containment of {hit.port}"


def _tell_report(report: Report, facts: list[Planned]) -> None:
    names = ", ".join(report.names)
    header = "" if not report.header else f", TLP header {' '.join(f'{word:08x}' for word in report.header)}"
    said = f"{report.severity} error {names} at {report.function} (status {report.status:08x}, mask {report.mask:08x}{header})"
    facts.append(Planned(said, Source.LOG, report.line))
    told = {printed.partition("] ")[0].removeprefix("[").strip() for printed in report.printed}
    bits = {str(bit) for bit in range(32) if report.status & ~report.mask & 1 << bit}
    if told and not told <= bits:
        said = f"the error is {names}: the status register says so, although the text says {', '.join(report.printed)}"
        facts.append(Planned(said, Source.INFERRED, report.line))


def _link_lost(log: KernelLog, port: Address, report: Report, facts: list[Planned]) -> tuple[Inject, str]:
    """Surprise Down *is* the loss of the link: inject the loss, and the hardware reports the error by itself."""
    missed = next((e for e in log.events if isinstance(e, Decision) and e.what is Decided.NO_LINK), None)
    said = f"the link below {port} goes down and stays down (Surprise Down is reported by itself)"
    facts.append(Planned(said, Source.INFERRED, report.line if missed is None else missed.line))
    return Inject(what=Injection.LINK_DOWN, target=port), f"the link below {port} goes down"


def _gap(last: float | None, at: float | None, line: int) -> tuple[float, Planned | None]:
    if last is None or at is None or at < last:
        said = f"{UNTIMED_GAP_S:g} s before line {line}: its timestamp does not tell"
        return UNTIMED_GAP_S, Planned(said, Source.ASSUMED, line)
    gap = at - last
    if gap <= GAP_MAX_S:
        return gap, None
    said = f"the gap of {gap:.1f} s before line {line} is compressed to {GAP_SHORT_S:g} s"
    return GAP_SHORT_S, Planned(said, Source.ASSUMED, line)


def _remarks(log: KernelLog, until: int | None) -> list[Planned]:
    """Say what holds for the whole replay."""
    told = [Planned(f"a link trains within {TRAINING_S:g} s once it is released", Source.ASSUMED)]
    told.append(Planned("every card has a serial number, and is the same one all the time", Source.ASSUMED))
    firmware = next((e for e in log.events if isinstance(e, FirmwareEvent)), None)
    if firmware is not None:
        said = "the host is firmware first (EDR); here the port raises its DPC interrupt itself"
        told.append(Planned(said, Source.ASSUMED, firmware.line))
    if log.backward:
        said = f"timestamps run backward {log.backward} times; the order of lines counts"
        told.append(Planned(said, Source.INFERRED))
    if until is not None:
        said = "from here on the kernel acts on the hardware: nothing more is injected"
        told.append(Planned(said, Source.INFERRED, until))
    return told


# --- The topology file ---


def _toml(tree: Tree) -> str:
    lines: list[str] = []
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
