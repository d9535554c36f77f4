"""One child process of the fleet: started, its lines read, its readiness awaited, its end certain."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

OnLine = Callable[[str, str], None]  # name of the process, one line without its end

_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
_LINE_MAX: Final = 1 << 22  # bytes; a log line that is longer is a defect
_LAST_LINES: Final = 4  # kept for the message when a process ends before it is ready
_SAID_MAX: Final = 800  # characters of each: what is to be done stands at the end of a message

_libc: Final = ctypes.CDLL(None) if sys.platform == "linux" else None


class ProcessError(Exception):
    """A child process did not start, or ended before it was ready. `code` is its exit code, if it had one."""

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code


def tie_to_parent() -> None:
    """Run in the child, between fork and exec.

    A group of its own, so that Ctrl-C at a terminal reaches only the parent, which stops its children in order; and
    death with the parent, so that a killed parent leaves nothing running. Both are single system calls.
    """
    os.setpgid(0, 0)
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Process:
    """A child whose stdout and stderr are read line by line, in one stream, until it ends."""

    def __init__(
        self, name: str, child: asyncio.subprocess.Process, on_line: OnLine, is_ready: Callable[[str], bool]
    ) -> None:
        self.name = name
        self.last_lines: deque[str] = deque(maxlen=_LAST_LINES)
        self._child = child
        self._on_line = on_line
        self._is_ready = is_ready
        self._ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._reader = asyncio.create_task(self._read(), name=f"lines of {name}")

    @classmethod
    async def start(
        cls,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        on_line: OnLine,
        is_ready: Callable[[str], bool],
    ) -> Process:
        """Start `command`; `is_ready` tells by a line that it serves."""
        child = await asyncio.create_subprocess_exec(
            *command,
            env=dict(environment),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=_LINE_MAX,
            preexec_fn=tie_to_parent,
        )
        return cls(name, child, on_line, is_ready)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._child.pid

    @property
    def exit_code(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        return self._child.returncode

    async def ready(self, timeout_s: float) -> str:
        """Wait until it serves, and return the line that says so. Raises ProcessError, with its last words, if it ends first or takes too long."""
        ended = asyncio.create_task(self.ended())
        awaited: set[asyncio.Future[Any]] = {self._ready, ended}
        try:
            await asyncio.wait(awaited, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
        if self._ready.done():
            return self._ready.result()
        if self.exit_code is None:
            raise ProcessError(f"{self.name} was not ready within {timeout_s:g} s{self._said()}")
        raise ProcessError(
            f"{self.name} ended with code {self.exit_code} before it was ready{self._said()}", self.exit_code
        )

    async def ended(self) -> int:
        """Wait until it has ended and all it wrote has been read. Return the exit code."""
        code = await self._child.wait()
        await asyncio.wait((self._reader,))
        return code

    def signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        with contextlib.suppress(ProcessLookupError):
            self._child.send_signal(number)

    async def stop(self, grace_s: float) -> int:
        """Ask it to end; kill it if it does not within `grace_s`. Return the exit code."""
        if self.exit_code is None:
            self.signal(signal.SIGCONT)  # a stopped process cannot hear
            self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_s):
                return await self.ended()
        except TimeoutError:
            self.signal(signal.SIGKILL)
            return await self.ended()

    def _said(self) -> str:
        return "".join(f"\n  {line[:_SAID_MAX]}" for line in self.last_lines)

    async def _read(self) -> None:
        assert self._child.stdout is not None
        async for raw in self._child.stdout:
            line = raw.decode(errors="replace").rstrip()
            if not line:
                continue
            self.last_lines.append(line)
            if not self._ready.done() and self._is_ready(line):
                self._ready.set_result(line)
            self._on_line(self.name, line)
