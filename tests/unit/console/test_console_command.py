"""The command under a hold: P7 says that it is killed before its lease ends, whatever happens to the `hold`."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from services.console._command import Command
from services.console._exit import ExitCode, Failure

LONG_S = 30.0
# A tool with a child of its own, as a firmware updater has.
TOOL = "sleep 600 & echo $! > child.pid; sleep 600"


async def run(code: str, directory: Path, silence_s: float = LONG_S) -> Command:
    return await Command.start(("sh", "-c", f"cd {directory}; {code}"), {"HOLDFAST_LEASE": "h-1"}, silence_s)


def gone(pid: int) -> bool:
    for _ in range(1000):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.01)
    return False


def grandchild(directory: Path) -> int:
    file = directory / "child.pid"
    for _ in range(1000):
        if file.exists() and (text := file.read_text().strip()):
            return int(text)
        time.sleep(0.01)
    raise AssertionError("the tool did not start")


async def test_the_command_knows_its_lease_and_its_code_comes_through(tmp_path: Path) -> None:
    command = await run("echo $HOLDFAST_LEASE > lease; exit 7", tmp_path)
    assert await command.ended() == 7
    await command.clear()
    assert (tmp_path / "lease").read_text() == "h-1\n"


async def test_a_death_by_signal_is_told_as_a_shell_tells_it(tmp_path: Path) -> None:
    command = await run("kill -TERM $$", tmp_path)
    assert await command.ended() == 128 + signal.SIGTERM
    await command.clear()


async def test_a_command_that_does_not_exist_is_a_usage_error() -> None:
    with pytest.raises(Failure, match="no-such-tool cannot be started") as failed:
        await Command.start(("no-such-tool",), {}, LONG_S)
    assert failed.value.code is ExitCode.USAGE


async def test_clearing_leaves_nothing_of_the_group(tmp_path: Path) -> None:
    command = await run("sleep 600 & echo $! > child.pid", tmp_path)
    assert await command.ended() == 0
    await command.clear()
    assert gone(grandchild(tmp_path))


async def test_p7_a_lost_lease_ends_the_whole_group(tmp_path: Path) -> None:
    command = await run(TOOL, tmp_path)
    child = grandchild(tmp_path)
    command.kill()
    assert await command.ended() == 128 + signal.SIGKILL
    assert gone(child)
    await command.clear()


async def test_p7_a_command_that_is_not_fed_is_killed(tmp_path: Path) -> None:
    command = await run(TOOL, tmp_path, silence_s=0.3)
    child = grandchild(tmp_path)
    assert await asyncio.wait_for(command.ended(), LONG_S) == 128 + signal.SIGKILL
    assert gone(child)
    assert await command.clear()


async def test_a_command_that_is_fed_lives_on(tmp_path: Path) -> None:
    command = await run("sleep 1", tmp_path, silence_s=0.5)
    work = asyncio.create_task(command.ended())
    while not work.done():
        command.feed()
        await asyncio.sleep(0.1)
    assert await work == 0
    assert not await command.clear()


def test_p7_a_killed_hold_takes_the_whole_group_with_it(tmp_path: Path) -> None:
    code = f"""
import asyncio
from services.console._command import Command
async def main():
    await Command.start(("sh", "-c", {f"cd {tmp_path}; {TOOL}"!r}), {{}}, {LONG_S})
    await asyncio.sleep(600)
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", code]) as hold:
        child = grandchild(tmp_path)
        # Not before the guard runs: it is what reaches beyond the command itself.
        while not any("_guard" in " ".join(p.cmdline()) for p in psutil.Process(hold.pid).children()):
            time.sleep(0.01)
        os.kill(hold.pid, signal.SIGKILL)
        assert gone(child)
