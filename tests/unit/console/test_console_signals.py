"""A signal to a command that has started processes of its own."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from services.console._run import run_to_the_end

_ENDLESS_S = 3600.0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_was_started_is_stopped_in_order_and_the_exit_code_names_the_signal(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    told_when_stopping: list[str] = []

    async def work() -> None:
        os.kill(os.getpid(), number)
        try:
            await asyncio.sleep(_ENDLESS_S)
        finally:
            told_when_stopping.append(capsys.readouterr().err)

    with pytest.raises(SystemExit) as ended:
        run_to_the_end(work())
    assert ended.value.code == 128 + number
    (told,) = told_when_stopping  # before what takes a while, not after it
    assert "stopped by a signal" in told
