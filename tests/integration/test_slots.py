"""Must show 4, 5, 6 and 8: real changes are acted on exactly once, and whatever is not one changes nothing."""

from __future__ import annotations

import pytest

from shared.protocol import subjects
from shared.protocol.facts import What
from shared.protocol.requests import SlotReply, SlotReport, SlotRequest
from tests.integration.fleet import Bench
from tests.integration.promises import keeps, promises, quiet, verdicts
from tests.integration.slots import NEVER_S, becomes, once, state_of, until

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_p4_a_surprise_removal_and_an_insertion_are_each_acted_on_once(bench: Bench) -> None:
    since, before = bench.mark(), await bench.registry()
    async with promises(bench):
        await bench.inject("remove", "00:09.0")
        await until(bench, "00:09.0", "off")
        await bench.inject("insert", "00:09.0")
        await until(bench, "00:09.0", "on")
    after = await bench.registry()
    for function in ("0000:09:00.0", "0000:09:00.1"):
        await once(bench, What.DEVICE_REMOVED, function, since)
        await once(bench, What.DEVICE_ADDED, function, since)
        assert after[function].generation == before[function].generation + 1


async def test_p4_a_swap_is_a_removal_and_an_insertion(bench: Bench) -> None:
    since = bench.mark()
    async with promises(bench):
        await bench.inject(
            "swap",
            "00:09.0",
            card={"0": {"serial": "00-00-00-00-00-00-09-99"}, "1": {"serial": "00-00-00-00-00-00-09-99"}},
        )
        await bench.wait_fact(What.DEVICE_ADDED, since=since)
        await until(bench, "00:09.0", "on")
    await once(bench, What.DEVICE_REMOVED, "0000:09:00.0", since)
    await once(bench, What.DEVICE_ADDED, "0000:09:00.0", since)
    assert (await bench.registry())["0000:09:00.0"].identity.serial == 0x999


async def test_a_first_card_is_brought_up_with_its_bars_assigned(bench: Bench) -> None:
    since = bench.mark()
    await bench.inject("insert", "00:06.0")
    await bench.wait_fact(What.DEVICE_ADDED, "00:06.0", since=since)
    await until(bench, "00:06.0", "on")
    async with keeps(bench, "00:06.0", resets=True):
        mark = bench.mark()
        await bench.inject("dpc", "00:06.0", reason="uncorrectable")
        started = await bench.wait_fact(What.RECOVERY_STARTED, "00:06.0", since=mark)
        assert verdicts(await bench.closed("00:06.0", started.lease)) == {"0000:06:00.0": "kept"}


async def test_an_attention_button_powers_off_after_its_grace_and_a_second_press_cancels(bench: Bench) -> None:
    since = bench.mark()
    await bench.inject("button", "00:05.0")
    await becomes(bench, "00:05.0", "blinking_off", since)
    await bench.inject("button", "00:05.0")
    await until(bench, "00:05.0", "on")
    assert not bench.facts(What.DEVICE_REMOVED, "00:05.0", since)
    await bench.inject("button", "00:05.0")
    await until(bench, "00:05.0", "off")
    await bench.inject("button", "00:05.0")
    await until(bench, "00:05.0", "on")


async def test_power_off_and_on_by_request(bench: Bench) -> None:
    address = (await state_of(bench, "00:05.0")).port
    async with promises(bench):
        off = await bench.request(subjects.slot(bench.host, address, "power_off"), SlotRequest(), SlotReply)
        assert isinstance(off, SlotReport), off
        await until(bench, "00:05.0", "off")
        on = await bench.request(subjects.slot(bench.host, address, "power_on"), SlotRequest(), SlotReply)
        assert isinstance(on, SlotReport), on
        await until(bench, "00:05.0", "on")


async def test_an_open_latch_is_reported_while_on_and_refuses_to_enable(bench: Bench) -> None:
    since = bench.mark()
    await bench.inject("mrl", "00:05.0", state=True)
    assert (await bench.wait_fact(What.SLOT_LATCH, "00:05.0", since=since)).data["open"] is True
    assert (await state_of(bench, "00:05.0")).state == "on"
    await bench.inject("button", "00:05.0")
    await until(bench, "00:05.0", "off")
    since = bench.mark()
    await bench.inject("button", "00:05.0")
    await bench.wait_fact(What.SLOT_NOT_READY, "00:05.0", since=since)
    await until(bench, "00:05.0", "off")
    await bench.inject("mrl", "00:05.0", state=False)
    await bench.inject("button", "00:05.0")
    await until(bench, "00:05.0", "on")


async def test_a_power_fault_that_lasts_powers_off_and_one_that_does_not_is_reported_once(bench: Bench) -> None:
    since = bench.mark()
    await bench.inject("power_fault", "00:05.0")
    await bench.wait_fact(What.SLOT_POWER_FAULT, "00:05.0", since=since)
    await quiet(bench, "00:05.0")
    assert (await state_of(bench, "00:05.0")).state == "on"
    await bench.inject("power_fault", "00:05.0", for_s=NEVER_S)
    await until(bench, "00:05.0", "off")
    await bench.inject("power_fault", "00:05.0")  # the last one
    await bench.inject("button", "00:05.0")
    await until(bench, "00:05.0", "on")


@pytest.mark.parametrize(
    "differs",
    [
        {"0": {"serial": "00-00-00-00-00-00-02-77"}, "1": {"serial": "00-00-00-00-00-00-02-77"}},
        {"1": {"device": 0x1018}},
    ],
)
async def test_p3_a_card_swapped_during_a_recovery_is_replaced(
    bench: Bench, differs: dict[str, dict[str, object]]
) -> None:
    await bench.hang("02:00.0", "error_detected", name="mlx5_core")
    since = bench.mark()
    async with promises(bench):
        await bench.inject("dpc", "00:02.0", reason="uncorrectable")
        started = await bench.wait_fact(What.RECOVERY_STARTED, "00:02.0", since=since)
        await bench.inject("swap", "00:02.0", card=differs)
        await bench.answer("02:00.0", "mlx5_core")
        record = await bench.closed("00:02.0", started.lease)
        assert "replaced" in verdicts(record).values()
        await bench.wait_fact(What.DEVICE_ADDED, "00:02.0", since=since)
        await until(bench, "00:02.0", "on")
    await once(bench, What.DEVICE_ADDED, "0000:02:00.1", since)


async def test_p4_with_out_of_band_presence_a_reseated_card_is_a_real_change(bench: Bench) -> None:
    await bench.hang("0c:00.0", "error_detected")
    since = bench.mark()
    async with promises(bench):
        await bench.inject("dpc", "00:0c.0", reason="uncorrectable")
        await bench.wait_fact(What.RECOVERY_STARTED, "00:0c.0", since=since)
        await bench.inject("swap", "00:0c.0")
        await bench.answer("0c:00.0")
        await bench.wait_fact(What.DEVICE_ADDED, "00:0c.0", since=since)
        await until(bench, "00:0c.0", "on")
    await once(bench, What.DEVICE_REMOVED, "0000:0c:00.0", since)


async def test_p3_an_unrelated_interrupt_on_a_shared_vector_during_a_masked_reset_changes_nothing(bench: Bench) -> None:
    """Scenario 1 (bz 219765): the interrupt of another service shows hotplug what latched under the mask."""
    await bench.hang("01:00.0", "slot_reset")
    since = bench.mark()
    async with keeps(bench, "00:01.0", resets=True):
        await bench.inject("dpc", "00:01.0", reason="uncorrectable")
        started = await bench.wait_fact(What.RECOVERY_STARTED, "00:01.0", since=since)
        for after_s in (0.0, 0.05, 0.2, 0.4):
            await bench.inject("interrupt", "00:01.0", service="aer", after_s=after_s)
        await bench.wait_fact(What.SLOT_DEFERRED, "00:01.0", since=since)
        await bench.answer("01:00.0")
        await bench.closed("00:01.0", started.lease)


async def test_p9_a_removed_device_answers_nothing_and_that_is_no_event(bench: Bench) -> None:
    since = bench.mark()
    await bench.inject("remove", "00:09.0")
    await until(bench, "00:09.0", "off")
    for service in ("hotplug", "aer"):
        await bench.inject("interrupt", "00:09.0", service=service)
    await quiet(bench, "00:09.0")
    assert not [fact for fact in bench.facts(since=since) if str(fact.what).startswith("containment")]
    await bench.inject("insert", "00:09.0")
    await until(bench, "00:09.0", "on")
