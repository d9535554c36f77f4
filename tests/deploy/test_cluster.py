"""Issue 3, must show 2: a server of the bus may stop, and a coordinator; hosts recover beside each other."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Final

import pytest

from tests.deploy.conftest import Deployments
from tests.deploy.deployment import Deployment
from tests.deploy.host import DRIVER_S, Host, now

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(1200)]

COORDINATORS: Final = ("coordinator-1", "coordinator-2")
SERVERS: Final = ("nats-1", "nats-2", "nats-3")


@pytest.fixture(scope="module")
def cluster(deploy: Deployments) -> Deployment:
    deployment = deploy("compose.cluster.yaml", servers=3)
    deployment.up()
    return deployment


@pytest.fixture
def hosts(cluster: Deployment) -> tuple[Host, Host]:
    return Host(cluster, "host-a"), Host(cluster, "host-b")


def test_each_coordinator_takes_the_host_that_it_names_first(cluster: Deployment, hosts: tuple[Host, Host]) -> None:
    for host in hosts:
        host.run("doctor")

    def shared() -> bool | None:
        return tuple(host.owner("coordinator") for host in hosts) == COORDINATORS or None

    assert cluster.eventually(shared, "the hosts are shared")


def test_two_hosts_recover_at_the_same_time(hosts: tuple[Host, Host]) -> None:
    before = [host.generations() for host in hosts]
    with ThreadPoolExecutor() as operators:
        leases = list(operators.map(lambda host: host.contain(driver_s=DRIVER_S), hosts))
    a, b = (host.closed(lease) for host, lease in zip(hosts, leases, strict=True))
    assert a.began < b.ended
    assert b.began < a.ended
    assert [host.generations() for host in hosts] == before
    assert [host.masked() for host in hosts] == [[], []]


def test_p3_a_recovery_goes_on_when_a_server_of_the_bus_stops(cluster: Deployment, hosts: tuple[Host, Host]) -> None:
    host = hosts[0]
    before = host.generations()
    lease = host.contain(driver_s=DRIVER_S)
    stopped = now()
    cluster.compose("stop", leader(cluster))
    assert host.closed(lease).ended > stopped
    assert host.masked() == []
    assert host.generations() == before
    cluster.compose("start", *SERVERS)
    cluster.healthy(*cluster.services())


def leader(cluster: Deployment) -> str:
    """Return the server that leads the records, whose end hurts most."""
    for server in SERVERS:
        report = cluster.execute(server, "wget", "-q", "-O", "-", "http://127.0.0.1:8222/jsz?accounts=1&streams=1")
        _, kept_here, stream = report.partition('"name": "KV_PCIE"')
        if kept_here:
            return stream.partition('"leader": "')[2].partition('"')[0]
    raise AssertionError("no server keeps the records")


def test_p2_the_other_coordinator_takes_over_when_the_active_one_stops(
    cluster: Deployment, hosts: tuple[Host, Host]
) -> None:
    host = hosts[0]
    before = host.generations()
    active = host.owner("coordinator")
    assert active in COORDINATORS
    lease = host.contain(driver_s=DRIVER_S)
    stopped = now()
    cluster.compose("stop", active)
    assert cluster.state(active)["ExitCode"] == 0
    assert host.closed(lease).ended > stopped
    assert host.masked() == []
    assert host.generations() == before
    (other,) = set(COORDINATORS) - {active}
    assert [each.owner("coordinator") for each in hosts] == [other, other]


def test_all_end_in_grace_with_exit_code_0(cluster: Deployment) -> None:
    cluster.compose("stop")
    ends = {service: cluster.state(service)["ExitCode"] for service in cluster.services()}
    assert ends == dict.fromkeys(cluster.services(), 0)
