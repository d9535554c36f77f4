"""Each process answers to its own name when an operator asks it for another log level, owner or standby alike."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from shared.protocol import subjects
from shared.protocol.requests import Level, LogLevel, SetLogLevel

from ._logs import change_level
from .bus import Bus, BusError, Request

_RETRY_S: Final = 1.0

_log = structlog.get_logger()


async def serve_log_level(bus: Bus, service: str, instance: str) -> None:
    """Answer until cancelled. It is also how the service is found by its name, whatever else it serves."""
    answering: set[asyncio.Task[None]] = set()

    def take(request: Request) -> None:
        assert isinstance(request.message, SetLogLevel)
        task = asyncio.create_task(request.answer(_changed(request.message)))
        answering.add(task)
        task.add_done_callback(answering.discard)

    while True:
        try:
            serving = await bus.serve(service, {subjects.log_level(service, instance): (SetLogLevel, take)})
        except BusError as error:
            _log.debug("log level not served yet", error=str(error))
            await asyncio.sleep(_RETRY_S)
        else:
            break
    try:
        await asyncio.Event().wait()
    finally:
        await serving.close()


def _changed(asked: SetLogLevel) -> LogLevel:
    before = change_level(Level.DEBUG)  # so that a log that is about to fall silent says why
    _log.warning("log level changed", now=asked.level, was=before)
    change_level(asked.level)
    return LogLevel(level=asked.level, was=before)
