"""Must show 2 and 10: what fails recovers and is kept, whatever the drivers vote."""

from __future__ import annotations

from itertools import product

import pytest

from shared.protocol.facts import What
from tests.integration.campaign import some_of
from tests.integration.fleet import Bench
from tests.integration.promises import keeps, opened, verdicts

pytestmark = pytest.mark.asyncio(loop_scope="session")

VOTE_PAIRS = list(product(("none", "can_recover", "need_reset", "disconnect"), repeat=2))
HEADER = (0x60000080, 0xAB0000FF, 0x00000102, 0x276FE000)


def votes(bench: Bench, since: int) -> list[tuple[str, str, str]]:
    """Return who was told what, and what he said, in order."""
    facts = bench.facts(What.RECOVERY_VOTE, since=since)
    return [(fact.data["step"], str(fact.data["function"]), fact.data["vote"]) for fact in facts]


async def recovered(bench: Bench, port: str, since: int) -> dict[str, str]:
    """Wait for the recovery that was opened since; return its verdicts."""
    started = await bench.wait_fact(What.RECOVERY_STARTED, port, since=since)
    return verdicts(await bench.closed(port, started.lease))


async def test_p3_a_local_uncorrectable_error_triggers_dpc_and_the_device_is_kept(bench: Bench) -> None:
    since = bench.mark()
    async with keeps(bench, "00:01.0", resets=True):
        await bench.inject("error", "00:01.0", names=["MalfTLP"], header=HEADER)
        assert await recovered(bench, "00:01.0", since) == {"0000:01:00.0": "kept"}
    entered = await bench.wait_fact(What.CONTAINMENT_ENTERED, "00:01.0", since=since)
    assert "unmasked uncorrectable error" in entered.data["text"][0]
    error = await bench.wait_fact(What.ERROR_FATAL, "00:01.0", since=since)
    assert (error.data["names"], error.data["header"]) == (["MalfTLP"], list(HEADER))


async def test_p3_a_received_err_fatal_triggers_dpc_and_both_functions_are_kept(bench: Bench) -> None:
    since = bench.mark()
    async with keeps(bench, "00:02.0", resets=True):
        await bench.inject("error", "02:00.1", names=["MalfTLP"])
        assert set((await recovered(bench, "00:02.0", since)).values()) == {"kept"}
    entered = await bench.wait_fact(What.CONTAINMENT_ENTERED, "00:02.0", since=since)
    assert "ERR_FATAL received from 0000:02:00.1" in entered.data["text"][0]


async def test_p3_aer_fatal_on_a_port_without_dpc_is_a_secondary_bus_reset(bench: Bench) -> None:
    since = bench.mark()
    async with keeps(bench, "00:03.0", resets=True):
        await bench.inject("error", "03:00.0", names=["MalfTLP"])
        assert await recovered(bench, "00:03.0", since) == {"0000:03:00.0": "kept"}
    assert [step for step, _, _ in votes(bench, since)] == ["error_detected", "slot_reset", "resume"]


async def test_p3_a_nonfatal_error_that_all_can_recover_needs_no_reset(bench: Bench) -> None:
    since = bench.mark()
    async with keeps(bench, "00:03.0", resets=False):
        await bench.inject("error", "03:00.0", names=["CmpltAbrt"])
        assert await recovered(bench, "00:03.0", since) == {"0000:03:00.0": "kept"}
    assert [step for step, _, _ in votes(bench, since)] == ["error_detected", "mmio_enabled", "resume"]


@pytest.mark.parametrize(("first", "second"), some_of(VOTE_PAIRS, 2, 5, 7, 11, 15))
async def test_p3_every_merge_of_two_votes_on_a_nonfatal_error(bench: Bench, first: str, second: str) -> None:
    """Reset if anybody needs one, and then everybody hears slot_reset. Who disconnects fails only without a reset."""
    said = {"0000:04:00.0": first, "0000:04:00.1": second}
    for function, vote in said.items():
        await bench.inject("driver", function, driver={"name": "ice", "error_detected": vote})
    since, resets = bench.mark(), "need_reset" in said.values()
    async with keeps(bench, "00:04.0", resets=resets):
        await bench.inject("error", "04:00.0", names=["CmpltAbrt"])
        got = await recovered(bench, "00:04.0", since)
    assert got == {one: "failed" if vote == "disconnect" and not resets else "kept" for one, vote in said.items()}
    told = {function for step, function, _ in votes(bench, since) if step == "slot_reset"}
    assert told == (set(said) if resets else set())


async def test_correctable_errors_are_counted_and_nothing_else(bench: Bench) -> None:
    since = bench.mark()
    async with keeps(bench, "00:03.0", resets=False):
        await bench.inject("error", "03:00.0", names=["BadTLP"], count=3)
        fact = await bench.wait_fact(What.ERROR_CORRECTABLE, since=since)
        assert fact.data["names"] == ["BadTLP"]
    assert not opened(bench, since)


async def test_p5_a_driver_that_takes_long_keeps_its_lease(bench: Bench) -> None:
    await bench.hang("01:00.0", "error_detected")
    since = bench.mark()
    async with keeps(bench, "00:01.0", resets=True):
        await bench.inject("dpc", "00:01.0", reason="uncorrectable")
        await bench.wait_fact(What.RECOVERY_PROGRESS, "00:01.0", since=since)
        await bench.answer("01:00.0")
        assert await recovered(bench, "00:01.0", since) == {"0000:01:00.0": "kept"}


async def test_p3_one_driver_without_callbacks_costs_its_siblings_nothing(bench: Bench) -> None:
    since, before = bench.mark(), await bench.registry()
    async with keeps(bench, "00:08.0", but=["0000:08:00.1"], resets=True):
        await bench.inject("dpc", "00:08.0", reason="uncorrectable")
        got = await recovered(bench, "00:08.0", since)
        await bench.wait_fact(What.DEVICE_REBOUND, since=since)
    assert got == {
        "0000:08:00.0": "kept",
        "0000:08:00.1": "rebound",
        "0000:08:00.2": "kept",
        "0000:08:00.3": "kept",
    }
    after = await bench.registry()
    assert after["0000:08:00.1"].generation == before["0000:08:00.1"].generation + 1
    said = {function: vote for step, function, vote in votes(bench, since) if step == "error_detected"}
    assert said["0000:08:00.1"] == "no_handler"
    assert said["0000:08:00.2"] == "none"


async def test_p3_a_slotless_port_recovers_without_a_mask(bench: Bench) -> None:
    since = bench.mark()
    async with keeps(bench, "00:07.0", resets=True):
        await bench.inject("dpc", "00:07.0", reason="uncorrectable")
        assert await recovered(bench, "00:07.0", since) == {"0000:07:00.0": "kept"}


@pytest.mark.parametrize("late_s", some_of([0.0, 0.03, 0.1], 0, 2))
@pytest.mark.parametrize("service", ["hotplug", "dpc"])
async def test_p3_link_down_may_be_heard_before_with_or_after_dpc(bench: Bench, service: str, late_s: float) -> None:
    await bench.inject("interrupt_delay", "00:0a.0", service=service, for_s=late_s)
    since = bench.mark()
    async with keeps(bench, "00:0a.0", resets=True):
        await bench.inject("dpc", "00:0a.0", reason="uncorrectable")
        assert await recovered(bench, "00:0a.0", since) == {"0000:0a:00.0": "kept"}
    await bench.inject("interrupt_delay", "00:0a.0", service=service, for_s=0.0)


@pytest.mark.parametrize("late_s", some_of([0.0, 0.03, 0.1], 0, 2))
@pytest.mark.parametrize("service", ["hotplug", "aer"])
async def test_p3_link_down_may_be_heard_before_with_or_after_aer(bench: Bench, service: str, late_s: float) -> None:
    await bench.inject("interrupt_delay", "00:0b.0", service=service, for_s=late_s)
    since = bench.mark()
    async with keeps(bench, "00:0b.0", resets=True):
        await bench.inject("error", "0b:00.0", names=["MalfTLP"])
        await bench.inject("link_flap", "00:0b.0", for_s=0.2)
        assert await recovered(bench, "00:0b.0", since) == {"0000:0b:00.0": "kept"}
    await bench.inject("interrupt_delay", "00:0b.0", service=service, for_s=0.0)


async def test_p3_the_link_goes_down_80_ms_before_containment_says_why(bench: Bench) -> None:
    since = bench.mark()
    async with keeps(bench, "00:0a.0", resets=True):
        await bench.inject("dpc", "00:0a.0", reason="uncorrectable", after_s=0.08)
        await bench.inject("link_flap", "00:0a.0", for_s=0.3)
        assert set((await recovered(bench, "00:0a.0", since)).values()) == {"kept"}
