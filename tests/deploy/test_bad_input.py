"""Issue 3, bad input: each is named, has an exit code of its own, and leaves nothing half started."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest

from tests.deploy.conftest import Deployments, make_keys
from tests.deploy.deployment import Deployment

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def bus(deploy: Deployments) -> Deployment:
    """A deployment of which only the bus runs."""
    deployment = deploy("compose.yaml")
    deployment.compose("up", "-d", "nats")
    deployment.healthy("nats")
    return deployment


def ended(deployment: Deployment, service: str, *options: str) -> tuple[int, str]:
    """Run a service with options of `compose run` until it ends; return exit code and what it said."""
    return deployment.try_compose("run", "--rm", "--no-deps", "-T", *options, service)


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("HOLDFAST_LEASE_SILENCE_S=5", "HOLDFAST_LEASE_SILENCE_S"),
        ("HOLDFAST_OWNER_S=0.01", "HOLDFAST_OWNER_S"),
        ("HOLDFAST_TLS=maybe", "HOLDFAST_TLS"),
    ],
)
def test_a_bad_setting_is_named(bus: Deployment, setting: str, named: str) -> None:
    code, said = ended(bus, "hotplug", "-e", setting)
    assert code == 2, said
    assert named in said


def test_a_missing_credential_is_named(bus: Deployment) -> None:
    code, said = ended(bus, "hotplug", "-e", "HOLDFAST_NATS_CREDENTIAL=/run/secrets/none")
    assert code == 77, said
    assert "/run/secrets/none" in said


def test_a_server_of_another_authority_is_not_trusted(bus: Deployment, tmp_path: Path) -> None:
    make_keys(tmp_path / "other")
    other = tmp_path / "other" / "ca.pem"
    code, said = ended(bus, "hotplug", "-v", f"{other}:/other.pem:ro", "-e", "HOLDFAST_NATS_CA=/other.pem")
    assert code == 76, said
    assert "/other.pem" in said


def test_a_ledger_on_a_volume_that_cannot_be_written_is_named(bus: Deployment, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    code, said = ended(bus, "fabric", "-v", f"{tmp_path}:/elsewhere", "-e", "HOLDFAST_LEDGER=/elsewhere/ledger")
    assert code == 74, said
    assert "/elsewhere" in said


def test_a_port_for_health_that_cannot_be_had_is_named(bus: Deployment) -> None:
    code, said = ended(bus, "hotplug", "-e", "HOLDFAST_HEALTH=203.0.113.1:9462")
    assert code == 71, said
    assert "203.0.113.1:9462" in said


def test_an_unreadable_credential_shows_as_a_container_that_does_not_run(
    deploy: Deployments, tmp_path: Path, keys: Path
) -> None:
    own = Path(shutil.copytree(keys, tmp_path / "keys"))
    (own / "hotplug.nk").chmod(0o600)
    deployment = deploy("compose.yaml", keys=own)
    deployment.compose("up", "-d", "--no-deps", "hotplug")

    def refused() -> int | None:
        state = deployment.state("hotplug")
        return state["ExitCode"] if state["Restarting"] else None  # again and again, ever more slowly

    assert deployment.eventually(refused, "hotplug ends") == 77
    assert deployment.health("hotplug") != "healthy"
    assert "/run/secrets/credential" in deployment.compose("logs", "--no-color", "hotplug")


def test_a_published_port_in_use_stops_compose_and_is_named(deploy: Deployments) -> None:
    deployment = deploy("compose.yaml")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", int(deployment.environment["HOLDFAST_PORT"])))
        taken.listen()
        code, said = deployment.try_compose("up", "-d")
    assert code != 0
    assert deployment.environment["HOLDFAST_PORT"] in said
    assert set(deployment.services()) <= {"nats"}


def test_without_keys_nothing_starts_and_no_directory_is_made_in_their_place(
    deploy: Deployments, tmp_path: Path
) -> None:
    deployment = deploy("compose.yaml", keys=tmp_path / "none")
    code, said = deployment.try_compose("up", "-d")
    assert code != 0
    assert "users.conf" in said
    assert not (tmp_path / "none").exists()
