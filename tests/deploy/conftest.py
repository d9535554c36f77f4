"""Real containers: the image, built of this tree, and keys for the deployments under test."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from . import engine, standins
from .deployment import Deployment

IMAGE: Final = "holdfast:test"
_BUILD_S: Final = 600.0


@pytest.fixture(scope="session")
def variables() -> dict[str, str]:
    """What compose is told: the images, stand-ins where the public ones cannot be pulled."""
    if (reason := engine.missing()) is not None:
        pytest.skip(reason)
    try:
        return {"HOLDFAST_IMAGE": IMAGE, **standins.images()}
    except standins.Unavailable as reason_:
        pytest.skip(str(reason_))


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as the README has it made."""
    directory = tmp_path_factory.mktemp("deploy") / "keys"
    make_keys(directory)
    return directory


@pytest.fixture(scope="session")
def image(variables: dict[str, str], keys: Path) -> str:
    """The image, as compose builds it."""
    builder = Deployment("compose.yaml", "holdfast-test-build", keys, variables, ports=())
    builder.compose("build", "coordinator", timeout_s=_BUILD_S)
    return IMAGE


class Deployments:
    """Makes deployments with a name and ports of their own, and takes them down."""

    def __init__(self, variables: dict[str, str], keys: Path) -> None:
        self._variables = variables
        self._keys = keys
        self._made: list[Deployment] = []

    def __call__(self, file: str, *, servers: int = 1, keys: Path | None = None) -> Deployment:
        ports = tuple(_free_port() for _ in range(servers + 1))
        environment = {**self._variables, "HOLDFAST_MONITOR_PORT": str(ports[-1])}
        project = f"holdfast-test-{os.getpid()}-{ports[-1]}"
        self._made.append(Deployment(file, project, keys or self._keys, environment, ports=ports[:-1]))
        return self._made[-1]

    def remove(self) -> None:
        for deployment in self._made:
            deployment.remove()


@pytest.fixture(scope="module")
def deploy(variables: dict[str, str], keys: Path, image: str) -> Iterator[Deployments]:
    """Make deployments for the tests of one module."""
    deployments = Deployments({**variables, "HOLDFAST_IMAGE": image}, keys)
    yield deployments
    deployments.remove()


@pytest.fixture(scope="session")
def lab(variables: dict[str, str], keys: Path, image: str) -> Iterator[Deployment]:
    """compose.yaml as it is, up and healthy; the last test stops it."""
    deployments = Deployments({**variables, "HOLDFAST_IMAGE": image}, keys)
    deployment = deployments("compose.yaml")
    try:
        deployment.up()
        yield deployment
    finally:
        deployments.remove()


def make_keys(directory: Path) -> None:
    """Run `holdfast keys init` for the hosts of both compose files."""
    command = [sys.executable, "-m", "services.console", "keys", "init", str(directory), "--hosts", "lab,host-a,host-b"]
    subprocess.run(command, check=True, capture_output=True, timeout=engine.COMMAND_S)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
