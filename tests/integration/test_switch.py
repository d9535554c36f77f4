"""Must show 7: nested slots. What a reset above does to a switch with four hotplug slots."""

from __future__ import annotations

import pytest

from shared.pcie import Address
from shared.protocol.facts import What
from tests.integration.fleet import Bench
from tests.integration.promises import enables, keeps, promises, quiet, verdicts

NESTED = [f"0000:0{3 + slot}:00.0" for slot in range(4)]
SLOTS = [Address.parse(f"02:0{slot}.0") for slot in range(4)]

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.fixture
def bench(switch: Bench) -> Bench:
    """Take the fleet that has a switch."""
    return switch


async def closed(bench: Bench, port: str, since: int) -> dict[str, str]:
    started = await bench.wait_fact(What.RECOVERY_STARTED, port, since=since)
    return verdicts(await bench.closed(port, started.lease))


async def test_p3_containment_above_a_switch_keeps_all_four_and_nested_slot_control(bench: Bench) -> None:
    since, before = bench.mark(), await enables(bench, SLOTS)
    async with keeps(bench, "00:01.0", resets=True):
        await bench.inject("dpc", "00:01.0", reason="uncorrectable")
        got = await closed(bench, "00:01.0", since)
    assert {got[function] for function in NESTED} == {"kept"}
    assert await enables(bench, SLOTS) == before

    since = bench.mark()
    async with keeps(bench, "00:01.0", resets=True):
        await bench.inject("dpc", "02:01.0", reason="uncorrectable")
        await bench.wait_fact(What.RECOVERY_STARTED, "02:01.0", since=since)
        await bench.inject("dpc", "00:01.0", reason="uncorrectable")
        await closed(bench, "00:01.0", since)

    since = bench.mark()
    async with promises(bench):
        await bench.hang("04:00.0", "error_detected")
        await bench.inject("dpc", "00:01.0", reason="uncorrectable")
        await bench.wait_fact(What.RECOVERY_STARTED, "00:01.0", since=since)
        await bench.inject("swap", "02:02.0", card={"0": {"serial": "00-00-00-00-00-00-00-77"}})
        await bench.answer("04:00.0")
        got = await closed(bench, "00:01.0", since)
        await bench.wait_fact(What.DEVICE_ADDED, "02:02.0", since=since)
        await quiet(bench, "00:01.0")
    assert [got[function] for function in NESTED] == ["kept", "kept", "replaced", "kept"]
    touched = {fact.data["function"] for fact in bench.facts(What.DEVICE_REMOVED, since=since)}
    assert touched == {"0000:05:00.0"}


async def test_p6_a_fault_that_aer_and_dpc_both_hear_of_is_one_recovery(bench: Bench) -> None:
    since = bench.mark()
    async with keeps(bench, "00:01.0", resets=True):
        await bench.inject("error", "03:00.0", names=["MalfTLP"])
        await bench.inject("error", "00:01.0", names=["CmpltTO"], severity="nonfatal", after_s=0.02)
        await bench.wait_fact(What.RECOVERY_STARTED, since=since)
        await quiet(bench, "00:01.0")
