"""Logs: one JSON line per event on stdout, or coloured text where stdout is a terminal; and in a file, if so told."""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from shared.protocol.requests import Level

from ._log_file import LogFile

# These come first and always by these names, so that one query finds a lease in the logs of all services.
KEYS: Final = ("at", "level", "service", "event", "host", "port", "lease", "token", "cause", "step")
_JSON: Final = msgspec.json.Encoder(enc_hook=str)


class _Forward(logging.Handler):
    """Hands what libraries log (asyncio, nats) to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        structlog.get_logger().log(
            record.levelno, record.getMessage(), logger=record.name, exc_info=record.exc_info or None
        )


_NUMBERS: Final = {name.lower(): number for name, number in logging.getLevelNamesMapping().items()}


class _Threshold:
    """Drops what is below the level.

    A processor is asked for each line. structlog's own filter is built into the loggers, and those in use, bound and
    cached, would keep the level that they were made with.
    """

    def __init__(self) -> None:
        self.level = Level.INFO
        self._lowest = _NUMBERS[self.level]

    def change(self, level: Level) -> Level:
        was, self.level = self.level, level
        self._lowest = _NUMBERS[level]
        return was

    def __call__(self, _logger: Any, method: str, event: dict[str, Any]) -> dict[str, Any]:
        if _NUMBERS[method] < self._lowest:
            raise structlog.DropEvent
        return event


_threshold: Final = _Threshold()


def change_level(level: Level) -> Level:
    """Write lines from `level` on, at once. Return the level until now."""
    return _threshold.change(level)


def configure_logging(service: str, level: str = "info", file: Path | None = None) -> None:
    """Set up logging for this process: every line carries `service`; `file` gets the lines besides stdout.

    Raises Fatal where the file cannot be written.
    """
    _threshold.change(Level(level))
    shared: list[Any] = [
        _threshold,
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
        _Service(service),
        *(() if file is None else (LogFile(file, _JsonLine()),)),
    ]
    on_terminal = sys.stdout.isatty()
    last = structlog.dev.ConsoleRenderer(timestamp_key="at") if on_terminal else _JsonLine()
    structlog.configure(
        processors=[*shared, last],
        wrapper_class=structlog.make_filtering_bound_logger(logging.NOTSET),
        logger_factory=structlog.PrintLoggerFactory() if on_terminal else structlog.BytesLoggerFactory(),
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    root.handlers[:] = [_Forward()]
    root.setLevel(logging.WARNING)
    logging.getLogger("nats").setLevel(logging.ERROR)


class _Service:
    """Adds the service's name to lines of loggers that are not bound to it."""

    def __init__(self, service: str) -> None:
        self._service = service

    def __call__(self, _logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
        event.setdefault("service", self._service)
        return event


class _JsonLine:
    """Renders a line. Exceptions are data, without local variables: those may hold secrets, and are long."""

    def __init__(self) -> None:
        transformer = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        self._tracebacks = structlog.processors.ExceptionRenderer(transformer)

    def __call__(self, logger: Any, method: str, event: MutableMapping[str, Any]) -> bytes:
        rendered = dict(self._tracebacks(logger, method, event))
        first = {key: rendered.pop(key) for key in KEYS if key in rendered}
        return _JSON.encode(first | rendered)
