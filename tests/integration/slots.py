"""What tests of slots share: their state, facts that must be told once, and recoveries that are held in a phase."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

from shared.protocol import subjects
from shared.protocol.facts import Fact, What
from shared.protocol.records import Recovery
from shared.protocol.requests import SlotReply, SlotReport, SlotRequest
from tests.integration.fleet import Bench
from tests.integration.promises import quiet

SETTLE_S: Final = 0.3  # for a second fact that must not come
HELD_S: Final = 0.6  # how long a recovery is held in a phase, so that something may happen in it
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

    await bench.eventually(look, f"slot of {port} {state}", 15)
    await quiet(bench, port)


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


async def hold_in(bench: Bench, port: str, function: str, phase: str, held_s: float = HELD_S) -> None:
    """Have the next recovery of `port` last in `phase`: the driver is slow, the link trains long, the card is slow."""
    if phase == "link":
        await bench.inject("stuck_training", port, for_s=held_s)
    elif phase == "ready":
        await bench.inject("slow_ready", port, for_s=held_s)
    else:
        await bench.inject("driver", function, driver={"name": "nvme", "delay_s": {phase: held_s}})


async def contained_in(bench: Bench, port: str, function: str, phase: str, held_s: float = HELD_S) -> str:
    """Contain `port`, and return the lease of its recovery when that has come to `phase`, where it is held."""
    await hold_in(bench, port, function, phase, held_s)
    since = bench.mark()
    await bench.inject("dpc", port, reason="uncorrectable")

    async def entered() -> str | None:
        steps = (fact for fact in bench.facts(What.RECOVERY_STEP, port, since) if fact.data["step"] == phase)
        return next((fact.lease for fact in steps), None)

    return await bench.eventually(entered, f"step {phase} of {port}")


async def closed_after(bench: Bench, port: str, function: str, lease: str) -> Recovery:
    """Wait until the recovery is over, and let whoever was slow be as quick as before."""
    record = await bench.closed(port, lease, timeout_s=20)
    await bench.inject("slow_ready", port)
    await bench.inject("driver", function, driver={"name": "nvme", "delay_s": 0.0})
    return record
