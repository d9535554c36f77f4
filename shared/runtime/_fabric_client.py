"""The fabric, as its users ask it: typed questions, and the commands on a lease.

A command that was not answered may have been executed. It is repeated as it was, `n` included, which the fabric
answers again without executing it again, until the lease's `allowed` has passed. After that the holder counts as dead
to the fabric, so it must count as dead to itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import structlog

from shared.pcie import NO_ANSWER, Address, Topology, Value, timing
from shared.protocol import Message, Reason, Refused, fabric, subjects
from shared.protocol.fabric import Condition, Lease, LeaseList, Opened, Operation, Role

from .bus import Bus, BusError, BusUnreachable, Unanswered

ATTEMPT_S: Final = timing.LEASE_ATTEMPT  # the fabric answers in milliseconds unless it is starting
QUESTION_S: Final = timing.LEASE_ALLOWED  # for a question, all attempts together
_AGAIN_FIRST_S: Final = 0.05  # a fabric that cannot answer now is asked again, less and less often
_AGAIN_MAX_S: Final = 0.5
_DEPOSED: Final = (Reason.FENCED, Reason.UNKNOWN_LEASE)
_PASSING: Final = (Reason.STOPPING, Reason.NOT_OWNER)  # the fabric is being restarted: its successor will answer

_log = structlog.get_logger()


class RefusedError(Exception):
    """The fabric refused: nothing was changed. `refused` says why, and which lease stands in the way."""

    def __init__(self, refused: Refused) -> None:
        super().__init__(f"{refused.reason.value}: {refused.message}")
        self.refused = refused


class Fenced(Exception):  # noqa: N818 - named for what is true
    """The lease is not, or no longer, ours: whatever is left to do, another does it (P7)."""


class LeaseHandle:
    """A lease in the hands of its holder: the token, and the number of the last command."""

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self.n = lease.last_n
        self.heard = asyncio.get_running_loop().time()  # sending time of the last command that was accepted
        self.lost = asyncio.Event()  # set when the fabric refused the token, or was out of reach for `allowed`
        self.commanding = asyncio.Lock()  # one command at a time: a later `n` must not overtake an earlier one

    @property
    def id(self) -> str:
        """The lease's id."""
        return self.lease.id

    @property
    def token(self) -> int:
        """The lease's token."""
        return self.lease.token

    @property
    def allowed_s(self) -> float:
        """Silence after which the fabric counts the holder as dead."""
        return self.lease.allowed_s


class FabricClient:
    """Asks the fabric of one host, in one role, for one holder."""

    def __init__(self, bus: Bus, host: str, role: Role, holder: str) -> None:
        self._bus = bus
        self._host = host
        self._role = role
        self._holder = holder
        self.answers = True  # false from a question that nobody answered to the next that somebody does

    # --- Questions ---

    async def read(self, operations: Sequence[Operation], *, timeout_s: float = QUESTION_S) -> tuple[Value, ...]:
        """Read registers."""
        question = fabric.Read(operations=tuple(operations))
        reply = await self._question("read", question, fabric.ReadReply, timeout_s)
        return _answers(reply.values)

    async def leases(self, port: Address | None = None, *, timeout_s: float = QUESTION_S) -> LeaseList:
        """Return the open leases, all or those that cover `port`, and those that ended last."""
        found: LeaseList = await self._question("leases", fabric.Leases(port=port), fabric.LeasesReply, timeout_s)
        return found

    async def topology(self, *, timeout_s: float = QUESTION_S) -> Topology:
        """Return the functions as last enumerated."""
        reply = await self._question("topology", fabric.AskTopology(), fabric.AskTopologyReply, timeout_s)
        found: Topology = reply.topology
        return found

    async def dump(self, function: Address, *, timeout_s: float = QUESTION_S) -> bytes:
        """Return a function's whole config space, all ones where nothing answers."""
        reply = await self._question("dump", fabric.Dump(function=function), fabric.DumpReply, timeout_s)
        config: bytes = reply.config
        return config

    async def acknowledge(
        self, operations: Sequence[Operation], *, stale: bool = False, timeout_s: float = QUESTION_S
    ) -> tuple[Value, ...]:
        """Clear error status bits that have been read and published (role aer); `stale`: nothing tells of them."""
        command = fabric.Acknowledge(operations=tuple(operations), stale=stale)
        reply = await self._command("acknowledge", command, fabric.AcknowledgeReply, timeout_s)
        return _answers(_accepted(reply).values)

    # --- Leases ---

    async def open(self, command: fabric.Open) -> Opened | Refused:
        """Take a lease, or hear who stands in the way. Asking again with the same id is answered again."""
        reply: Opened | Refused = await self._command("open", command, fabric.OpenReply, command.allowed_s)
        return reply

    async def adopt(self, lease_id: str) -> LeaseHandle:
        """Take over a lease. Raises RefusedError."""
        command = fabric.Adopt(id=lease_id, holder=self._holder)
        reply = await self._command("adopt", command, fabric.AdoptReply, QUESTION_S)
        return LeaseHandle(_accepted(reply).lease)

    async def execute(
        self, handle: LeaseHandle, operations: Sequence[Operation], provided: Sequence[Condition] = ()
    ) -> tuple[Value, ...]:
        """Do these operations as one step. Raises Fenced, RefusedError, or Unanswered where the outcome is unknown."""
        async with handle.commanding:
            # Also a command without an answer uses its number up: it may be executed yet.
            handle.n += 1
            command = fabric.Execute(
                token=handle.token, n=handle.n, operations=tuple(operations), provided=tuple(provided)
            )
            reply = await self._on_lease(handle, "execute", command, fabric.ExecuteReply)
            return _answers(_accepted(reply).values)

    async def beat(self, handle: LeaseHandle) -> None:
        """Say that the holder lives. Raises Fenced."""
        _accepted(await self._on_lease(handle, "beat", fabric.Beat(token=handle.token), fabric.BeatReply))

    async def close(
        self, handle: LeaseHandle, quarantine: tuple[Address, ...] = (), why: str = ""
    ) -> fabric.Closed | Refused:
        """Verify, drain, unmask and retire; `quarantine` ports stay held down. Refused while a reset bit is set.

        Raises Fenced.
        """
        command = fabric.Close(token=handle.token, quarantine=quarantine, why=why)
        async with handle.commanding:
            try:
                reply: fabric.Closed | Refused = await self._on_lease(handle, "close", command, fabric.CloseReply)
            except Fenced:
                # Closed already, by an attempt whose answer was lost?
                closed = await self._retired(handle)
                if closed is None:
                    raise
                return closed
            return reply

    async def _on_lease(self, handle: LeaseHandle, name: str, command: Message, reply: Any) -> Any:
        now = asyncio.get_running_loop().time()
        answer = await self._command(name, command, reply, max(handle.heard + handle.allowed_s - now, ATTEMPT_S))
        if isinstance(answer, Refused) and answer.reason in _DEPOSED:
            handle.lost.set()
            raise Fenced(f"lease {handle.id}: {answer.message}")
        if not isinstance(answer, Refused):
            handle.heard = max(handle.heard, now)
        return answer

    async def _retired(self, handle: LeaseHandle) -> fabric.Closed | None:
        for retired in (await self.leases()).retired:
            if retired.lease.id == handle.id and retired.absorbed_by is None:
                return fabric.Closed(lease=retired.lease, outcomes=retired.outcomes)
        return None

    async def _question(self, name: str, question: Message, reply: Any, within_s: float) -> Any:
        return _accepted(await self._ask(subjects.fabric(self._host, name), question, reply, within_s))

    async def _command(self, name: str, command: Message, reply: Any, within_s: float) -> Any:
        return await self._ask(subjects.command(self._host, self._role, name), command, reply, within_s)

    async def _ask(self, subject: str, message: Message, reply: Any, within_s: float) -> Any:
        """Ask until there is an answer, at most for `within_s`. Raises Unanswered or BusUnreachable then."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within_s
        pause = _AGAIN_FIRST_S
        while True:
            left = deadline - loop.time()
            try:
                answer = await self._bus.request(subject, message, reply, timeout_s=min(ATTEMPT_S, left))
            except (Unanswered, BusUnreachable):
                if deadline - loop.time() <= pause:
                    self.answers = False
                    raise
            else:
                self.answers = True
                passing = isinstance(answer, Refused) and answer.reason in _PASSING
                if not passing or deadline - loop.time() <= pause:
                    return answer
            await asyncio.sleep(pause)
            pause = min(2 * pause, _AGAIN_MAX_S)


@asynccontextmanager
async def keep_alive(client: FabricClient, handle: LeaseHandle) -> AsyncIterator[LeaseHandle]:
    """Beat for the lease at a third of its `allowed`, until the block ends. `handle.lost` tells that it is lost."""
    beating = asyncio.create_task(_beat_on(client, handle), name=f"beat {handle.id}")
    try:
        yield handle
    finally:
        beating.cancel()
        await asyncio.wait({beating})


async def _beat_on(client: FabricClient, handle: LeaseHandle) -> None:
    pause = handle.allowed_s / timing.LEASE_BEATS_PER_ALLOWED
    while not handle.lost.is_set():
        try:
            await client.beat(handle)
        except (Fenced, RefusedError, BusError) as error:
            _log.warning("lease lost", lease=handle.id, token=handle.token, error=str(error))
            handle.lost.set()
            return
        await asyncio.sleep(pause)


def _accepted(reply: Any) -> Any:
    if isinstance(reply, Refused):
        raise RefusedError(reply)
    return reply


def _answers(values: tuple[int | None, ...]) -> tuple[Value, ...]:
    return tuple(NO_ANSWER if value is None else value for value in values)
