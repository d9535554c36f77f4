"""Must show 5 and 8 below a recovery: nested slots whose cards come and go, and whose registers read all ones."""

from __future__ import annotations

import pytest

from shared.protocol.facts import What
from tests.integration.fleet import Bench
from tests.integration.promises import keeps, promises, verdicts
from tests.integration.slots import after_close, closed_after, contained_in, once, until

ROOT, HELD = "00:01.0", "0000:03:00.0"  # what is contained, and whose driver is slow
SLOTS_BUS = 2
EVENTS = {what for what in What if what.partition(".")[0] in {"link", "slot", "error", "containment"}}

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.fixture
def bench(switch: Bench) -> Bench:
    """Take the fleet that has a switch."""
    return switch


async def test_p4_cards_that_come_and_go_in_each_phase_of_a_recovery_above(bench: Bench) -> None:
    """Two nested slots take turns: in each phase one gets a card, the other loses its own."""
    empty, other = ("02:01.0", "0000:04:00.0"), ("02:02.0", "0000:05:00.0")
    await bench.inject("remove", empty[0])
    await until(bench, empty[0], "off")
    for phase in ("error_detected", "slot_reset", "resume"):
        since = bench.mark()
        async with promises(bench):
            lease = await contained_in(bench, ROOT, HELD, phase)
            await bench.inject("insert", empty[0])
            await bench.inject("remove", other[0])
            got = verdicts(await closed_after(bench, ROOT, HELD, lease))
            assert (got[HELD], got["0000:06:00.0"], got[other[1]]) == ("kept", "kept", "removed")
            assert after_close(bench, await once(bench, What.DEVICE_ADDED, empty[1], since), lease)
            assert after_close(bench, await once(bench, What.DEVICE_REMOVED, other[1], since), lease)
            await until(bench, empty[0], "on")
            await until(bench, other[0], "off")
        empty, other = other, empty
    await bench.inject("insert", empty[0])
    await until(bench, empty[0], "on")


async def test_p9_slots_that_read_all_ones_below_containment_tell_of_no_event(bench: Bench) -> None:
    since = bench.mark()
    async with keeps(bench, ROOT, resets=True):
        lease = await contained_in(bench, ROOT, HELD, "error_detected")
        for slot in ("02:00.0", "02:01.0", "02:02.0", "02:03.0"):
            assert await bench.slot_status(slot) is None
            await bench.inject("interrupt", slot, service="hotplug")
            await bench.inject("interrupt", slot, service="dpc")
        await closed_after(bench, ROOT, HELD, lease)
    story = bench.facts(since=since)
    released = next(at for at, fact in enumerate(story) if fact.what is What.CONTAINMENT_RELEASED)
    assert not [fact for fact in story[:released] if fact.port.bus == SLOTS_BUS and fact.what in EVENTS]
    acted = [fact for fact in story if fact.port.bus == SLOTS_BUS and fact.what in EVENTS - {What.SLOT_DEFERRED}]
    assert not acted, acted
    assert [str(fact.port) for fact in story if fact.what is What.CONTAINMENT_ENTERED] == ["0000:00:01.0"]
