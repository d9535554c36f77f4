"""All of Holdfast on one machine: an embedded NATS server and the six services, each a process of its own.

`up`, `demo` and the integration tests use it. Whatever happens to the parent, no child outlives it.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

from shared.protocol import permissions

from . import _nats_server
from ._exit import ExitCode, Failure
from ._process import OnLine, Process, ProcessError

# In the order in which they are stopped: whoever asks goes before whoever answers.
STOP_ORDER: Final = (("coordinator",), ("hotplug", "aer", "dpc"), ("fabric",), ("machine",))
SERVICES: Final = tuple(service for phase in STOP_ORDER for service in phase)
BUS: Final = "nats"

_READY_S: Final = 120.0  # bound for a heavily loaded machine; two to three seconds are usual
_STOP_S: Final = 10.0  # more than a service takes at worst: 6 s to finish, 2 to cancel, and the drain
_ANY_PORT: Final = "127.0.0.1:0"  # several fleets may run here; each service logs where it listens
# Of the command, not of the services.
_PRIVATE: Final = frozenset(
    {"HOLDFAST_LEASE", "HOLDFAST_HOST", "HOLDFAST_NATS_CREDENTIAL", "HOLDFAST_NATS_CA", "HOLDFAST_TLS"}
)


class _LogLine(msgspec.Struct):
    event: str = ""


def _service_ready(line: str) -> bool:
    try:
        return msgspec.json.decode(line, type=_LogLine).event == "ready"
    except msgspec.MsgspecError:
        return False


def _ignore_line(_name: str, _line: str) -> None:
    pass


class Fleet:
    """An async context manager: inside, everything is ready; after it, nothing is left.

    With `keys`, a directory that `keys init` made, the bus is encrypted and each service is the user that it should be.
    `environment` goes to every service, `extra` to single ones (by name), on top of the caller's own. `on_line` is
    told every line that a process writes. Without `state_dir`, state lives in a directory that is removed at the end.
    """

    def __init__(
        self,
        topology: Path,
        *,
        state_dir: Path | None = None,
        port: int | None = None,
        host: str = "lab",
        keys: Path | None = None,
        environment: Mapping[str, str] | None = None,
        extra: Mapping[str, Mapping[str, str]] | None = None,
        on_line: OnLine = _ignore_line,
    ) -> None:
        self.host = host
        self.topology = topology
        self.processes: dict[str, Process] = {}
        self._port = port
        self._keys = keys
        self._environment = dict(environment or {})
        self._extra = {name: dict(values) for name, values in (extra or {}).items()}
        self._on_line = on_line
        # Short-lived and with a short path, as a Unix socket's must be.
        self._scratch = Path(tempfile.mkdtemp(prefix="holdfast-"))
        self.state_dir = state_dir or self._scratch
        self.url = ""

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start the bus, then all services at once; return when all are ready. Raises ProcessError or Failure."""
        try:
            self.state_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            text = f"state directory {self.state_dir} cannot be made ({error.strerror}); name another with --state"
            raise Failure(ExitCode.USAGE, text) from error
        await self.start_bus()
        # The machine and the fabric come first only in the order of starting: each waits for what it needs.
        for service in reversed(SERVICES):
            await self.spawn(service)
        try:
            async with asyncio.TaskGroup() as group:
                for service in SERVICES:
                    group.create_task(self.processes[service].ready(_READY_S))
        except* ProcessError as failed:
            raise _first_cause(failed) from None

    async def start_bus(self) -> None:
        """Start the NATS server; the second time on the port that it had."""
        command = _nats_server.command(self.state_dir, self._port, self._keys)
        server = await Process.start(BUS, command, os.environ, on_line=self._on_line, is_ready=_nats_server.is_ready)
        self.processes[BUS] = server
        self.url = _nats_server.url(await server.ready(_READY_S))
        self._port = int(self.url.rpartition(":")[2])

    async def spawn(self, service: str, name: str | None = None) -> Process:
        """Start one service without waiting for it; under another `name`, a second instance that stands by."""
        name = name or service
        process = await Process.start(
            name,
            (sys.executable, "-m", f"services.{service}"),
            self._environment_of(service, name),
            on_line=self._on_line,
            is_ready=_service_ready,
        )
        self.processes[name] = process
        return process

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to one process, as a test or an accident would."""
        self.processes[name].signal(number)

    async def ended(self, name: str) -> int:
        """Wait until one process has ended. Return its exit code, negative for a signal."""
        return await self.processes[name].ended()

    async def restart(self, name: str) -> None:
        """Stop one process if it still runs, start it anew, and wait until it is ready."""
        await self.processes[name].stop(_STOP_S)
        if name == BUS:
            await self.start_bus()
        else:
            await (await self.spawn(name)).ready(_READY_S)

    async def stop(self, grace_s: float = _STOP_S) -> None:
        """Stop everything in order, in bounded time: `grace_s` per phase, then it is killed."""
        known = {*SERVICES, BUS}
        standing_by = tuple(name for name in self.processes if name not in known)
        for phase in (standing_by, *STOP_ORDER, (BUS,)):
            await asyncio.gather(*(self.processes[name].stop(grace_s) for name in phase if name in self.processes))
        shutil.rmtree(self._scratch, ignore_errors=True)

    def access(self, user: str) -> dict[str, str]:
        """Return the settings with which `user` (a service, operator or viewer) gets into the bus."""
        if self._keys is None:
            return {}
        name = f"{user}-{self.host}" if user in permissions.PER_HOST else user
        return {
            "HOLDFAST_NATS_CREDENTIAL": str(self._keys.absolute() / f"{name}.nk"),
            "HOLDFAST_NATS_CA": str(self._keys.absolute() / "ca.pem"),
            "HOLDFAST_TLS": "on",
        }

    def _environment_of(self, service: str, name: str) -> dict[str, str]:
        inherited = {key: value for key, value in os.environ.items() if key not in _PRIVATE}
        return {
            **inherited,
            "PYTHONUNBUFFERED": "1",
            "HOLDFAST_NATS_URL": self.url,
            "HOLDFAST_HOSTS": self.host,
            "HOLDFAST_TOPOLOGY": str(self.topology.absolute()),
            "HOLDFAST_LEDGER": str(self.state_dir / "fabric.ledger"),
            "HOLDFAST_MACHINE_SOCKET": str(self._scratch / "machine.sock"),
            "HOLDFAST_HEALTH": _ANY_PORT,
            **self.access(service),
            **self._environment,
            **self._extra.get(service, {}),
            **self._extra.get(name, {}),
        }


def _first_cause(failed: BaseExceptionGroup[ProcessError]) -> ProcessError:
    """Choose the failure to report: a process that ended says why; those that waited for it do not."""
    causes = [error for error in failed.exceptions if isinstance(error, ProcessError)]
    return next((error for error in causes if error.code is not None), causes[0])
