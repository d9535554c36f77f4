"""Must show 14: whoever dies in the middle of a masked reset, it ends as if nobody had."""

from __future__ import annotations

import pytest

from shared.protocol.facts import What
from tests.integration.conftest import TOPOLOGIES, StartFleet
from tests.integration.promises import keeps, verdicts

BENCH = (TOPOLOGIES / "bench.toml").read_text()
PHASES = ("error_detected", "slot_reset", "resume")


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("victim", ["coordinator", "fabric"])
async def test_p2_a_service_killed_in_the_middle_of_a_masked_reset(fleet: StartFleet, victim: str, phase: str) -> None:
    bench = await fleet(BENCH, environment={"HOLDFAST_OWNER_S": "1"})
    await bench.inject("driver", "01:00.0", driver={"name": "nvme", "delay_s": {phase: 1.0}})
    since = bench.mark()
    async with keeps(bench, "00:01.0", resets=True):
        await bench.inject("dpc", "00:01.0", reason="uncorrectable")
        started = await bench.wait_fact(What.RECOVERY_STARTED, "00:01.0", since=since)

        async def entered() -> bool | None:
            steps = {fact.data["step"] for fact in bench.facts(What.RECOVERY_STEP, "00:01.0", since)}
            return phase in steps or None

        await bench.eventually(entered, f"step {phase}")
        bench.kill(victim)
        await bench.restart(victim)
        record = await bench.closed("00:01.0", started.lease, timeout_s=30)
        assert verdicts(record) == {"0000:01:00.0": "kept"}
    if victim == "coordinator":
        assert bench.facts(What.LEASE_ADOPTED, "00:01.0", since)


async def test_p2_hotplug_killed_while_a_slot_is_masked_finds_it_as_it_was(fleet: StartFleet) -> None:
    bench = await fleet(BENCH, environment={"HOLDFAST_OWNER_S": "1"})
    await bench.inject("driver", "01:00.0", driver={"name": "nvme", "delay_s": {"error_detected": 1.0}})
    since = bench.mark()
    async with keeps(bench, "00:01.0", resets=True):
        await bench.inject("dpc", "00:01.0", reason="uncorrectable")
        started = await bench.wait_fact(What.RECOVERY_STARTED, "00:01.0", since=since)
        bench.kill("hotplug")
        await bench.restart("hotplug")
        assert verdicts(await bench.closed("00:01.0", started.lease, timeout_s=30)) == {"0000:01:00.0": "kept"}


async def test_p2_the_bus_killed_in_the_middle_of_a_masked_reset(fleet: StartFleet) -> None:
    bench = await fleet(BENCH)
    await bench.inject("driver", "01:00.0", driver={"name": "nvme", "delay_s": {"slot_reset": 1.0}})
    since = bench.mark()
    async with keeps(bench, "00:01.0", resets=True):
        await bench.inject("dpc", "00:01.0", reason="uncorrectable")
        started = await bench.wait_fact(What.RECOVERY_STARTED, "00:01.0", since=since)
        bench.kill("nats")
        await bench.restart("nats")
        assert verdicts(await bench.closed("00:01.0", started.lease, timeout_s=40)) == {"0000:01:00.0": "kept"}
