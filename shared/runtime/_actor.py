"""One actor per port: a mailbox and a loop, so that everything about one port happens in order and needs no lock."""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from typing import Final, Generic, TypeVar

import msgspec
import structlog

MAILBOX_LIMIT: Final = 1024
_RESTART_FIRST_S: Final = 0.05
_RESTART_MAX_S: Final = 5.0

M = TypeVar("M")
_log = structlog.get_logger()


class ActorStatistics(msgspec.Struct, frozen=True):
    """Counters since the actor was created."""

    name: str
    depth: int
    handled: int
    dropped: int
    crashes: int


class Actor(ABC, Generic[M]):
    """Handles one message at a time. Subclasses say what happens at the start and for each message.

    A crash in a handler is logged, and the actor starts over: `started` reads the registers again, so nothing that a
    lost message would have said is missing (P9).
    """

    def __init__(self, name: str, *, limit: int = MAILBOX_LIMIT) -> None:
        self.name = name
        self._mailbox: asyncio.Queue[M] = asyncio.Queue(limit)
        self._handled = 0
        self._dropped = 0
        self._crashes = 0

    def tell(self, message: M) -> bool:
        """Put a message into the mailbox; False if it is full, and the message is dropped and counted."""
        try:
            self._mailbox.put_nowait(message)
        except asyncio.QueueFull:
            self._dropped += 1
            _log.warning("mailbox full", actor=self.name, dropped=self._dropped)
            return False
        return True

    @abstractmethod
    async def started(self) -> None:
        """Read the registers and reconcile. Runs before the first message, and again after a crash."""

    @abstractmethod
    async def receive(self, message: M) -> None:
        """Handle one message."""

    async def refused(self, message: M) -> None:
        """Answer what is left in the mailbox at the end, so that nobody waits in vain."""

    def statistics(self) -> ActorStatistics:
        """Return the counters."""
        return ActorStatistics(
            name=self.name,
            depth=self._mailbox.qsize(),
            handled=self._handled,
            dropped=self._dropped,
            crashes=self._crashes,
        )

    async def run(self) -> None:
        """Run until cancelled, restarting after each crash with a growing pause."""
        pause = _RESTART_FIRST_S
        try:
            while True:
                try:
                    await self._live()
                except Exception as crash:  # noqa: BLE001 - the supervisor's job: log every crash, start over
                    self._crashes += 1
                    _log.error("actor crashed", actor=self.name, crashes=self._crashes, exc_info=crash)
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, _RESTART_MAX_S)
        finally:
            await self._answer_rest()

    async def _live(self) -> None:
        await self.started()
        while True:
            message = await self._mailbox.get()
            await self.receive(message)
            self._handled += 1

    async def _answer_rest(self) -> None:
        with contextlib.suppress(asyncio.QueueEmpty):
            while True:
                await self.refused(self._mailbox.get_nowait())
