"""A compose project of the project's own files under test, and the `holdfast` command beside it, as operator."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from . import engine

DEPLOY: Final = Path(__file__).parents[2] / "deploy"
UP_S: Final = 240.0
HEALTHY_S: Final = 120.0
WAIT_S: Final = 60.0
_POLL_S: Final = 0.2

T = TypeVar("T")


class Deployment:
    """One project: `remove` leaves nothing of it but the image.

    `ports` are those of this machine where the bus is published, one for each of `servers`.
    """

    def __init__(
        self, file: str, project: str, keys: Path, environment: Mapping[str, str], *, ports: tuple[int, ...]
    ) -> None:
        command = engine.compose()
        assert command is not None
        self._command = (*command, "-p", project, "-f", str(DEPLOY / file))
        self.project = project
        self.files = DEPLOY
        # Without what a developer's shell has of Holdfast: the files' own defaults are under test.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")}
        names = ("HOLDFAST_PORT", "HOLDFAST_PORT_2", "HOLDFAST_PORT_3")
        published = {name: str(port) for name, port in zip(names, ports, strict=False)}
        self.environment = {**inherited, **environment, **published, "HOLDFAST_KEYS": str(keys)}
        self._operator = {
            **inherited,
            "HOLDFAST_NATS_URL": ",".join(f"nats://127.0.0.1:{port}" for port in ports),
            "HOLDFAST_NATS_CREDENTIAL": str(keys / "operator.nk"),
            "HOLDFAST_NATS_CA": str(keys / "ca.pem"),
        }

    def remove(self) -> None:
        """Take everything down, volumes too."""
        self.try_compose("down", "--volumes", "--remove-orphans")

    # --- Compose ---

    def try_compose(self, *arguments: str, timeout_s: float = UP_S) -> tuple[int, str]:
        """Run a compose command; return its exit code and all that it printed."""
        ended = subprocess.run(
            [*self._command, *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout_s,
            check=False,
        )
        return ended.returncode, ended.stdout.decode()

    def compose(self, *arguments: str, timeout_s: float = UP_S) -> str:
        """Run a compose command that must succeed; return what it printed."""
        code, out = self.try_compose(*arguments, timeout_s=timeout_s)
        assert code == 0, f"compose {' '.join(arguments)}: {code}\n{out}"
        return out

    def up(self) -> None:
        """Start everything, and wait until all of it is healthy."""
        code, out = self.try_compose("up", "-d")
        assert code == 0, f"{out}\n{self.compose('logs', '--no-color', '--tail', '20')}"
        self.healthy(*self.services())

    def services(self) -> tuple[str, ...]:
        """Return the services that have a container, running or not."""
        return tuple(sorted(self._containers('{{.Label "com.docker.compose.service"}}')))

    def container(self, service: str) -> str:
        """Return the id of a service's container, running or not."""
        (found,) = self._containers("{{.ID}}", f"com.docker.compose.service={service}")
        return found

    def _containers(self, shown: str, *labels: str) -> list[str]:
        project = (f"com.docker.compose.project={self.project}", "com.docker.compose.oneoff=False")
        filters = [argument for label in (*project, *labels) for argument in ("--filter", f"label={label}")]
        return engine.docker("ps", "-a", *filters, "--format", shown).split()

    def state(self, service: str) -> Any:
        """Return the state of a service's container, as the engine has it."""
        return engine.inspect(self.container(service))["State"]

    def health(self, service: str) -> str:
        """Return what the engine makes of the health checks of a service."""
        status: str = self.state(service)["Health"]["Status"]
        return status

    def _is_healthy(self, service: str) -> bool | None:
        return self.health(service) == "healthy" or None

    def healthy(self, *services: str) -> None:
        """Wait until these services are healthy."""
        for service in services:
            self.eventually(partial(self._is_healthy, service), f"{service} healthy", HEALTHY_S)

    def execute(self, service: str, *command: str) -> str:
        """Run a command in a service's container."""
        return engine.docker("exec", self.container(service), *command)

    def log(self, service: str) -> list[dict[str, Any]]:
        """Return what a service of Holdfast logged: one object for each line."""
        lines = self.compose("logs", "--no-color", service).splitlines()
        return [json.loads(line[line.index("{") :]) for line in lines if "{" in line]

    # --- The command ---

    def holdfast(self, *arguments: str) -> tuple[int, str, str]:
        """Run `holdfast` on this machine, as operator, over the published port: exit code, stdout and stderr."""
        ended = subprocess.run(
            [sys.executable, "-m", "services.console", *arguments],
            env=self._operator,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=False,
        )
        return ended.returncode, ended.stdout, ended.stderr

    def asked(self, *arguments: str) -> list[Any]:
        """Return the documents that a command prints with --json. Raises AssertionError where it fails."""
        code, out, err = self.holdfast(*arguments, "--json")
        assert code == 0, f"{arguments}: {code} {err}{out}"
        return [json.loads(line) for line in out.splitlines()]

    # --- Waiting ---

    def eventually(self, look: Callable[[], T | None], what: str, timeout_s: float = WAIT_S) -> T:
        """Look until there is something, and return it."""
        deadline = time.monotonic() + timeout_s
        while True:
            found = look()
            if found is not None:
                return found
            assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
            time.sleep(_POLL_S)
