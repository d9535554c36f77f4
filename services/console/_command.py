"""The command that runs under a hold: in a process group of its own, with the terminal, and never longer than its lease."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Final, Self

from . import _guard
from ._exit import ExitCode, Failure
from ._process import tie_to_parent

_GRACE_S: Final = 5.0  # between SIGTERM and SIGKILL
_SIGNAL_BASE: Final = 128  # as the shell reports it: 128 + n
_STDIN: Final = 0


class Command:
    """A running command. Everything that it starts is in its group, and ends with it."""

    def __init__(self, child: asyncio.subprocess.Process, guard: subprocess.Popen[bytes], *, on_terminal: bool) -> None:
        self._child = child
        self._guard = guard
        self._on_terminal = on_terminal

    @classmethod
    async def start(cls, command: Sequence[str], lease_variable: dict[str, str], silence_s: float) -> Self:
        """Start `command`, guarded: unless fed every `silence_s` it is killed. Raises Failure if it cannot start."""
        on_terminal = os.isatty(_STDIN)
        try:
            child = await asyncio.create_subprocess_exec(
                *command,
                env={**os.environ, **lease_variable},
                preexec_fn=_take_terminal if on_terminal else tie_to_parent,
            )
        except OSError as error:
            raise Failure(ExitCode.USAGE, f"{command[0]} cannot be started: {error.strerror}") from error
        guard = subprocess.Popen(  # noqa: ASYNC220, S603 - our own program; fork and exec, nothing that waits
            (sys.executable, "-I", _guard.__file__, str(child.pid), str(silence_s)),
            stdin=subprocess.PIPE,
            start_new_session=True,  # a signal to the terminal's group must not end the guard
        )
        return cls(child, guard, on_terminal=on_terminal)

    def feed(self) -> None:
        """Tell the guard that the lease was renewed just now."""
        self._tell_guard(_guard.FEED)

    async def ended(self) -> int:
        """Wait for the command itself. Return its exit code as a shell reports it."""
        code = await self._child.wait()
        return code if code >= 0 else _SIGNAL_BASE - code

    def kill(self) -> None:
        """End the group at once: its lease is lost."""
        self._signal(signal.SIGKILL)

    async def terminate(self) -> None:
        """Ask the group to end; kill what does not."""
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGCONT)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GRACE_S):
                await self._child.wait()

    async def clear(self) -> bool:
        """Leave nothing of the group behind, dismiss the guard, and take the terminal back.

        Tells whether the guard had to kill it.
        """
        self._signal(signal.SIGKILL)
        await self._child.wait()
        self._tell_guard(_guard.QUIT)
        assert self._guard.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._guard.stdin.close()
        killed = await asyncio.to_thread(self._guard.wait) == _guard.KILLED
        if self._on_terminal:
            _give_terminal_to(os.getpgrp())
        return killed

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, number)

    def _tell_guard(self, word: bytes) -> None:
        assert self._guard.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            os.write(self._guard.stdin.fileno(), word)


def _take_terminal() -> None:
    """Run in the child: become the terminal's foreground group, so that the command may ask its user something."""
    tie_to_parent()
    _give_terminal_to(os.getpid())


def _give_terminal_to(group: int) -> None:
    """Make `group` the foreground group. A background process may do so only while it ignores SIGTTOU."""
    before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.tcsetpgrp(_STDIN, group)
    signal.signal(signal.SIGTTOU, before)
