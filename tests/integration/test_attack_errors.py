"""Attacks on P3, P6, P9 and P10 around errors: floods, nested containment, lost interrupts, services that are gone."""

from __future__ import annotations

import asyncio

import pytest

from shared.protocol.facts import What
from tests.integration.attack import lose_hints, pending
from tests.integration.fleet import Bench
from tests.integration.promises import keeps, opened, quiet, verdicts

pytestmark = pytest.mark.asyncio(loop_scope="session")

FLOOD = 1000
AT_ONCE, EACH_S = 10, 5.0  # facts at once, and one for each so many seconds after that


@pytest.fixture
def bench(attacked: Bench) -> Bench:
    """Take the fleet whose ports may be broken."""
    return attacked


async def recovered(bench: Bench, port: str, since: int) -> dict[str, str]:
    started = await bench.wait_fact(What.RECOVERY_STARTED, port, since=since)
    return verdicts(await bench.closed(port, started.lease))


async def test_a_flood_of_correctable_errors_is_limited_in_facts_and_leaves_nothing_latched(bench: Bench) -> None:
    since, began = bench.mark(), asyncio.get_running_loop().time()
    async with keeps(bench, "00:01.0"):
        await bench.inject("error", "01:00.0", names=["BadTLP"], count=FLOOD, for_s=1.0)
        # Another root port's fatal error in the middle of it is recovered all the same.
        async with keeps(bench, "00:02.0", resets=True):
            mark = bench.mark()
            await bench.inject("error", "02:00.0", names=["MalfTLP"])
            assert set((await recovered(bench, "00:02.0", mark)).values()) == {"kept"}

        async def calm() -> bool | None:
            return not await pending(bench, "00:01.0") or None

        await bench.eventually(calm, "nothing latched")
    told = bench.facts(What.ERROR_CORRECTABLE, since=since)
    took_s = asyncio.get_running_loop().time() - began
    assert 0 < len(told) <= AT_ONCE + 1 + took_s / EACH_S
    assert not opened(bench, since, "00:01.0")
    assert not await pending(bench, "01:00.0")


async def test_p6_containment_at_two_levels_at_once_is_recovered_from_above(bench: Bench) -> None:
    since = bench.mark()
    async with keeps(bench, "00:04.0", resets=True), keeps(bench, "00:01.0", resets=True):
        await bench.inject("dpc", "21:00.0", reason="uncorrectable")
        await bench.inject("dpc", "00:04.0", reason="uncorrectable")
        await bench.inject("dpc", "00:01.0", reason="uncorrectable")
        first, second = await asyncio.gather(recovered(bench, "00:04.0", since), recovered(bench, "00:01.0", since))
        assert set(first.values()) | set(second.values()) == {"kept"}
    for port in ("00:04.0", "21:00.0", "21:01.0", "00:01.0"):
        assert not await pending(bench, port)


async def test_p9_lost_interrupts_of_containment_cost_latency_only(bench: Bench) -> None:
    await lose_hints(bench, "00:01.0")
    since = bench.mark()
    async with keeps(bench, "00:01.0", resets=True):
        await bench.inject("dpc", "00:01.0", reason="rp_pio")
        assert set((await recovered(bench, "00:01.0", since)).values()) == {"kept"}
    await lose_hints(bench, "00:01.0", lost=False)


@pytest.mark.parametrize(("victim", "port", "what"), [("aer", "00:02.0", "error"), ("dpc", "00:01.0", "dpc")])
async def test_p3_p10_an_error_while_its_service_is_dead_is_deferred_reported_and_recovered(
    bench: Bench, victim: str, port: str, what: str
) -> None:
    bench.kill(victim)
    since = bench.mark()
    async with keeps(bench, port, resets=True):
        if what == "dpc":
            await bench.inject("dpc", port, reason="uncorrectable")
            deferred = await bench.wait_fact(What.SLOT_DEFERRED, port, since=since)
            assert "DPC triggered" in deferred.data["why"]
        else:
            await bench.inject("error", "02:00.0", names=["MalfTLP"])
            await bench.inject("link_flap", port, for_s=0.1)
            deferred = await bench.wait_fact(What.SLOT_DEFERRED, port, since=since)
            assert "has received ERR_FATAL" in deferred.data["why"]
        await asyncio.sleep(0.5)
        assert not bench.facts(What.DEVICE_REMOVED, since=since)
        await bench.restart(victim)
        assert set((await recovered(bench, port, since)).values()) == {"kept"}
    assert not await pending(bench, port)


async def test_two_errors_at_once_are_both_counted_and_multiple_is_cleared(bench: Bench) -> None:
    since = bench.mark()
    async with keeps(bench, "00:01.0", resets=False):
        await bench.inject("error", "01:00.0", names=["BadTLP"])
        await bench.inject("error", "01:00.1", names=["BadDLLP"])

        async def both() -> bool | None:
            told = {str(fact.data["function"]) for fact in bench.facts(What.ERROR_CORRECTABLE, since=since)}
            return told == {"0000:01:00.0", "0000:01:00.1"} or None

        await bench.eventually(both, "both errors")
    await quiet(bench, "00:01.0")
    for port in ("00:01.0", "01:00.0", "01:00.1"):
        assert not await pending(bench, port)


async def test_p3_aer_fatal_behind_a_switch_port_without_containment_resets_that_port_alone(bench: Bench) -> None:
    since = bench.mark()
    async with keeps(bench, "00:03.0"):
        await bench.inject("error", "12:00.0", names=["MalfTLP"])
        assert await recovered(bench, "11:00.0", since) == {"0000:12:00.0": "kept"}
    touched = {str(fact.data["function"]) for fact in bench.facts(What.RECOVERY_VOTE, since=since)}
    assert touched == {"0000:12:00.0"}


async def test_a_driver_that_never_answers_fails_alone(bench: Bench) -> None:
    await bench.hang("01:00.1", "error_detected")
    since = bench.mark()
    async with keeps(bench, "00:01.0", resets=True):
        await bench.inject("dpc", "00:01.0", reason="uncorrectable")
        got = await recovered(bench, "00:01.0", since)
    assert got == {"0000:01:00.0": "kept", "0000:01:00.1": "failed"}
    await bench.answer("01:00.1")
