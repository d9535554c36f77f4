"""Must show 14, by force: holders that are frozen, robbed or forgotten, and a bus that loses its memory."""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from shared.pcie import Address
from shared.protocol import subjects
from shared.protocol.fabric import Adopt, Adopted, AdoptReply, Open, Opened, OpenReply, Rank, Reach, Role
from shared.protocol.facts import What
from shared.protocol.requests import AcceptReply, Cause, Recover, Reset, ResetMethod
from tests.integration.conftest import TOPOLOGIES, StartFleet
from tests.integration.fleet import Bench, start
from tests.integration.promises import enables, keeps, opened, verdicts
from tests.integration.slots import NEVER_S

BENCH = (TOPOLOGIES / "bench.toml").read_text()
SWITCH = (TOPOLOGIES / "switch.toml").read_text()
QUICK = {"HOLDFAST_OWNER_S": "1", "HOLDFAST_ALLOWED_S": "1", "HOLDFAST_RECONCILE_S": "3"}
PORT, CARD = Address.parse("00:01.0"), "01:00.0"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def quick(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    """One fleet for those tests here that kill nobody."""
    async with start(BENCH, tmp_path_factory.mktemp("quick"), environment=QUICK) as running:
        yield running


async def entered(bench: Bench, port: Address | str, step: str, since: int) -> None:
    """Wait until a recovery of the port has begun a step."""

    async def look() -> bool | None:
        return step in {fact.data["step"] for fact in bench.facts(What.RECOVERY_STEP, port, since)} or None

    await bench.eventually(look, f"step {step} of {port}")


async def begun(bench: Bench, since: int, step: str) -> str:
    """Have the port contained, and a driver not return from one callback; return the lease when that has begun."""
    await bench.hang(CARD, step)
    await bench.inject("dpc", PORT, reason="uncorrectable")
    started = await bench.wait_fact(What.RECOVERY_STARTED, PORT, since=since)
    await entered(bench, PORT, step, since)
    assert started.lease is not None
    return started.lease


async def answered(bench: Bench) -> bool:
    """Have the driver answer; for `Bench.eventually` while the bus is away."""
    await bench.answer(CARD)
    return True


async def free(bench: Bench) -> None:
    """Wait until no lease is open."""

    async def look() -> bool | None:
        return None if (await bench.leases()).leases else True

    await bench.eventually(look, "no lease")


async def test_p7_a_coordinator_frozen_past_its_time_is_deposed_and_begins_nothing(fleet: StartFleet) -> None:
    """What waited in its socket is old; what it held has been finished by the one that stood by."""
    bench = await fleet(BENCH, environment=QUICK)
    await bench.fleet.spawn("coordinator", "standby")
    since = bench.mark()
    async with keeps(bench, str(PORT), resets=True):
        lease = await begun(bench, since, "slot_reset")
        bench.kill("coordinator", signal.SIGSTOP)
        await bench.answer(CARD)
        record = await bench.closed(PORT, lease)
        assert verdicts(record) == {"0000:01:00.0": "kept"}
        after = bench.mark()
        old = Recover(port=PORT, cause=Cause.DPC, functions=(PORT,))
        for _ in range(6):  # of two that listen, one is frozen
            asking = bench.bus.request(subjects.coordinator(bench.host, "recover"), old, AcceptReply, timeout_s=0.3)
            await asyncio.gather(asking, return_exceptions=True)
        bench.kill("coordinator", signal.SIGCONT)
        await asyncio.sleep(2)
    assert bench.facts(What.LEASE_ADOPTED, PORT, since)
    assert not opened(bench, after, PORT)
    assert await bench.recovery(PORT) == record


@pytest.mark.asyncio(loop_scope="module")
async def test_p9_asking_again_to_recover_a_healthy_port_masks_and_resets_nothing(quick: Bench) -> None:
    bench = quick
    since = bench.mark()
    async with keeps(bench, str(PORT), resets=False):
        for cause in (Cause.DPC, Cause.AER_FATAL, Cause.AER_NONFATAL):
            asked = Recover(port=PORT, cause=cause, functions=(Address.parse(CARD),))
            await bench.request(subjects.coordinator(bench.host, "recover"), asked, AcceptReply)
            closed = await bench.wait_fact(What.RECOVERY_CLOSED, PORT, since=since)
            assert closed.data["why"] == "nothing is left to recover"
    assert not opened(bench, since, PORT)


@pytest.mark.asyncio(loop_scope="module")
async def test_p2_a_lease_that_is_lost_again_and_again_ends_unmasked_still(quick: Bench) -> None:
    """However often a successor fails, another one follows: nobody else would end the mask."""
    bench = quick
    before, since = await enables(bench, [PORT]), bench.mark()
    command = Open(
        id="x-robbed", port=PORT, rank=Rank.EXTERNAL, cause=Cause.HOLD, holder="test", reach=Reach.RESET, allowed_s=0.5
    )
    opened = await bench.request(subjects.command(bench.host, Role.COORDINATOR, "open"), command, OpenReply)
    assert isinstance(opened, Opened)
    assert (await enables(bench, [PORT]))[str(PORT)] == 0
    for number in range(3):

        async def adopted(count: int = number + 1) -> bool | None:
            facts = bench.facts(What.LEASE_ADOPTED, PORT, since)
            return sum(fact.data["holder"] != "robber" for fact in facts) == count or None

        await bench.eventually(adopted, f"takeover {number + 1}")
        robbing = Adopt(id="x-robbed", holder="robber")
        robbed = await bench.request(subjects.command(bench.host, Role.COORDINATOR, "adopt"), robbing, AdoptReply)
        assert isinstance(robbed, Adopted)
    await free(bench)
    assert await enables(bench, [PORT]) == before


async def test_p2_the_bus_loses_its_memory_in_the_middle_of_a_masked_reset(fleet: StartFleet) -> None:
    bench = await fleet(BENCH, environment=QUICK)
    before = await enables(bench, [PORT])
    await begun(bench, bench.mark(), "slot_reset")
    bench.kill("nats")
    await bench.fleet.ended("nats")
    for store in bench.fleet.state_dir.rglob("jetstream"):
        shutil.rmtree(store)
    await bench.restart("nats")
    await bench.eventually(lambda: answered(bench), "the driver answers again")
    await free(bench)
    assert await enables(bench, [PORT]) == before

    async def registered() -> bool | None:
        return "0000:01:00.0" in await bench.registry() or None

    await bench.eventually(registered, "a registry again")
    await bench.inject("dpc", PORT, reason="uncorrectable")

    async def masked() -> bool | None:
        return any(lease.rank is Rank.RECOVERY for lease in (await bench.leases()).leases) or None

    await bench.eventually(masked, "another recovery")
    await free(bench)
    assert await enables(bench, [PORT]) == before


async def test_p2_a_fabric_started_while_the_machine_is_away_unmasks_when_it_is_back(fleet: StartFleet) -> None:
    bench = await fleet(BENCH, environment=QUICK)
    async with keeps(bench, str(PORT), resets=True):
        lease = await begun(bench, bench.mark(), "slot_reset")
        bench.kill("machine", signal.SIGSTOP)
        bench.kill("fabric")
        await bench.fleet.ended("fabric")
        await bench.fleet.spawn("fabric")  # not ready before it has seen the hardware
        await asyncio.sleep(2)
        bench.kill("machine", signal.SIGCONT)
        await bench.answer(CARD)
        await bench.closed(PORT, lease)


async def test_p3_a_driver_that_an_absorbed_recovery_had_unbound_is_bound_again_by_its_heir(fleet: StartFleet) -> None:
    bench = await fleet(SWITCH)
    await bench.inject("driver", "04:00.0", driver={"name": "nvme", "callbacks": False})
    await bench.inject("slow_ready", "02:01.0", for_s=NEVER_S)
    since = bench.mark()
    await bench.inject("dpc", "02:01.0", reason="uncorrectable")
    await entered(bench, "02:01.0", "ready", since)
    await bench.inject("dpc", "00:01.0", reason="uncorrectable")
    await bench.inject("slow_ready", "02:01.0")
    started = await bench.wait_fact(What.RECOVERY_STARTED, "00:01.0", since=since)
    record = await bench.closed("00:01.0", started.lease)
    assert verdicts(record)["0000:04:00.0"] == "rebound"


@pytest.mark.asyncio(loop_scope="module")
async def test_a_driver_that_prepared_for_a_reset_hears_its_end_from_the_recovery_that_absorbs_it(
    quick: Bench,
) -> None:
    bench = quick
    await bench.inject("slow_ready", PORT, for_s=NEVER_S)
    since = bench.mark()
    async with keeps(bench, str(PORT), resets=True):
        asked = Reset(function=Address.parse(CARD), method=ResetMethod.SLOT)
        await bench.request(subjects.coordinator(bench.host, "reset"), asked, AcceptReply)
        await entered(bench, PORT, "ready", since)
        await bench.inject("dpc", PORT, reason="uncorrectable")
        await bench.inject("slow_ready", PORT)
        absorbed = await bench.wait_fact(What.LEASE_ABSORBED, PORT, since=since)
        await bench.closed(PORT, absorbed.data["heir"])
    told = [fact.data["step"] for fact in bench.facts(What.RECOVERY_VOTE, since=since)]
    assert told == ["reset_prepare", "error_detected", "slot_reset", "reset_done", "resume"]


@pytest.mark.campaign
async def test_a_driver_that_takes_long_to_bind_is_bound_once_and_waited_for(fleet: StartFleet) -> None:
    slow = 'driver = {name = "nvme", delay_s = {bind = 5.0}}'
    bench = await fleet(BENCH.replace('driver = {name = "nvme"}', slow, 1))
    device = (await bench.registry())["0000:01:00.0"]
    assert (device.driver, device.generation) == ("nvme", 1)
