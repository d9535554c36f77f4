"""Two coordinators share two hosts: each takes what it names first, and takes over what the other leaves."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from services.console._exit import ExitCode
from shared.pcie import Address
from shared.protocol import Refused, subjects
from shared.protocol.fabric import Open, OpenReply, Rank, Reach, Role
from shared.protocol.facts import Fact, What
from shared.protocol.requests import Cause
from tests.integration.cli import Cli
from tests.integration.cluster import HOSTS, Cluster, contained, kept, other
from tests.integration.fleet import Bench
from tests.integration.promises import keeps

pytestmark = pytest.mark.asyncio(loop_scope="module")
_DOES = (What.LEASE_OPENED, What.LEASE_EXECUTED, What.LEASE_ADOPTED, What.LEASE_UNMASKED, What.LEASE_CLOSED)
_SAYS = (What.RECOVERY_STEP, What.RECOVERY_CLOSED)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    quick = {"HOLDFAST_OWNER_S": "2", "HOLDFAST_ALLOWED_S": "2"}
    async with Cluster(tmp_path_factory.mktemp("shared"), servers=1, environment=quick) as running:
        yield running


async def refused(bench: Bench) -> None:
    """Have the fabric refuse something, and wait for the fact: it follows all that the fabric has stated before."""
    since = bench.mark()
    nonsense = Open(
        id="marker",
        port=Address.parse("00:03.0"),
        rank=Rank.USER,
        cause=Cause.USER_RESET,
        holder="test",
        reach=Reach.NOTHING,
        allowed_s=0,
    )
    subject = subjects.command(bench.host, Role.COORDINATOR, "open")
    assert isinstance(await bench.request(subject, nonsense, OpenReply), Refused)
    await bench.wait_fact(What.LEASE_REFUSED, "00:03.0", since=since)


def looks(fact: Fact) -> bool:
    """Tell whether a fact is of hotplug's own looks at a slot, under leases of its own."""
    return fact.cause == Cause.SLOT


@pytest.mark.campaign
async def test_status_and_doctor_say_who_owns_a_host_and_who_stands_by(cluster: Cluster) -> None:
    for host in HOSTS:
        bench, owner = cluster.benches[host], await cluster.owner(host)
        assert owner is not None
        states = {state["service"]: state for state in (await Cli(bench).json("status"))["services"]}
        assert all(state["alive"] for state in states.values())
        assert states["coordinator"]["owner"].startswith(f"{owner}:")
        assert states["coordinator"]["standby"] == [other(owner)]
        assert states["hotplug"]["standby"] == states["machine"]["standby"] == []
        code, out, _ = await Cli(bench).run("doctor", "--json")
        assert code == ExitCode.OK
        assert f"standing by: {other(owner)}" in out


async def test_p7_a_coordinator_that_was_frozen_in_mid_recovery_does_nothing_when_it_is_thawed(
    cluster: Cluster,
) -> None:
    host = HOSTS[0]
    bench, active = cluster.benches[host], await cluster.owner(host)
    assert active is not None
    async with keeps(bench, "00:01.0", resets=True):
        lease = await contained(bench, 1)
        spoken = len(cluster.shared.lines)
        cluster.shared.kill(active, signal.SIGSTOP)
        await kept(bench, 1, lease)
    await bench.wait_fact(What.RECOVERY_CLOSED, "00:01.0", lease=lease)
    await refused(bench)  # so all that was said of the recovery is heard
    since = bench.mark()
    cluster.shared.kill(active, signal.SIGCONT)
    await cluster.shared.said(active, "ownership lost", spoken)
    await cluster.shared.said(active, "standby", spoken)
    cluster.shared.kill(active, signal.SIGTERM)
    assert await cluster.shared.ended(active) == 0  # what it had to say is said
    await refused(bench)  # and so is what the fabric had to say of it
    did = [
        fact for fact in bench.facts(port="00:01.0", since=since) if fact.what in {*_DOES, *_SAYS} and not looks(fact)
    ]
    assert not did
    await kept(bench, 1, lease)
    assert await cluster.owner(host) == other(active)
    await cluster.shared.restart(active)
    await cluster.shared.said(active, "standby", spoken, times=1 + len(HOSTS))


async def test_a_coordinator_told_to_stop_in_mid_recovery_leaves_its_hosts_to_the_other_which_keeps_them(
    cluster: Cluster,
) -> None:
    host = HOSTS[0]
    bench, active = cluster.benches[host], await cluster.owner(host)
    assert active is not None
    async with keeps(bench, "00:02.0", resets=True):
        lease = await contained(bench, 2)
        cluster.shared.kill(active, signal.SIGTERM)
        assert await cluster.shared.ended(active) == 0
        for each in HOSTS:
            await cluster.owned(each, other(active))
        await kept(bench, 2, lease)
    spoken = len(cluster.shared.lines)
    await cluster.shared.restart(active)
    await cluster.shared.said(active, "standby", spoken, times=len(HOSTS))
    for each in HOSTS:
        assert await cluster.owner(each) == other(active)
