"""Must show 2: a replicated bus, several hosts, two coordinators; and each of them may fail in mid-recovery."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

import pytest
import pytest_asyncio

from shared.protocol import subjects
from shared.protocol.fabric import Rank
from shared.protocol.facts import What
from tests.integration.campaign import some_of
from tests.integration.cluster import BUCKET, COORDINATORS, HOSTS, Cluster, contained, kept, other
from tests.integration.promises import keeps

REPLICAS: Final = 3
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    environment = {"HOLDFAST_REPLICAS": str(REPLICAS)}
    async with Cluster(tmp_path_factory.mktemp("cluster"), servers=3, environment=environment) as running:
        yield running


async def test_services_that_came_before_the_cluster_was_whole_made_its_streams_replicated(cluster: Cluster) -> None:
    for name in (BUCKET, subjects.FACT_STREAM):
        assert (await cluster.bus.stream(name)).config.num_replicas == REPLICAS
    assert all(process.exit_code is None for process in cluster.shared.processes.values())


async def test_p6_two_hosts_are_shared_by_two_coordinators_and_recover_at_the_same_time(cluster: Cluster) -> None:
    assert [await cluster.owner(host) for host in HOSTS] == list(COORDINATORS)
    east, west = (cluster.benches[host] for host in HOSTS)
    async with keeps(east, "00:01.0", resets=True), keeps(west, "00:01.0", resets=True):
        leases = await asyncio.gather(contained(east, 1), contained(west, 1))
        for bench, lease in zip((east, west), leases, strict=True):
            assert [one.id for one in (await bench.leases()).leases if one.rank is Rank.RECOVERY] == [lease]
        for bench, lease in zip((east, west), leases, strict=True):
            await kept(bench, 1, lease)


@pytest.mark.parametrize(("led", "port"), some_of([(True, 2), (False, 3)], 0))
async def test_p2_a_nats_server_killed_in_the_middle_of_a_recovery_which_goes_on(
    cluster: Cluster, *, led: bool, port: int
) -> None:
    """The one that leads the stream of records takes its election with it: 4.5 to 7.5 s in which none is written."""
    bench = cluster.benches[HOSTS[0]]
    since = bench.mark()
    leader = await cluster.bus.leader(BUCKET)
    victim = leader if led else next(name for name in cluster.bus.names if name != leader)
    async with keeps(bench, f"00:{port:02x}.0", resets=True):
        lease = await contained(bench, port)
        await cluster.bus.kill(victim)
        try:
            await kept(bench, port, lease)
        finally:
            await cluster.bus.restart(victim)
            await cluster.bus.whole()
    assert not bench.facts(What.LEASE_ADOPTED, since=since), "it did not go on, it was begun again"


async def test_p2_the_active_coordinator_killed_in_the_middle_of_a_recovery(cluster: Cluster) -> None:
    host = HOSTS[0]
    bench, active = cluster.benches[host], await cluster.owner(host)
    assert active is not None
    since = bench.mark()
    async with keeps(bench, "00:04.0", resets=True):
        lease = await contained(bench, 4)
        cluster.shared.kill(active)
        await kept(bench, 4, lease)
        assert await cluster.owner(host) == other(active)
    await bench.wait_fact(What.LEASE_ADOPTED, "00:04.0", since=since)
    await cluster.shared.restart(active)
