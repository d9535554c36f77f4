"""Time on the bench: the event loop's, so that the same hardware runs in real and in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Clock:
    """Plans what hardware does later. After each action the bench settles: links, presence and interrupts follow."""

    def __init__(self, loop: asyncio.AbstractEventLoop, settle: Callable[[], None]) -> None:
        self._loop = loop
        self._settle = settle

    def now(self) -> float:
        """Return the loop's time in seconds."""
        return self._loop.time()

    def later(self, delay_s: float, action: Callable[[], None]) -> asyncio.TimerHandle:
        """Do `action` after `delay_s` seconds, and let the bench settle."""
        return self._loop.call_later(delay_s, self._act, action)

    def _act(self, action: Callable[[], None]) -> None:
        action()
        self._settle()
