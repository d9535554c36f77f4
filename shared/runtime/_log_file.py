"""The log in a file beside stdout, for where nobody keeps what stdout says: JSON lines, rotated by size."""

from __future__ import annotations

import fcntl
import logging
import logging.handlers
import os
import sys
from collections.abc import Callable
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Final

import structlog

from ._exit_codes import EXIT_UNWRITABLE, Fatal
from ._settings import Settings

BYTES_MAX: Final = 10 << 20
FILES_KEPT: Final = 5  # beside the one that is written
_MODE: Final = 0o640  # lines name the tokens of leases: not for everybody to read

_log = structlog.get_logger()


def log_file(service: str, settings: Settings) -> Path | None:
    """Return where the log is kept besides; None where it is not. An instance that was given a name has its own file."""
    if settings.log_dir is None:
        return None
    instance = settings.instance
    if instance == f"{service}-{os.getpid()}":
        return settings.log_dir / f"{service}.log"
    return settings.log_dir / f"{instance if instance.startswith(service) else f'{service}-{instance}'}.log"


class LogFile:
    """A structlog processor: writes each line as `render` has it, and passes the event on."""

    def __init__(self, path: Path, render: Callable[[Any, str, dict[str, Any]], bytes]) -> None:
        """Open the file, for this process alone. Raises Fatal where it cannot be written."""
        self._render = render
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._handler = _OwnFile(path)
        except BlockingIOError as error:
            raise Fatal(
                f"another process writes the log {path}: give each instance a name of its own (HOLDFAST_INSTANCE)",
                EXIT_UNWRITABLE,
            ) from error
        except OSError as error:
            raise Fatal(
                f"the log {path} cannot be written ({error.strerror}): set HOLDFAST_LOG_DIR to a directory that can be",
                EXIT_UNWRITABLE,
            ) from error

    def __call__(self, logger: Any, method: str, event: dict[str, Any]) -> dict[str, Any]:
        line = self._render(logger, method, dict(event))
        self._handler.emit(logging.makeLogRecord({"msg": line.decode()}))
        return event


class _OwnFile(logging.handlers.RotatingFileHandler):
    """Locked, since two that rotate one file lose each other's lines. A disk that fails costs lines, not the service."""

    def __init__(self, path: Path) -> None:
        self._failing = self._failed_before = False
        super().__init__(path, maxBytes=BYTES_MAX, backupCount=FILES_KEPT, encoding="utf-8")

    def _open(self) -> TextIOWrapper:
        stream = super()._open()
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.fchmod(stream.fileno(), _MODE)
        except OSError:
            stream.close()
            raise
        return stream

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        self._failed_before, self._failing = self._failing, False
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802 - the library's name
        """Say so once, on stdout."""
        self._failing = True
        if not self._failed_before:
            _log.warning("log file not written", path=self.baseFilename, error=str(sys.exc_info()[1]))
