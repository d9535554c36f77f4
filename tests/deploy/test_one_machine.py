"""Issue 3, must show 1: one command runs everything, and what happens to it afterwards loses no device and no mask."""

from __future__ import annotations

import signal
from functools import partial
from typing import Any, Final

import pytest

from tests.deploy import engine
from tests.deploy.conftest import Deployments
from tests.deploy.deployment import Deployment
from tests.deploy.host import CARD, DRIVER_S, PORT, Host, now

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(900)]

TERMINATED: Final = 128 + signal.SIGTERM
SERVICES: Final = ("aer", "coordinator", "dpc", "fabric", "hotplug", "machine")


@pytest.fixture
def host(lab: Deployment) -> Host:
    return Host(lab)


def test_everything_becomes_healthy(lab: Deployment, host: Host) -> None:
    assert lab.services() == (*SERVICES, "nats")
    host.run("doctor")


def test_prometheus_reaches_every_service_where_its_targets_say(lab: Deployment) -> None:
    """From another container, as Prometheus would: from that of the NATS server, which has a client at hand."""
    targets = (lab.files / "observability" / "targets.yml").read_text()
    for service in SERVICES:
        _, found, rest = targets.partition(f'"{service}:')
        assert found, service
        port = rest.partition('"')[0]
        metrics = lab.execute("nats", "wget", "-q", "-O", "-", f"http://{service}:{port}/metrics")
        assert "\nholdfast_" in metrics, service


def test_p3_a_contained_error_is_recovered_and_the_logs_tell_its_story_by_its_lease(
    lab: Deployment, host: Host
) -> None:
    before = host.generations()
    lease = host.contain()
    outcome = host.closed(lease).outcome
    assert all(function in outcome for function in CARD)
    assert host.generations() == before
    assert host.masked() == []
    for service in ("fabric", "coordinator"):
        assert lab.eventually(partial(told_of, lab, service, lease), f"{service} logs {lease}")
    assert "coordinator" in host.run("logs", lease)


def told_of(deployment: Deployment, service: str, lease: str) -> list[dict[str, Any]] | None:
    """Return the lines of `docker-compose logs` of a service that name a lease."""
    return [line for line in deployment.log(service) if line.get("lease") == lease] or None


def test_p2_a_coordinator_killed_in_the_middle_of_a_recovery_leaves_no_mask(lab: Deployment, host: Host) -> None:
    before = host.generations()
    lease = host.contain(driver_s=DRIVER_S)
    assert host.masked() == [PORT]
    killed = now()
    lab.compose("kill", "-s", "SIGKILL", "coordinator")
    assert lab.state("coordinator")["ExitCode"] == 137
    lab.compose("start", "coordinator")
    assert host.closed(lease).ended > killed
    assert host.masked() == []
    assert host.generations() == before
    lab.healthy("coordinator")
    host.run("doctor")


def test_a_service_that_is_stopped_in_its_first_second_is_not_waited_for_and_killed(deploy: Deployments) -> None:
    """It may not have installed its handler yet, without which a container's first process ignores SIGTERM."""
    deployment = deploy("compose.yaml")
    deployment.compose("up", "--no-start", "--no-deps", "hotplug")
    started = deployment.container("hotplug")
    engine.docker("start", started)
    engine.docker("stop", started)
    assert deployment.state("hotplug")["ExitCode"] in {0, TERMINATED}


def test_all_end_in_grace_with_exit_code_0(lab: Deployment) -> None:
    """Looked at between `stop` and `down`, which does the same and takes the evidence away."""
    lab.compose("stop")
    ends = {service: lab.state(service)["ExitCode"] for service in lab.services()}
    assert ends == dict.fromkeys(lab.services(), 0)
    assert {line["event"] for line in lab.log("coordinator")} >= {"stopping", "stopped"}
