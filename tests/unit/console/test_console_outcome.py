"""Waiting for the outcome of a lease."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from services.console._outcome import Progress, closed
from services.console._session import Session
from shared.pcie import Address

PORT = Address.parse("0000:00:01.0")


class Silent:
    """A session whose recovery does not end."""

    timeout_s = 3600.0

    async def recovery(self, _port: Address) -> Any:
        """Never answer."""
        await asyncio.Event().wait()


async def test_who_interrupts_the_wait_is_told_that_the_lease_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    session = cast("Session", Silent())
    waiting = asyncio.create_task(closed(session, PORT, "u-7", Progress(session, quiet=True)))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert f"lease u-7 on {PORT} goes on without you" in capsys.readouterr().err
