"""`hold PORT -- COMMAND`: a lease for a program that resets the device behind Holdfast's back.

What runs under it runs only while the fabric lists the lease; see `_tenant`.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import shutil
from collections.abc import Sequence
from typing import Final

import msgspec

from shared.pcie import Address, IdentityField
from shared.protocol import subjects
from shared.protocol.fabric import Lease
from shared.protocol.requests import Accepted, AcceptReply, Hold, Release

from ._exit import ExitCode, Failure
from ._names import port_of
from ._outcome import Outcome, Progress, closed
from ._output import complain, tell
from ._reset import LEASE_VARIABLE
from ._session import Session, holder
from ._tenant import Signals, Tenant

_OPEN_S: Final = 30.0  # until the fabric lists the lease: a recovery under way may have to end first
_POLL_S: Final = 0.05
_FIELDS: Final = ", ".join(IdentityField)


class Wanted(msgspec.Struct, frozen=True):
    """What a hold is asked for. `max_s` bounds the command, and `before` and `after` each as well."""

    command: tuple[str, ...]
    accept: tuple[IdentityField, ...] = ()
    quiet_errors: bool = False
    max_s: float | None = None
    before: str | None = None
    after: str | None = None


def wanted(
    command: Sequence[str],
    *,
    accept: Sequence[str] = (),
    quiet_errors: bool = False,
    max_s: float | None = None,
    before: str | None = None,
    after: str | None = None,
) -> Wanted:
    """Check what was typed, before anybody is asked. Raises Failure, naming what is wrong and what would be right."""
    if not command or not command[0].strip():
        raise Failure(ExitCode.USAGE, "the command is empty: holdfast hold PORT -- COMMAND [ARGUMENT …]")
    if shutil.which(command[0]) is None:
        raise Failure(
            ExitCode.USAGE,
            f"{command[0]} cannot be started: there is no such program, or it may not be executed; no lease was taken",
        )
    for option, text in (("--before", before), ("--after", after)):
        if text is not None and not text.strip():
            raise Failure(ExitCode.USAGE, f"{option} is empty: leave it out, or name a command")
    if max_s is not None and not (math.isfinite(max_s) and max_s > 0):
        raise Failure(ExitCode.USAGE, f"--max {max_s:g}: give a number of seconds above 0")
    return Wanted(tuple(command), _fields(accept), quiet_errors, max_s, before, after)


def _fields(texts: Sequence[str]) -> tuple[IdentityField, ...]:
    """Read `revision,device`: what may differ afterwards, each once."""
    named = [part.strip() for text in texts for part in text.split(",")]
    for name in named:
        if name not in set(IdentityField):
            raise Failure(ExitCode.USAGE, f"--accept {name!r} is no field of an identity; there are {_FIELDS}")
    return tuple(dict.fromkeys(map(IdentityField, named)))


async def hold(session: Session, name: str, asked: Wanted, *, as_json: bool) -> int:
    """Hold the port of `name` while the command runs. Return the exit code for the shell."""
    address, topology = await session.resolve(name)
    port = port_of(address, topology).address
    outer = os.environ.get(LEASE_VARIABLE)
    if outer is not None and (asked.accept or asked.quiet_errors):
        told = f"inside of lease {outer}, --accept and --quiet-errors are those of the hold around it"
        raise Failure(ExitCode.USAGE, told)
    with Signals() as signals:
        async with Progress(session, quiet=as_json) as progress:
            accepted = await _ask(session, port, outer, asked)
            progress.of(accepted.lease)
            if accepted.lease == outer:
                return await _within(session, port, outer, asked, signals)
            try:
                code = await _within(session, port, accepted.lease, asked, signals)
            finally:
                outcome = await _release(session, port, accepted.lease, progress)
                outcome.show(as_json=as_json)
        return code or outcome.exit_code


async def _ask(session: Session, port: Address, lease: str | None, asked: Wanted) -> Accepted:
    request = Hold(
        port=port,
        holder=f"hold {holder()}",
        lease=lease,
        accept=asked.accept,
        quiet_errors=asked.quiet_errors,
    )
    subject = subjects.coordinator(session.host, "hold")
    accepted: Accepted = await session.ask(subject, request, AcceptReply, whom="coordinator", what=f"hold {port}")
    return accepted


async def _within(session: Session, port: Address, lease: str, asked: Wanted, signals: Signals) -> int:
    """Run everything inside the open lease. Return the first code that is not 0."""
    opened = await _opened(session, port, lease)
    tell(f"{opened.port} is held by lease {lease}")
    tenant = Tenant(session, opened, port, signals, asked.max_s)
    return await tenant.run_all(asked.command, before=asked.before, after=asked.after)


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
