"""Attacks on P3, P4, P9 and P10 around slots: lost hints, late presence, dead services, crashes in mid-operation."""

from __future__ import annotations

import asyncio

import pytest

from shared.pcie import Address
from shared.protocol import subjects
from shared.protocol.facts import Interrupt, What
from shared.protocol.requests import SlotReply, SlotReport, SlotRequest
from tests.integration.attack import lose_hints, pending
from tests.integration.campaign import some_of
from tests.integration.fleet import Bench
from tests.integration.promises import keeps, promises, quiet

pytestmark = pytest.mark.asyncio(loop_scope="session")

ALL_ONES = 0xFFFF
SETTLE_S = 0.5  # for a second fact that must not come


@pytest.fixture
def bench(attacked: Bench) -> Bench:
    """Take the fleet whose ports may be broken."""
    return attacked


async def removed(bench: Bench, port: str, since: int) -> None:
    await bench.wait_fact(What.DEVICE_REMOVED, since=since)
    await quiet(bench, port)


async def added(bench: Bench, port: str, since: int) -> None:
    await bench.wait_fact(What.DEVICE_ADDED, since=since)
    await quiet(bench, port)


def count(bench: Bench, what: What, function: str, since: int) -> int:
    return len([fact for fact in bench.facts(what, since=since) if str(fact.data["function"]) == function])


async def present(bench: Bench, function: str) -> int | None:
    """Return the generation of a function that the registry shows."""
    device = (await bench.registry()).get(function)
    return device.generation if device is not None and device.present else None


async def ask(bench: Bench, port: str, question: str) -> SlotReport:
    subject = subjects.slot(bench.host, Address.parse(port), question)
    report = await bench.request(subject, SlotRequest(), SlotReply)
    assert isinstance(report, SlotReport), report
    return report


async def test_p9_without_any_interrupt_the_poll_finds_a_removal_and_an_insertion(bench: Bench) -> None:
    before = await present(bench, "0000:02:00.0") or 0
    await lose_hints(bench, "00:02.0")
    since = bench.mark()
    async with promises(bench):
        await bench.inject("remove", "00:02.0")
        await removed(bench, "00:02.0", since)
        await bench.inject("insert", "00:02.0")
        await added(bench, "00:02.0", since)
    assert await present(bench, "0000:02:00.0") == before + 1
    assert not await pending(bench, "00:02.0")

    # A new card's first error, before anybody has polled the topology again: restored, and blamed on nobody else.
    since = bench.mark()
    async with keeps(bench, "00:02.0", resets=True):
        await bench.inject("error", "02:00.0", names=["MalfTLP"])
        error = await bench.wait_fact(What.ERROR_FATAL, since=since)
        assert str(error.data["function"]) == "0000:02:00.0"
        await bench.wait_fact(What.RECOVERY_CLOSED, "00:02.0", since=since)
    await lose_hints(bench, "00:02.0", lost=False)


async def test_p9_forged_and_repeated_hints_change_nothing(bench: Bench) -> None:
    lies: dict[str, int | None] = {
        "slot_status": 0x0108,
        "link_status": 0,
        "dpc_status": 0x0009,
        "root_error_status": 0x7F,
    }
    wrong: tuple[dict[str, int | None], ...] = (lies, dict.fromkeys(lies, ALL_ONES), dict.fromkeys(lies), {})
    since = bench.mark()
    async with keeps(bench, "00:01.0", resets=False):
        for registers in wrong:
            for port in ("00:01.0", "00:02.0", "11:00.0", "21:00.0"):
                for service in ("hotplug", "aer", "dpc"):
                    hint = Interrupt(port=Address.parse(port), registers=registers)
                    for _ in range(3):
                        await bench.bus.publish(subjects.irq(bench.host, hint.port, service), hint)
        await asyncio.sleep(SETTLE_S)
    told = [fact for fact in bench.facts(since=since) if not str(fact.what).startswith("lease.")]
    assert not told


async def test_p4_a_surprise_removal_leaves_no_status_behind_and_the_next_error_is_the_next_cards(
    bench: Bench,
) -> None:
    since = bench.mark()
    await bench.inject("remove", "00:02.0")
    await removed(bench, "00:02.0", since)
    assert not await pending(bench, "00:02.0")
    await bench.restart("aer")
    card = {"0": {"serial": "00-00-00-00-00-00-02-77", "driver": {"name": "nvme"}}}
    await bench.inject("insert", "00:02.0", card=card)
    await added(bench, "00:02.0", since)
    since = bench.mark()
    await bench.inject("error", "02:00.0", names=["CmpltAbrt"])
    error = await bench.wait_fact(What.ERROR_NONFATAL, since=since)
    assert (str(error.data["function"]), error.data["names"]) == ("0000:02:00.0", ["CmpltAbrt"])


async def test_p4_p8_presence_that_is_seen_late_is_still_a_removal(bench: Bench) -> None:
    since = bench.mark()
    async with promises(bench):
        await bench.inject("remove", "00:06.0")
        await removed(bench, "00:06.0", since)
        assert not await pending(bench, "00:06.0")
        await bench.inject("insert", "00:06.0")
        await added(bench, "00:06.0", since)
    assert count(bench, What.DEVICE_REMOVED, "0000:06:00.0", since) == 1


@pytest.mark.parametrize("for_s", some_of((0.02, 0.09, 0.3), 0, 2))
async def test_p3_a_link_that_flaps_is_no_removal(bench: Bench, for_s: float) -> None:
    for port in ("00:02.0", "00:06.0"):
        since = bench.mark()
        async with keeps(bench, port):
            await bench.inject("link_flap", port, for_s=for_s)
            await bench.wait_fact(What.DEVICE_KEPT, port, since=since)
        assert not await pending(bench, port)


async def test_p4_a_switch_card_with_slots_of_its_own_is_pulled_and_seated_once(bench: Bench) -> None:
    behind = ["0000:10:00.0", "0000:11:00.0", "0000:12:00.0", "0000:11:01.0", "0000:13:00.0"]
    since = bench.mark()
    before = {one: await present(bench, one) or 0 for one in behind}
    async with promises(bench):
        await bench.inject("remove", "00:03.0")
        await removed(bench, "00:03.0", since)
        frozen = [str(fact.data["to"]) for fact in bench.facts(What.DEVICE_CHANNEL, since=since)]
        assert set(frozen) == {"frozen"}, "a channel was thawed while nobody could look"
        await bench.inject("insert", "00:03.0")

        async def all_there() -> bool | None:
            return all([await present(bench, one) == before[one] + 1 for one in behind]) or None

        await bench.eventually(all_there, "all of the switch card")
        for slot in ("11:00.0", "11:01.0"):
            await bench.wait_fact(What.SLOT_RECONCILED, slot, since=since)
        await quiet(bench, "00:03.0")
    for function in behind:
        assert count(bench, What.DEVICE_REMOVED, function, since) == 1
        assert count(bench, What.DEVICE_ADDED, function, since) == 1

    # The bridges of a card that was seated pass errors on, as those that firmware has set up do.
    since = bench.mark()
    async with keeps(bench, "11:00.0", resets=True):
        await bench.inject("error", "12:00.0", names=["MalfTLP"])
        started = await bench.wait_fact(What.RECOVERY_STARTED, since=since)
        assert str(started.port) == "0000:11:00.0"
        await bench.closed("11:00.0", started.lease)


@pytest.mark.campaign
async def test_p4_two_cards_pulled_at_once_below_one_switch_are_two_removals_and_touch_nothing_else(
    bench: Bench,
) -> None:
    """Surprise Down of a switch's port: both messages meet in one latch of the root port."""
    cards = {"11:00.0": "0000:12:00.0", "11:01.0": "0000:13:00.0"}
    since = bench.mark()
    async with promises(bench):
        for slot in cards:
            await bench.inject("remove", slot)
        for function in cards.values():

            async def gone(function: str = function) -> bool | None:
                return await present(bench, function) is None or None

            await bench.eventually(gone, f"{function} removed")
        await quiet(bench, "00:03.0")
        for slot in cards:
            assert not await pending(bench, slot)
        assert not await pending(bench, "00:03.0")
        for slot in cards:
            await bench.inject("insert", slot)
        for function in cards.values():

            async def back(function: str = function) -> bool | None:
                return await present(bench, function) is not None or None

            await bench.eventually(back, f"{function} added")
        await quiet(bench, "00:03.0")
    for what in (What.DEVICE_REMOVED, What.DEVICE_ADDED):
        told = sorted(str(fact.data["function"]) for fact in bench.facts(what, since=since))
        assert told == sorted(cards.values())


async def test_p4_p10_a_removal_without_aer_is_deferred_and_reported_and_acted_on_once_it_is_back(
    bench: Bench,
) -> None:
    before = await present(bench, "0000:02:00.0")
    bench.kill("aer")
    since = bench.mark()
    await bench.inject("remove", "00:02.0")
    deferred = await bench.wait_fact(What.SLOT_DEFERRED, "00:02.0", since=since)
    assert "has received ERR_FATAL" in deferred.data["why"]
    await asyncio.sleep(SETTLE_S)
    assert await present(bench, "0000:02:00.0") == before
    await bench.restart("aer")
    await removed(bench, "00:02.0", since)
    assert count(bench, What.DEVICE_REMOVED, "0000:02:00.0", since) == 1
    await bench.inject("insert", "00:02.0")
    await added(bench, "00:02.0", since)


@pytest.mark.parametrize("at", some_of((What.SLOT_DEFERRED, What.LEASE_OPENED, What.LINK_DOWN, What.DEVICE_REMOVED), 2))
async def test_p4_hotplug_killed_during_a_removal_removes_once(bench: Bench, at: What) -> None:
    before = await present(bench, "0000:02:00.0") or 0
    since = bench.mark()
    async with promises(bench):
        await bench.inject("remove", "00:02.0")
        await bench.wait_fact(at, "00:02.0", since=since)
        bench.kill("hotplug")
        await bench.restart("hotplug")

        async def gone() -> bool | None:
            return await present(bench, "0000:02:00.0") is None or None

        await bench.eventually(gone, "removed")
        await quiet(bench, "00:02.0")
        await asyncio.sleep(SETTLE_S)
        assert count(bench, What.DEVICE_REMOVED, "0000:02:00.0", since) <= 1
        await bench.inject("insert", "00:02.0")
        await added(bench, "00:02.0", since)
    assert await present(bench, "0000:02:00.0") == before + 1


@pytest.mark.parametrize("after_s", some_of((0.02, 0.15, 0.25, 0.4), 2))
async def test_p4_hotplug_killed_during_a_bring_up_registers_one_generation(bench: Bench, after_s: float) -> None:
    before = await present(bench, "0000:02:00.0") or 0
    since = bench.mark()
    await bench.inject("remove", "00:02.0")
    await removed(bench, "00:02.0", since)
    since = bench.mark()
    async with promises(bench):
        await bench.inject("insert", "00:02.0")
        await bench.wait_fact(What.SLOT_STATE, "00:02.0", since=since)
        await asyncio.sleep(after_s)
        bench.kill("hotplug")
        await bench.restart("hotplug")

        async def seated() -> bool | None:
            return await present(bench, "0000:02:00.0") is not None or None

        await bench.eventually(seated, "registered")
        await quiet(bench, "00:02.0")
        await asyncio.sleep(SETTLE_S)
    assert await present(bench, "0000:02:00.0") == before + 1
    assert (await ask(bench, "00:02.0", "status")).state == "on"
    async with keeps(bench, "00:02.0", resets=True):
        since = bench.mark()
        await bench.inject("error", "02:00.0", names=["MalfTLP"])
        await bench.wait_fact(What.RECOVERY_CLOSED, "00:02.0", since=since)
