"""What runs inside a hold: `--before`, the command, `--after`, each only while the lease is renewed, and not for too long.

When the lease is lost, the command's group is killed first, and nothing more is run: a tool without a lease would do
to a port what only a holder may (P7).
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final, Self

from shared.pcie import Address, timing
from shared.protocol import Reason, Refused, subjects
from shared.protocol.fabric import Lease
from shared.protocol.requests import Accepted, AcceptReply, Hold
from shared.runtime import BusError

from ._command import Command
from ._exit import ExitCode, Failure, refusal
from ._output import complain
from ._reset import LEASE_VARIABLE
from ._session import Session, holder

_RENEW_MAX_S: Final = 1.0
_POLL_S: Final = 0.05
_PASSING: Final = frozenset({Reason.STOPPING, Reason.NOT_OWNER})  # a successor takes the lease over, and answers
_GUARD_SHARE: Final = 0.7  # of `allowed`: an unfed command dies well before its silent lease does
_SIGNAL_BASE: Final = 128  # as the shell reports it: 128 + n
_NUMBERS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class LeaseLost(Failure):
    """The lease is another's, or has ended."""


class Signals:
    """Turns SIGTERM, SIGINT and SIGHUP into results: the lease must be released whatever happens."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._next: asyncio.Future[int] = self._loop.create_future()

    def __enter__(self) -> Self:
        for number in _NUMBERS:
            self._loop.add_signal_handler(number, self._note, number)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in _NUMBERS:
            self._loop.remove_signal_handler(number)

    def _note(self, number: int) -> None:
        if not self._next.done():
            self._next.set_result(number)

    @property
    def awaited(self) -> asyncio.Future[int]:
        """The first signal since the last `forget`."""
        return self._next

    def forget(self) -> None:
        """Await another one from now on: `--after` runs although a signal has ended the command."""
        if self._next.done():
            self._next = self._loop.create_future()


class Tenant:
    """Runs commands under one lease. `max_s` bounds each of them."""

    def __init__(self, session: Session, lease: Lease, port: Address, signals: Signals, max_s: float | None) -> None:
        self._session = session
        self._lease = lease.id
        self._silence_s = lease.allowed_s * _GUARD_SHARE
        self._pause_s = min(_RENEW_MAX_S, lease.allowed_s / timing.LEASE_BEATS_PER_ALLOWED)
        self._request = Hold(port=port, holder=f"hold {holder()}", lease=lease.id)
        self._signals = signals
        self._max_s = max_s

    async def run_all(self, command: Sequence[str], *, before: str | None, after: str | None) -> int:
        """Run `before`, the command unless `before` failed, and `after` in any case. Return the first code but 0.

        `after` alone is not run when the lease is lost.
        """
        try:
            code = await self._run_both(command, before)
        except LeaseLost:
            if after is not None:
                complain(f"--after was not run: lease {self._lease} is lost")
            raise
        except Failure:
            await self._finish(after)
            raise
        ended = await self._finish(after)
        return code or ended

    async def _run_both(self, command: Sequence[str], before: str | None) -> int:
        if before is not None and (code := await self._run("--before", _shell(before))):
            complain(f"--before ended with {code}: the command was not run")
            return code
        return await self._run(command[0], command)

    async def _finish(self, after: str | None) -> int:
        if after is None:
            return 0
        self._signals.forget()
        if code := await self._run("--after", _shell(after)):
            complain(f"--after ended with {code}")
            return code
        return 0

    async def _run(self, name: str, command: Sequence[str]) -> int:
        """Run one command to its end, or to that of its lease, its time or our own. Return its exit code."""
        await self._confirmed()
        running = await Command.start(command, {LEASE_VARIABLE: self._lease}, self._silence_s)
        try:
            code = await self._ended(name, running)
        finally:
            killed = await running.clear()
        if killed:
            told = f"lease {self._lease} could not be renewed: {name} was killed before the lease could end"
            raise LeaseLost(ExitCode.HELD, told)
        return code

    async def _ended(self, name: str, running: Command) -> int:
        work: asyncio.Task[int] = asyncio.create_task(running.ended())
        renewal = asyncio.create_task(self._renew(running))
        signalled = self._signals.awaited
        awaited: set[asyncio.Future[Any]] = {work, renewal, signalled}
        try:
            await asyncio.wait(awaited, timeout=self._max_s, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            if signalled.done():
                await running.terminate()
                return _SIGNAL_BASE + signalled.result()
            running.kill()
            if not renewal.done():
                raise Failure(ExitCode.OVERDUE, f"{name} was killed: it ran for longer than --max {self._max_s:g} s")
            raise renewal.exception() or AssertionError("a renewal ends only by failing")
        finally:
            running.kill()
            renewal.cancel()
            await asyncio.gather(work, renewal, return_exceptions=True)

    async def _renew(self, running: Command) -> None:
        """Say that the user lives, until the lease is lost: then raise LeaseLost.

        An unanswered renewal is tried again; the guard ends what goes on for too long.
        """
        while True:
            if await self._renewed():
                running.feed()
            await asyncio.sleep(self._pause_s)

    async def _confirmed(self) -> None:
        """Start nothing under a lease that may have ended meanwhile. Raises LeaseLost."""
        try:
            async with asyncio.timeout(self._silence_s):
                while True:
                    if await self._renewed():
                        return
                    await asyncio.sleep(_POLL_S)
        except TimeoutError as error:
            told = f"lease {self._lease} could not be renewed for {self._silence_s:g} s: see `holdfast doctor`"
            raise LeaseLost(ExitCode.UNREACHABLE, told) from error

    async def _renewed(self) -> bool:
        """Renew once. False if nobody answered, or one who is about to go; raises LeaseLost where it is refused."""
        subject = subjects.coordinator(self._session.host, "hold")
        try:
            reply = await self._session.bus.request(subject, self._request, AcceptReply, timeout_s=self._pause_s)
        except BusError:
            return False
        if isinstance(reply, Refused) and reply.reason in _PASSING:
            return False
        if isinstance(reply, Refused):
            failure = refusal(reply, f"lease {self._lease} is lost, the command was killed")
            raise LeaseLost(failure.code, str(failure))
        return isinstance(reply, Accepted)


def _shell(text: str) -> tuple[str, ...]:
    return "sh", "-c", text
