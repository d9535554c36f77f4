"""Must show 14, by force: holders that are frozen, robbed or forgotten, and a bus that loses its memory."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from shared.pcie import Address
from shared.protocol import Refused, subjects
from shared.protocol.fabric import Adopt, Adopted, AdoptReply, Open, Opened, OpenReply, Rank, Reach, Role
from shared.protocol.facts import What
from shared.protocol.requests import Accepted, AcceptReply, Cause, Hold, Recover, Reset, ResetMethod
from shared.runtime import BusError
from tests.integration.attack import pending
from tests.integration.conftest import TOPOLOGIES, StartFleet
from tests.integration.fleet import Bench, start
from tests.integration.promises import enables, keeps, opened, quiet, verdicts
from tests.integration.slots import NEVER_S

BENCH = (TOPOLOGIES / "bench.toml").read_text()
SWITCH = (TOPOLOGIES / "switch.toml").read_text()
QUICK = {"HOLDFAST_OWNER_S": "1", "HOLDFAST_ALLOWED_S": "1", "HOLDFAST_RECONCILE_S": "3"}
INTEGRATED = f"""{BENCH}
[[function]]
address = "00:1e.0"
kind = "event_collector"
vendor = 0x8086
device = 0x2023
collects = ["00:1f.0"]

[[function]]
address = "00:1f.0"
kind = "integrated_endpoint"
vendor = 0x8086
device = 0x2021
flr = true
driver = {{name = "qat"}}
"""
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


@pytest.mark.campaign
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


@pytest.mark.campaign
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


async def test_p6_a_second_cause_that_joined_is_not_forgotten_when_the_coordinator_dies(fleet: StartFleet) -> None:
    """Its asker was told that it is under way: nobody else would ask for the reset."""
    bench = await fleet(BENCH, environment=QUICK)
    port, card = Address.parse("00:03.0"), "03:00.0"
    await bench.hang(card, "error_detected", name="ice")
    since = bench.mark()
    async with keeps(bench, str(port), resets=True):
        await bench.inject("error", card, names=["CmpltTO"], severity="nonfatal")
        started = await bench.wait_fact(What.RECOVERY_STARTED, port, since=since)
        await entered(bench, port, "error_detected", since)
        second = Recover(port=port, cause=Cause.AER_FATAL, functions=(Address.parse(card),))
        reply = await bench.request(subjects.coordinator(bench.host, "recover"), second, AcceptReply)
        assert reply == Accepted(lease=started.lease or "", joined=True)
        bench.kill("coordinator")
        await bench.restart("coordinator")
        await bench.answer(card, name="ice")
        record = await bench.closed(port, started.lease)
    assert "slot_reset" in record.told


async def test_p3_an_integrated_endpoint_that_was_reset_is_told_so_when_the_coordinator_dies(fleet: StartFleet) -> None:
    bench = await fleet(INTEGRATED, environment=QUICK)
    function = "00:1f.0"
    votes = {"name": "qat", "error_detected": "need_reset", "never": ["slot_reset"], "delay_s": 0.0}
    await bench.inject("driver", function, driver=votes)
    since = bench.mark()
    await bench.inject("error", function, names=["CmpltTO"], severity="nonfatal")
    started = await bench.wait_fact(What.RECOVERY_STARTED, function, since=since)
    await entered(bench, function, "slot_reset", since)
    bench.kill("coordinator")
    await bench.restart("coordinator")
    await bench.answer(function, name="qat")
    record = await bench.closed(function, started.lease)
    assert "slot_reset" in record.told
    assert {str(verdict) for verdict in record.verdicts.values()} == {"kept"}


async def test_p9_an_error_of_a_card_that_was_seated_later_is_recovered_when_it_has_waited(fleet: StartFleet) -> None:
    """Registers decide whether it still is needed, and the coordinator started before the card was there."""
    bench = await fleet(BENCH, environment=QUICK)
    port, card = "00:06.0", "06:00.0"
    await bench.inject("insert", port)
    await bench.wait_fact(What.DEVICE_ADDED, port)
    await quiet(bench, port)
    await bench.hang(card, "resume")
    since = bench.mark()
    await bench.inject("dpc", port, reason="uncorrectable")
    await entered(bench, port, "resume", since)
    await bench.inject("error", card, names=["CmpltAbrt"], severity="nonfatal")
    waiting = await bench.wait_fact(What.RECOVERY_WAITING, port, since=since)

    async def acknowledged() -> bool | None:
        return "root" not in await pending(bench, port) or None

    await bench.eventually(acknowledged, "aer has heard that it is accepted")
    await bench.answer(card)
    assert verdicts(await bench.closed(port, waiting.lease)) == {"0000:06:00.0": "kept"}


async def test_p7_a_hold_whose_user_lives_is_known_to_the_next_coordinator_from_its_first_answer_on(
    fleet: StartFleet,
) -> None:
    """Who is told that his hold has ended kills his program, in the middle of what it flashes."""
    bench = await fleet(BENCH, environment={"HOLDFAST_OWNER_S": "1", "HOLDFAST_ALLOWED_S": "15"})
    asked = Hold(port=PORT, holder="a test")
    hold = await bench.request(subjects.coordinator(bench.host, "hold"), asked, AcceptReply)
    assert isinstance(hold, Accepted)
    renewing, replies = Hold(port=PORT, holder="a test", lease=hold.lease), []
    ready = asyncio.Event()

    async def renews() -> None:
        while not ready.is_set():
            with contextlib.suppress(BusError):
                subject = subjects.coordinator(bench.host, "hold")
                replies.append(await bench.bus.request(subject, renewing, AcceptReply, timeout_s=0.3))

    users = [asyncio.create_task(renews()) for _ in range(8)]
    bench.kill("coordinator")
    await bench.restart("coordinator")
    ready.set()
    await asyncio.gather(*users)
    assert {reply for reply in replies if isinstance(reply, Refused)} == set()
    assert isinstance(replies[-1], Accepted)


@pytest.mark.campaign
async def test_a_driver_that_takes_long_to_bind_is_bound_once_and_waited_for(fleet: StartFleet) -> None:
    slow = 'driver = {name = "nvme", delay_s = {bind = 5.0}}'
    bench = await fleet(BENCH.replace('driver = {name = "nvme"}', slow, 1))
    device = (await bench.registry())["0000:01:00.0"]
    assert (device.driver, device.generation) == ("nvme", 1)
