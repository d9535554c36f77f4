"""Logs: one JSON line per event on stdout, or coloured text where stdout is a terminal."""

from __future__ import annotations

import logging
import sys
from typing import Any, Final

import msgspec
import structlog

# These come first and always by these names, so that one query finds a lease in the logs of all services.
KEYS: Final = ("at", "level", "service", "event", "host", "port", "lease", "token", "cause", "step")
_JSON: Final = msgspec.json.Encoder(enc_hook=str)


class _Forward(logging.Handler):
    """Hands what libraries log (asyncio, nats) to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        structlog.get_logger().log(
            record.levelno, record.getMessage(), logger=record.name, exc_info=record.exc_info or None
        )


def configure_logging(service: str, level: str = "info") -> None:
    """Set up logging for this process: every line carries `service`, and lines below `level` cost nothing."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
        _Service(service),
    ]
    on_terminal = sys.stdout.isatty()
    last: list[Any] = (
        [structlog.dev.ConsoleRenderer(timestamp_key="at")] if on_terminal else [_tracebacks(), _in_order, _to_json]
    )
    structlog.configure(
        processors=shared + last,
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory() if on_terminal else structlog.BytesLoggerFactory(),
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    root.handlers[:] = [_Forward()]
    root.setLevel(logging.WARNING)
    logging.getLogger("nats").setLevel(logging.ERROR)


def _tracebacks() -> structlog.processors.ExceptionRenderer:
    """Render exceptions as data, without local variables: they may hold secrets, and make lines of many kilobytes."""
    return structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False))


class _Service:
    """Adds the service's name to lines of loggers that are not bound to it."""

    def __init__(self, service: str) -> None:
        self._service = service

    def __call__(self, _logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
        event.setdefault("service", self._service)
        return event


def _in_order(_logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
    first = {key: event.pop(key) for key in KEYS if key in event}
    return first | event


def _to_json(_logger: Any, _method: str, event: dict[str, Any]) -> bytes:
    return _JSON.encode(event)
