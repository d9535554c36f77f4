"""Must show 14: whoever dies in the middle of a masked reset, it ends as if nobody had."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import product

import pytest
import pytest_asyncio

from shared.protocol.facts import What
from tests.integration.campaign import some_of
from tests.integration.conftest import TOPOLOGIES
from tests.integration.fleet import Bench, start
from tests.integration.promises import keeps, verdicts

pytestmark = pytest.mark.asyncio(loop_scope="module")

PHASES = ("error_detected", "slot_reset", "resume")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    """One fleet for all tests here: whoever is killed is started again. Its successors wait briefly."""
    quick = {"HOLDFAST_OWNER_S": "1", "HOLDFAST_ALLOWED_S": "2"}
    text = (TOPOLOGIES / "bench.toml").read_text()
    async with start(text, tmp_path_factory.mktemp("crash"), environment=quick) as running:
        yield running


async def answered(bench: Bench) -> bool:
    """Have the driver answer; for `Bench.eventually` while the bus is away."""
    await bench.answer("01:00.0")
    return True


@pytest.mark.parametrize(("victim", "phase"), some_of(product(("coordinator", "fabric"), PHASES), 0, 1, 2, 4))
async def test_p2_a_service_killed_in_the_middle_of_a_masked_reset(bench: Bench, victim: str, phase: str) -> None:
    await bench.hang("01:00.0", phase)
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
        await bench.answer("01:00.0")
        record = await bench.closed("00:01.0", started.lease)
        assert verdicts(record) == {"0000:01:00.0": "kept"}
    if victim == "coordinator":
        await bench.wait_fact(What.LEASE_ADOPTED, "00:01.0", since=since)


async def test_p2_hotplug_killed_while_a_slot_is_masked_finds_it_as_it_was(bench: Bench) -> None:
    await bench.hang("01:00.0", "error_detected")
    since = bench.mark()
    async with keeps(bench, "00:01.0", resets=True):
        await bench.inject("dpc", "00:01.0", reason="uncorrectable")
        started = await bench.wait_fact(What.RECOVERY_STARTED, "00:01.0", since=since)
        bench.kill("hotplug")
        await bench.restart("hotplug")
        await bench.answer("01:00.0")
        assert verdicts(await bench.closed("00:01.0", started.lease)) == {"0000:01:00.0": "kept"}


async def test_p2_the_bus_killed_in_the_middle_of_a_masked_reset(bench: Bench) -> None:
    await bench.hang("01:00.0", "slot_reset")
    since = bench.mark()
    async with keeps(bench, "00:01.0", resets=True):
        await bench.inject("dpc", "00:01.0", reason="uncorrectable")
        started = await bench.wait_fact(What.RECOVERY_STARTED, "00:01.0", since=since)
        bench.kill("nats")
        await bench.restart("nats")
        await bench.eventually(lambda: answered(bench), "the driver answers again")
        assert verdicts(await bench.closed("00:01.0", started.lease)) == {"0000:01:00.0": "kept"}
        await bench.wait_fact(What.LEASE_CLOSED, "00:01.0", since=since)  # what was said meanwhile comes late
