"""One checker per promise, over the facts and registers of a run: outside the code under test, and used by every test.

`async with keeps(bench, port, …)` asserts P1, P2, P3 and P6 over whatever happens inside.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from shared.pcie import Address, Function, Topology
from shared.pcie import registers as reg
from shared.protocol.fabric import Verb
from shared.protocol.facts import Fact, What
from shared.protocol.records import Device, Recovery
from tests.integration.fleet import Bench

_WRITES = {Verb.WRITE.value, Verb.MODIFY.value}


def _resets(function: Function, operation: dict[str, Any]) -> bool:
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


def p1_mask_before_reset(facts: Iterable[Fact], topology: Topology) -> int:
    """Assert P1 over every write that the fabric executed; return how many reset bits were written."""
    live: dict[str, Address] = {}
    masked: dict[str, set[str]] = {}
    resets = 0
    for fact in facts:
        lease = fact.lease or ""
        if fact.what is What.LEASE_OPENED:
            live[lease] = fact.port
        elif fact.what in {What.LEASE_CLOSED, What.LEASE_ABSORBED}:
            live.pop(lease, None)
        elif fact.what is What.LEASE_MASKED:
            masked.setdefault(lease, set()).update(slot["port"] for slot in fact.data["slots"] if slot["reached"])
        elif fact.what is What.LEASE_EXECUTED:
            for operation in fact.data["operations"]:
                function = topology.find(Address.parse(operation["function"]))
                if operation["verb"] not in _WRITES or function is None or not _resets(function, operation):
                    continue
                resets += 1
                assert lease in live, f"P1: {function.address} was reset without a live lease: {fact}"
                domain = {one.address for one in topology.domain(live[lease])}
                assert function.address in domain, f"P1: {function.address} is outside of {lease}"
                if function.hotplug_capable:
                    assert str(function.address) in masked.get(lease, set()) | set(fact.data["masked"]), (
                        f"P1: {function.address} was not masked"
                    )
    return resets


def p2_closed_in_order(facts: Iterable[Fact]) -> None:
    """Assert over every close that it came after `resume`, and restored exactly what open had saved (DESIGN 4).

    Over a latch that is left, or after it was cleared and seen to stay clear: never over one that came in between.
    In the order in which they were stated: each service stores its own, and late if its server has died.
    """
    saved: dict[str, dict[str, int]] = {}
    unmasked: dict[str, dict[str, dict[str, Any]]] = {}
    for fact in sorted(facts, key=lambda fact: fact.at):
        lease = fact.lease or ""
        if fact.what is What.LEASE_MASKED:
            slots = {slot["port"]: slot["saved_enables"] for slot in fact.data["slots"]}
            saved[lease] = slots | saved.get(lease, {})
        elif fact.what is What.LEASE_UNMASKED:
            unmasked.setdefault(lease, {})[str(fact.port)] = fact.data
            if fact.data["verdict"] == "restore":
                assert fact.data["latched"] == 0, f"P2: an enable was restored over a latch: {fact}"
        elif fact.what is What.LEASE_CLOSED and lease in saved:
            closed = unmasked.get(lease, {})
            assert closed.keys() == saved[lease].keys(), f"P2: {lease} closed {closed.keys()}, masked {saved[lease]}"
            for port, about in closed.items():
                assert about["enables"] in {saved[lease][port], None}, f"P2: {port} has not what was found: {about}"
        elif fact.what is What.RECOVERY_STEP and fact.data["step"] == "resume":
            assert lease not in unmasked, f"P2: {lease} was unmasked before its drivers resumed"


def p6_one_owner(facts: Iterable[Fact], topology: Topology) -> None:
    """Assert that no two recoveries covered one another at the same time: the one above absorbs, or waits."""
    story = tuple(facts)
    absorbed = {(fact.lease, fact.data["heir"]) for fact in story if fact.what is What.LEASE_ABSORBED}
    live: dict[str, Address] = {}
    for fact in story:
        lease = fact.lease or ""
        if fact.what is What.LEASE_OPENED and fact.data["rank"] == "recovery":
            for name, port in live.items():
                overlaps = name != lease and _overlap(port, fact.port, topology)
                assert not overlaps or (name, lease) in absorbed, f"P6: {lease} on {fact.port} beside {name} on {port}"
            live[lease] = fact.port
        elif fact.what in {What.LEASE_CLOSED, What.LEASE_ABSORBED}:
            live.pop(lease, None)


def _overlap(one: Address, other: Address, topology: Topology) -> bool:
    """Tell whether the domains of two ports share a function."""
    domains = ({function.address for function in topology.domain(port)} for port in (one, other))
    return not set.isdisjoint(*domains)


async def enables(bench: Bench, ports: Iterable[Address]) -> dict[str, int | None]:
    """Read the enables that a lease masks, by port."""
    held = {}
    for port in ports:
        control = await bench.slot_control(port)
        held[str(port)] = None if control is None else int(control & reg.SLOT_MASKED)
    return held


async def config(bench: Bench, function: Function) -> dict[str, int | None]:
    """Read what software set up in a function, and a reset must not lose."""
    registers: list[tuple[reg.Register, int]] = [(reg.COMMAND, 0), (reg.DEVICE_CONTROL, function.capabilities.express)]
    if function.kind.is_bridge:
        registers += [(reg.SECONDARY_BUS, 0), (reg.SUBORDINATE_BUS, 0), (reg.MEMORY_BASE, 0), (reg.MEMORY_LIMIT, 0)]
    else:
        registers.append((reg.BAR[0], 0))
    return {row.name: await bench.read(function.address, row, base) for row, base in registers}


@asynccontextmanager
async def promises(bench: Bench) -> AsyncIterator[None]:
    """Assert P1 and P6 over the facts of what happens inside."""
    since, topology = bench.mark(), await bench.topology()
    yield
    facts = bench.facts(since=since)
    p1_mask_before_reset(facts, topology)
    p2_closed_in_order(facts)
    p6_one_owner(facts, topology)


@asynccontextmanager
async def keeps(bench: Bench, port: str, *, but: Iterable[str] = (), resets: bool | None = None) -> AsyncIterator[None]:
    """Assert that everything below `port` is kept: P1, P2, P3 and P6. `but` names functions that are not.

    `resets`: whether a reset bit must have been written (True), or must not (False).
    """
    topology, since = await bench.topology(), bench.mark()
    behind = topology.below(Address.parse(port))
    slots = [slot.address for slot in topology.slots(Address.parse(port))]
    before, were = await bench.registry(), await enables(bench, slots)
    held = {function.address: await config(bench, function) for function in behind}
    yield
    await quiet(bench, port)
    assert await enables(bench, slots) == were, "P2: not the enables that were found"
    facts = bench.facts(since=since)
    written = p1_mask_before_reset(facts, topology)
    assert resets is None or bool(written) is resets, f"{written} reset bits were written"
    p2_closed_in_order(facts)
    p6_one_owner(facts, topology)
    after = await bench.registry()
    for function in behind:
        if str(function.address) not in but:
            p3_kept(str(function.address), before, after, facts)
            assert await config(bench, function) == held[function.address], f"config of {function.address} is lost"


def p3_kept(function: str, before: dict[str, Device], after: dict[str, Device], facts: Iterable[Fact]) -> None:
    """Assert the same generation, and no remove and no enumerate fact in between."""
    if function not in before:
        return
    assert after[function].present, f"P3: {function} is gone"
    assert after[function].generation == before[function].generation, f"P3: {function} was registered again"
    told = [
        fact
        for fact in facts
        if fact.what in {What.DEVICE_ADDED, What.DEVICE_REMOVED} and str(fact.data.get("function")) == function
    ]
    assert not told, f"P3: {told}"


async def quiet(bench: Bench, port: str) -> None:
    """Wait until no lease covers the port or anything below, and every channel is normal again."""
    topology = await bench.topology()
    behind = {function.address for function in topology.domain(Address.parse(port))}

    async def look() -> bool | None:
        leases = (await bench.leases()).leases
        above = {bridge.address for bridge in topology.ancestors(Address.parse(port))}
        if any(lease.port in behind | above for lease in leases):
            return None
        devices = (await bench.registry()).values()
        frozen = [one for one in devices if one.present and one.function in behind and one.channel != "normal"]
        return None if frozen else True

    await bench.eventually(look, f"quiet at {port}")


def verdicts(record: Recovery) -> dict[str, str]:
    """Return a recovery's verdicts on what is below its port, as text."""
    return {function: str(verdict) for function, verdict in record.verdicts.items() if function != str(record.port)}
