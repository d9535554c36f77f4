"""From the command line into the event loop and back: one exit, one place where expected errors become one line."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar
from typing import Any, Final, TypeVar

import structlog
import typer

from shared.protocol import ProtocolError

from ._exit import ExitCode, Failure
from ._output import complain, tell
from ._session import Access, Session, Target, session

# What the options before the command say: who it is to the bus.
access: Final[ContextVar[Access]] = ContextVar("access", default=Access())  # noqa: B039 - it is frozen
_SIGNAL_BASE: Final = 128  # as the shell reports it: 128 + n
_STOPPING: Final = (signal.SIGTERM, signal.SIGINT)
_AGREED: Final = frozenset({"y", "yes"})
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})  # how a file says that it takes no more

R = TypeVar("R")


def run(work: Coroutine[Any, Any, int | None]) -> None:
    """Run a command to its end and exit with its code."""
    raise typer.Exit(asyncio.run(work) or ExitCode.OK)


def run_to_the_end(work: Coroutine[Any, Any, R]) -> R:
    """Run what starts processes of its own; Ctrl-C and SIGTERM cancel it, so that they are stopped in order.

    That may take some seconds, which is told. A second signal ends the command at once, and its processes with it.
    """
    stopped_by: list[int] = []

    async def cancellable() -> R:
        task = asyncio.ensure_future(work)
        loop = asyncio.get_running_loop()

        def stop(number: int) -> None:
            tell("stopped by a signal before it was done; ending what was started")
            stopped_by.append(number)
            task.cancel()
            loop.remove_signal_handler(number)

        for number in _STOPPING:
            loop.add_signal_handler(number, stop, number)
        try:
            return await task
        finally:
            for number in _STOPPING:
                loop.remove_signal_handler(number)

    try:
        return asyncio.run(cancellable())
    except asyncio.CancelledError:
        if not stopped_by:
            raise
        sys.exit(_SIGNAL_BASE + stopped_by[0])


def ask(url: str, host: str, timeout_s: float, work: Callable[[Session], Awaitable[int | None]]) -> None:
    """Run a command that talks to the services, and exit with its code."""
    raise typer.Exit(look(url, host, timeout_s, work) or ExitCode.OK)


def look(url: str, host: str, timeout_s: float, work: Callable[[Session], Awaitable[R]]) -> R:
    """Ask the services something, and go on: what a person is to confirm is looked up before, on no open connection."""

    async def connected() -> R:
        async with session(Target(url, host, timeout_s, access.get())) as open_session:
            return await work(open_session)

    return asyncio.run(connected())


def confirm(question: str, *, yes: bool) -> None:
    """Ask on a terminal before something is changed; a script is not asked. On stderr: stdout stays the result's."""
    if yes or not sys.stdin.isatty():
        return
    sys.stderr.write(f"{question} [y/N]: ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in _AGREED:
        raise Failure(ExitCode.USAGE, "nothing was changed")


def guarded(command: Callable[[], None]) -> None:
    """Run the whole command line. Expected failures end in one line on stderr and their exit code."""
    # What the connection logs is for services; a command says itself what failed.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    logging.disable(logging.CRITICAL)
    _open_streams()
    try:
        try:
            command()
        finally:
            sys.stdout.flush()  # here, where it can still be said that nobody reads it, or that the disk is full
    except Failure as failure:
        complain(str(failure))
        sys.exit(failure.code)
    except ProtocolError as error:
        complain(f"an answer or a record is not understood, are all parts of one version? {error}")
        sys.exit(ExitCode.INTERNAL)
    except KeyboardInterrupt:
        sys.exit(_SIGNAL_BASE + signal.SIGINT)
    except SystemExit as ended:
        if not isinstance(ended.__context__, BrokenPipeError):
            raise
        # Whoever read stdout has gone, which rich and click make a 1 of: a defect, by our table.
        _discard_stdout()
        sys.exit(_SIGNAL_BASE + signal.SIGPIPE)
    except BrokenPipeError:
        _discard_stdout()
        sys.exit(_SIGNAL_BASE + signal.SIGPIPE)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        _discard_stdout()
        complain(f"{error.filename or 'standard output'} cannot be written: {error.strerror}")
        sys.exit(ExitCode.USAGE)


def _open_streams() -> None:
    """Write to nowhere where the caller has closed stdout or stderr: its number must not become a socket's."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115 - until we end


def _discard_stdout() -> None:
    """Keep the interpreter from complaining once more when it flushes."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
