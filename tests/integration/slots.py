"""What tests of slots share: their state, facts that must be told once, and recoveries that are held in a phase."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

from shared.protocol import subjects
from shared.protocol.facts import Fact, What
from shared.protocol.records import Recovery
from shared.protocol.requests import SlotReply, SlotReport, SlotRequest
from tests.integration.fleet import FACT_S, Bench
from tests.integration.promises import quiet

SETTLE_S: Final = 0.3  # for a second fact that must not come
NEVER_S: Final = 1000.0  # longer than any test
PHASES: Final = ("error_detected", "link", "ready", "slot_reset", "resume")  # as the journal calls them


async def state_of(bench: Bench, port: str) -> SlotReport:
    """Ask hotplug for a slot."""
    topology = await bench.topology()
    address = next(one.address for one in topology if str(one.address).endswith(port))
    report = await bench.request(subjects.slot(bench.host, address, "status"), SlotRequest(), SlotReply)
    assert isinstance(report, SlotReport)
    return report


async def until(bench: Bench, port: str, state: str) -> None:
    """Wait until a slot is in a state, with no lease left."""

    async def look() -> bool | None:
        return (await state_of(bench, port)).state == state or None

    await bench.eventually(look, f"slot of {port} {state}", FACT_S)
    await quiet(bench, port)


async def becomes(bench: Bench, port: str, state: str, since: int) -> None:
    """Wait until a slot has come to a state since; it may have gone on."""

    async def look() -> bool | None:
        return state in {fact.data["to"] for fact in bench.facts(What.SLOT_STATE, port, since)} or None

    await bench.eventually(look, f"slot of {port} {state}")


async def once(bench: Bench, what: What, function: str, since: int) -> Fact:
    """Assert that such a fact about a function is told, and not again; return it."""
    return await _once(bench, lambda: of(bench.facts(since=since), what, function), f"{what} of {function}")


async def once_at(bench: Bench, what: What, port: str, since: int) -> Fact:
    """Assert that such a fact about a port is told, and not again; return it."""
    return await _once(bench, lambda: bench.facts(what, port, since), f"{what} of {port}")


async def _once(bench: Bench, found: Callable[[], list[Fact]], name: str) -> Fact:
    async def told() -> bool | None:
        return bool(found()) or None

    await bench.eventually(told, name)
    await asyncio.sleep(SETTLE_S)
    (fact,) = found()
    return fact


def of(facts: Iterable[Fact], what: What, function: str) -> list[Fact]:
    """Pick one kind of fact about one function."""
    return [fact for fact in facts if fact.what is what and str(fact.data.get("function")) == function]


def after_close(bench: Bench, fact: Fact, lease: str) -> bool:
    """Tell whether a fact was told after its fabric said that the lease is closed."""
    story = bench.facts()
    (closed,) = (at for at, one in enumerate(story) if one.what is What.LEASE_CLOSED and one.lease == lease)
    return story.index(fact) > closed


async def hold_in(bench: Bench, port: str, function: str, phase: str) -> None:
    """Have the next recovery of `port` stay in `phase` until `let_go`: the driver, the link or the card hangs."""
    if phase == "link":
        await bench.inject("stuck_training", port)
    elif phase == "ready":
        await bench.inject("slow_ready", port, for_s=NEVER_S)
    else:
        await bench.hang(function, phase)


async def let_go(bench: Bench, port: str, function: str) -> None:
    """End what `hold_in` has begun."""
    await bench.inject("link_up", port)
    await bench.inject("slow_ready", port)
    await bench.answer(function)


async def contained_in(bench: Bench, port: str, function: str, phase: str) -> str:
    """Contain `port`, and return the lease of its recovery when that has come to `phase`, where it is held."""
    await hold_in(bench, port, function, phase)
    since = bench.mark()
    await bench.inject("dpc", port, reason="uncorrectable")

    async def entered() -> str | None:
        steps = (fact for fact in bench.facts(What.RECOVERY_STEP, port, since) if fact.data["step"] == phase)
        return next((fact.lease for fact in steps), None)

    return await bench.eventually(entered, f"step {phase} of {port}")


async def closed_after(bench: Bench, port: str, function: str, lease: str) -> Recovery:
    """Let the recovery go on that was held, and wait until it is over."""
    await let_go(bench, port, function)
    return await bench.closed(port, lease)
