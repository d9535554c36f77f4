"""The promises P1, P2 and P6 over the facts of a run: one checker each, outside the code that must keep them. Pure.

Every scenario is checked against them, and so is every integration test. Each returns what was broken, or nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from shared.pcie import Address, Function, Topology
from shared.pcie import registers as reg
from shared.protocol import to_builtins
from shared.protocol.fabric import Verb
from shared.protocol.facts import Fact, What
from shared.protocol.requests import Cause

_WRITES: Final = {Verb.WRITE.value, Verb.MODIFY.value}
_ENDED: Final = frozenset({What.LEASE_CLOSED, What.LEASE_ABSORBED})


def resets(function: Function, operation: dict[str, Any]) -> bool:
    """Tell whether a write, as the fact reports it, sets a reset bit (P1). Spelled out here once more, on purpose."""
    offset: int = operation["offset"]
    value: int | None = operation["value"]
    caps = function.capabilities
    if value is None:
        return False
    flags = int(value)
    if function.kind.is_bridge and offset == reg.BRIDGE_CONTROL.offset:
        return flags & int(reg.BridgeControl.SECONDARY_BUS_RESET) != 0
    if not function.is_port:
        return False
    if offset == caps.express + reg.LINK_CONTROL.offset:
        return bool(flags & reg.LinkControl.LINK_DISABLE)
    if caps.dpc and offset == caps.dpc + reg.DPC_CONTROL.offset:
        return bool(flags & reg.DpcControl.SOFTWARE_TRIGGER)
    if caps.dpc and offset == caps.dpc + reg.DPC_STATUS.offset:
        return bool(flags & reg.DpcStatus.TRIGGER)
    return False


def written(fact: Fact) -> tuple[dict[str, Any], ...]:
    """Return the writes that a fact tells of, as plain tables."""
    operations = to_builtins(fact.data["operations"])
    return tuple(operation for operation in operations if operation["verb"] in _WRITES)


def reset_bits(facts: Iterable[Fact], topology: Topology) -> tuple[tuple[Fact, Address], ...]:
    """Return every write of a reset bit: the fact that tells of it, and where."""
    found = []
    for fact in facts:
        if fact.what is not What.LEASE_EXECUTED:
            continue
        for operation in written(fact):
            function = topology.find(Address.parse(operation["function"]))
            if function is not None and resets(function, operation):
                found.append((fact, function.address))
    return tuple(found)


def p1_mask_before_reset(facts: Sequence[Fact], topology: Topology) -> list[str]:
    """Check over every write that the fabric executed: a live lease covers it, and its slots are masked."""
    wrong = []
    live: dict[str, Address] = {}
    masked: dict[str, set[str]] = {}
    for fact in facts:
        lease = fact.lease or ""
        if fact.what is What.LEASE_OPENED:
            live[lease] = fact.port
        elif fact.what in _ENDED:
            live.pop(lease, None)
        elif fact.what is What.LEASE_MASKED:
            slots = to_builtins(fact.data["slots"])
            masked.setdefault(lease, set()).update(slot["port"] for slot in slots if slot["reached"])
        for _, function in reset_bits((fact,), topology):
            if lease not in live:
                wrong.append(f"P1: {function} was reset without a live lease: {fact.lease} {fact.data}")
            elif function not in {one.address for one in topology.domain(live[lease])}:
                wrong.append(f"P1: {function} is outside of {lease}")
            elif topology.get(function).hotplug_capable:
                reached = masked.get(lease, set()) | set(to_builtins(fact.data.get("masked") or ()))
                if str(function) not in reached:
                    wrong.append(f"P1: {function} was not masked when it was reset under {lease}")
    return wrong


def p2_closed_in_order(facts: Iterable[Fact], topology: Topology) -> list[str]:
    """Check over every close that it came after `resume`, and restored exactly what open had saved (DESIGN 4).

    Over a latch that is left, or after it was cleared and seen to stay clear: never over one that came in between.
    In the order in which they were stated: each service stores its own, and late if its server has died. What a
    quarantine holds down is restored by the lease that lifts it.
    """
    wrong = []
    saved: dict[str, dict[str, int]] = {}
    unmasked: dict[str, dict[str, dict[str, Any]]] = {}
    handed_over: dict[str, set[str]] = {}
    for fact in sorted(facts, key=lambda fact: fact.at):
        lease, data = fact.lease or "", to_builtins(fact.data)
        if fact.what is What.LEASE_MASKED:
            slots = {slot["port"]: slot["saved_enables"] for slot in data["slots"]}
            saved[lease] = slots | saved.get(lease, {})
        elif fact.what is What.QUARANTINE_ENTERED:
            held = {str(one.address) for one in topology.domain(fact.port)} if topology.find(fact.port) else set()
            handed_over.setdefault(lease, set()).update({str(fact.port), *held})
        elif fact.what is What.LEASE_UNMASKED:
            unmasked.setdefault(lease, {})[str(fact.port)] = data
            if data["verdict"] == "restore" and data["latched"]:
                wrong.append(f"P2: an enable was restored over a latch at {fact.port}: {data}")
        elif fact.what is What.LEASE_CLOSED and lease in saved:
            gone = handed_over.get(lease, set())
            wrong += _not_as_found(lease, saved[lease], unmasked.get(lease, {}), gone)
        elif fact.what is What.RECOVERY_STEP and data["step"] == "resume" and lease in unmasked:
            wrong.append(f"P2: {lease} was unmasked before its drivers resumed")
    return wrong


def _not_as_found(
    lease: str, saved: dict[str, int], closed: dict[str, dict[str, Any]], handed_over: set[str]
) -> list[str]:
    due, done = saved.keys() - handed_over, closed.keys() - handed_over
    wrong = [] if due == done else [f"P2: {lease} unmasked {sorted(done)}, and had masked {sorted(due)}"]
    return wrong + [
        f"P2: {port} got enables {closed[port]['enables']:#06x}, found were {saved[port]:#06x}"
        for port in sorted(due & done)
        if closed[port]["enables"] not in {saved[port], None}
    ]


def p6_one_owner(facts: Iterable[Fact], topology: Topology) -> list[str]:
    """Check that no two recoveries covered one another at the same time: the one above absorbs, or waits."""
    wrong = []
    story = tuple(facts)
    absorbed = {(fact.lease, fact.data["heir"]) for fact in story if fact.what is What.LEASE_ABSORBED}
    live: dict[str, Address] = {}
    for fact in story:
        lease = fact.lease or ""
        if fact.what is What.LEASE_OPENED and fact.data["rank"] == "recovery":
            for name, port in live.items():
                if name != lease and _overlap(port, fact.port, topology) and (name, lease) not in absorbed:
                    wrong.append(f"P6: {lease} on {fact.port} beside {name} on {port}")
            live[lease] = fact.port
        elif fact.what in _ENDED:
            live.pop(lease, None)
    return wrong


def _overlap(one: Address, other: Address, topology: Topology) -> bool:
    """Tell whether the domains of two ports share a function."""
    if topology.find(one) is None or topology.find(other) is None:
        return one == other
    domains = ({function.address for function in topology.domain(port)} for port in (one, other))
    return not set.isdisjoint(*domains)


def firmware_is_left_alone(facts: Iterable[Fact], topology: Topology) -> list[str]:
    """Check, on a firmware-first host, that AER and DPC registers were written under leases for EDR events alone."""
    if not topology.firmware_first:
        return []
    wrong = []
    handed_over: set[str] = set()
    for fact in facts:
        if fact.what is What.LEASE_OPENED and fact.cause == Cause.EDR:
            handed_over.add(fact.lease or "")
        writes: tuple[dict[str, Any], ...] = ()
        if fact.what is What.LEASE_EXECUTED and fact.lease not in handed_over:
            writes = written(fact)
        elif fact.what is What.LEASE_ACKNOWLEDGED:
            writes = (to_builtins(fact.data),)
        wrong += [
            f"{operation['function']} {operation['offset']:#x} is the firmware's, and was written: {fact.what}"
            for operation in writes
            if _of_the_firmware(operation, topology)
        ]
    return wrong


def _of_the_firmware(operation: dict[str, Any], topology: Topology) -> bool:
    function = topology.find(Address.parse(operation["function"]))
    if function is None:
        return False
    blocks = ((function.capabilities.aer, reg.AER_SIZE), (function.capabilities.dpc, reg.DPC_SIZE))
    return any(base and base <= operation["offset"] < base + size for base, size in blocks)
