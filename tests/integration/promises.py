"""One checker per promise, over the facts and registers of a run: outside the code under test, and used by every test.

Those over facts alone are shared with `holdfast scenario`.

`async with keeps(bench, port, …)` asserts P1, P2, P3 and P6 over whatever happens inside.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from services.console.scenario import promises as _promises
from shared.pcie import Address, Function, Topology
from shared.pcie import registers as reg
from shared.protocol.facts import Fact, What
from shared.protocol.records import Device, Recovery
from tests.integration.fleet import Bench


def p1_mask_before_reset(facts: Iterable[Fact], topology: Topology) -> int:
    """Assert P1 over every write that the fabric executed; return how many reset bits were written."""
    story = tuple(facts)
    broken = _promises.p1_mask_before_reset(story, topology)
    assert not broken, broken
    return len(_promises.reset_bits(story, topology))


def p2_closed_in_order(facts: Iterable[Fact], topology: Topology) -> None:
    """Assert over every close that it came after `resume`, and restored exactly what open had saved (DESIGN 4)."""
    broken = _promises.p2_closed_in_order(facts, topology)
    assert not broken, broken


def p6_one_owner(facts: Iterable[Fact], topology: Topology) -> None:
    """Assert that no two recoveries covered one another at the same time: the one above absorbs, or waits."""
    broken = _promises.p6_one_owner(facts, topology)
    assert not broken, broken


def opened(bench: Bench, since: int, port: Address | str | None = None) -> list[Fact]:
    """Return the openings of leases that stand in anybody's way; hotplug may look at any slot under one of its own."""
    facts = bench.facts(What.LEASE_OPENED, port, since)
    return [fact for fact in facts if fact.data["rank"] != "slot_operation"]


async def the_opened(bench: Bench, since: int, port: Address | str) -> Fact:
    """Wait until it is told which such lease was opened, and assert that it was one; return its opening."""

    async def look() -> list[Fact] | None:
        return opened(bench, since, port) or None

    (fact,) = await bench.eventually(look, f"a lease of {port} is opened")
    return fact


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
    p2_closed_in_order(facts, topology)
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
    if resets:
        await bench.eventually(lambda: _reset_told(bench, since, topology), "a reset bit written")
    facts = bench.facts(since=since)
    written = p1_mask_before_reset(facts, topology)
    assert resets is None or bool(written) is resets, f"{written} reset bits were written"
    p2_closed_in_order(facts, topology)
    p6_one_owner(facts, topology)
    after = await bench.registry()
    for function in behind:
        if str(function.address) not in but:
            p3_kept(str(function.address), before, after, facts)
            assert await config(bench, function) == held[function.address], f"config of {function.address} is lost"


async def _reset_told(bench: Bench, since: int, topology: Topology) -> bool | None:
    """Facts have a way of their own, and may arrive after what they tell of can be seen."""
    return bool(_promises.reset_bits(bench.facts(since=since), topology)) or None


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
