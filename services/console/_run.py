"""From the command line into the event loop and back: one exit, one place where expected errors become one line."""

from __future__ import annotations

import asyncio
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
from ._output import complain
from ._session import Access, Session, Target, session

# What the options before the command say: who it is to the bus.
access: Final[ContextVar[Access]] = ContextVar("access", default=Access())  # noqa: B039 - it is frozen
_INTERRUPTED: Final = 130  # 128 + SIGINT, as a shell reports it
_BROKEN_PIPE: Final = 141  # 128 + SIGPIPE

R = TypeVar("R")


def run(work: Coroutine[Any, Any, int | None]) -> None:
    """Run a command to its end and exit with its code."""
    raise typer.Exit(asyncio.run(work) or ExitCode.OK)


def run_to_the_end(work: Coroutine[Any, Any, R]) -> R:
    """Run what starts processes of its own; SIGTERM cancels it as Ctrl-C does, so that they are stopped in order."""

    async def guarded() -> R:
        task = asyncio.ensure_future(work)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, task.cancel)
        try:
            return await task
        finally:
            loop.remove_signal_handler(signal.SIGTERM)

    try:
        return asyncio.run(guarded())
    except asyncio.CancelledError as error:
        raise Failure(ExitCode.INTERNAL, "stopped by a signal before it was done") from error


def ask(url: str, host: str, timeout_s: float, work: Callable[[Session], Awaitable[int | None]]) -> None:
    """Run a command that talks to the services, and exit with its code."""

    async def connected() -> int | None:
        async with session(Target(url, host, timeout_s, access.get())) as open_session:
            return await work(open_session)

    run(connected())


def confirm(question: str, *, yes: bool) -> None:
    """Ask on a terminal before something is changed; a script is not asked."""
    if not yes and sys.stdin.isatty() and not typer.confirm(question):
        raise Failure(ExitCode.USAGE, "nothing was changed")


def guarded(command: Callable[[], None]) -> None:
    """Run the whole command line. Expected failures end in one line on stderr and their exit code."""
    # What the connection logs is for services; a command says itself what failed.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    logging.disable(logging.CRITICAL)
    try:
        command()
    except Failure as failure:
        complain(str(failure))
        sys.exit(failure.code)
    except ProtocolError as error:
        complain(f"an answer or a record is not understood, are all parts of one version? {error}")
        sys.exit(ExitCode.INTERNAL)
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    except BrokenPipeError:
        # Whoever read stdout has gone; without this, the interpreter complains once more when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(_BROKEN_PIPE)
