"""Each process answers to its own name when an operator asks it for another log level, owner or standby alike."""

from __future__ import annotations

import asyncio

import structlog

from shared.protocol import subjects
from shared.protocol.requests import Level, LogLevel, SetLogLevel

from ._logs import change_level
from .bus import Bus, Request, Subscription

_log = structlog.get_logger()


async def serve_log_level(bus: Bus, service: str, instance: str) -> Subscription:
    """Answer until closed. It is also how the service is found by its name, whatever else it serves."""
    answering: set[asyncio.Task[None]] = set()

    def take(request: Request) -> None:
        assert isinstance(request.message, SetLogLevel)
        task = asyncio.create_task(request.answer(_changed(request.message)))
        answering.add(task)
        task.add_done_callback(answering.discard)

    return await bus.serve(service, {subjects.log_level(service, instance): (SetLogLevel, take)})


def _changed(asked: SetLogLevel) -> LogLevel:
    before = change_level(Level.DEBUG)  # so that a log that is about to fall silent says why
    _log.warning("log level changed", now=asked.level, was=before)
    change_level(asked.level)
    return LogLevel(level=asked.level, was=before)
