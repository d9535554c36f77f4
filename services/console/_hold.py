"""`hold PORT -- COMMAND`: a lease for a program that resets the device behind Holdfast's back.

The command runs only while the fabric lists the lease; when the lease is lost, the command's group is killed first.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from typing import Any, Final

from shared.pcie import Address, timing
from shared.protocol import Refused, subjects
from shared.protocol.fabric import Lease
from shared.protocol.requests import Accepted, AcceptReply, Hold, Release
from shared.runtime import BusError

from ._command import Command
from ._exit import ExitCode, Failure, refusal
from ._names import port_of
from ._outcome import Outcome, Progress, closed
from ._output import complain, tell
from ._reset import LEASE_VARIABLE
from ._session import Session, holder

_RENEW_MAX_S: Final = 1.0
_GUARD_SHARE: Final = 0.7  # of `allowed`: an unfed command dies well before its silent lease does
_OPEN_S: Final = 30.0  # until the fabric lists the lease: a recovery under way may have to end first
_POLL_S: Final = 0.05
_SIGNAL_BASE: Final = 128  # as the shell reports it: 128 + n


async def hold(session: Session, name: str, command: Sequence[str], *, as_json: bool) -> int:
    """Hold the port of `name` while `command` runs. Return the exit code for the shell."""
    address, topology = await session.resolve(name)
    port = port_of(address, topology).address
    outer = os.environ.get(LEASE_VARIABLE)
    with _signals() as interrupted:
        async with Progress(session, quiet=as_json) as progress:
            accepted = await _ask(session, port, outer)
            progress.of(accepted.lease)
            if accepted.lease == outer:
                return await _within(session, port, outer, command, interrupted)
            try:
                code = await _within(session, port, accepted.lease, command, interrupted)
            finally:
                outcome = await _release(session, port, accepted.lease, progress)
        outcome.show(as_json=as_json)
        return code or outcome.exit_code


async def _ask(session: Session, port: Address, lease: str | None) -> Accepted:
    request = Hold(port=port, holder=f"hold {holder()}", lease=lease)
    subject = subjects.coordinator(session.host, "hold")
    accepted: Accepted = await session.ask(subject, request, AcceptReply, whom="coordinator", what=f"hold {port}")
    return accepted


async def _within(
    session: Session, port: Address, lease: str, command: Sequence[str], interrupted: asyncio.Future[int]
) -> int:
    """Run the command inside the open lease."""
    opened = await _opened(session, port, lease)
    tell(f"{opened.port} is held by lease {lease}")
    running = await Command.start(command, {LEASE_VARIABLE: lease}, opened.allowed_s * _GUARD_SHARE)
    work: asyncio.Task[int] = asyncio.create_task(running.ended())
    renewal = asyncio.create_task(_renew(session, port, lease, running, opened.allowed_s))
    try:
        awaited: set[asyncio.Future[Any]] = {work, renewal, interrupted}
        await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        if interrupted.done():
            await running.terminate()
            return _SIGNAL_BASE + interrupted.result()
        running.kill()
        raise renewal.exception() or AssertionError("a renewal ends only by failing")
    finally:
        renewal.cancel()
        if await running.clear():
            complain(f"lease {lease} could not be renewed: the command was killed before the lease could end")
        await work


async def _opened(session: Session, port: Address, lease: str) -> Lease:
    """Wait until the fabric, which alone decides who holds what, lists the lease."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(min(_OPEN_S, session.timeout_s)):
            while True:
                for found in (await session.leases(port)).leases:
                    if found.id == lease:
                        return found
                await asyncio.sleep(_POLL_S)
    raise Failure(ExitCode.HELD, f"hold {port}: lease {lease} was not opened in time; `holdfast leases` shows by whom")


async def _renew(session: Session, port: Address, lease: str, running: Command, allowed_s: float) -> None:
    """Say that the user lives, until the lease is lost: then raise Failure.

    An unanswered renewal is tried again; the guard ends what goes on for too long.
    """
    pause = min(_RENEW_MAX_S, allowed_s / timing.LEASE_BEATS_PER_ALLOWED)
    request = Hold(port=port, holder=f"hold {holder()}", lease=lease)
    while True:
        try:
            reply = await session.bus.request(
                subjects.coordinator(session.host, "hold"), request, AcceptReply, timeout_s=pause
            )
        except BusError:
            reply = None
        if isinstance(reply, Refused):
            raise refusal(reply, f"lease {lease} is lost, the command was killed")
        if isinstance(reply, Accepted):
            running.feed()
        await asyncio.sleep(pause)


async def _release(session: Session, port: Address, lease: str, progress: Progress) -> Outcome:
    """End the lease, and wait until the record says what became of the devices."""
    subject = subjects.coordinator(session.host, "release")
    try:
        await session.ask(subject, Release(lease=lease), AcceptReply, whom="coordinator", what=f"release {lease}")
    except Failure as failure:
        # It ended already, or nobody answered: either way the record, not this reply, says how it ended.
        if failure.code is not ExitCode.HELD:
            complain(str(failure))
    return await closed(session, port, lease, progress)


@contextlib.contextmanager
def _signals() -> Iterator[asyncio.Future[int]]:
    """Turn the first SIGTERM, SIGINT or SIGHUP into a result; the lease must be released whatever happens."""
    loop = asyncio.get_running_loop()
    first: asyncio.Future[int] = loop.create_future()
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

    def note(number: int) -> None:
        if not first.done():
            first.set_result(number)

    for number in numbers:
        loop.add_signal_handler(number, note, number)
    try:
        yield first
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
