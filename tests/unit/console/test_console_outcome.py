"""Waiting for the outcome of a lease."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from services.console import _power
from services.console._exit import ExitCode, Failure
from services.console._outcome import Progress, closed
from services.console._session import Session
from shared.pcie import Address

PORT = Address.parse("0000:00:01.0")


class Silent:
    """A session whose recovery does not end."""

    host = "lab"

    def __init__(self, timeout_s: float = 3600.0) -> None:
        self.timeout_s = timeout_s

    async def recovery(self, _port: Address) -> Any:
        """Never answer."""
        await asyncio.Event().wait()

    async def ask(self, *_asked: Any, **_named: Any) -> Any:
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


async def test_a_lease_that_is_still_open_when_the_time_is_over_has_not_failed_and_is_told_how_to_follow() -> None:
    session = cast("Session", Silent(timeout_s=0.0))
    with pytest.raises(Failure, match="is still open after 0 s, and nothing has failed") as told:
        await closed(session, PORT, "u-7", Progress(session, quiet=True))
    assert told.value.code is ExitCode.UNREACHABLE
    for command in ("`holdfast logs -f u-7`", "`holdfast lease break u-7`"):
        assert command in str(told.value)


async def test_a_slot_that_has_not_settled_when_the_time_is_over_has_not_failed() -> None:
    with pytest.raises(Failure, match="has not settled within 0 s, and nothing has failed: `holdfast status`") as told:
        await _power.settled(cast("Session", Silent(timeout_s=0.0)), PORT)
    assert told.value.code is ExitCode.UNREACHABLE
