"""A command's conversation with the services: connect, ask, and turn every expected failure into one line."""

from __future__ import annotations

import getpass
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from shared.pcie import Address, Topology
from shared.protocol import Message, Refused, decode, subjects
from shared.protocol.fabric import (
    AskTopology,
    AskTopologyReply,
    LeaseList,
    Leases,
    LeasesReply,
    Operation,
    Read,
    ReadReply,
    Verb,
)
from shared.protocol.records import Device, Recovery
from shared.runtime import (
    Bus,
    BusError,
    BusRefused,
    BusUnreachable,
    NobodyListens,
    NotPermitted,
    Settings,
    Tls,
    Unanswered,
    connect,
)

from . import _names
from ._exit import ExitCode, Failure, refusal

CONNECT_S: Final = 5.0  # usual are tenths; a machine that is busy with a recovery storm may need seconds
_OTHER: Final = "ask with another credential: holdfast --credential FILE …"
ANSWER_S: Final = 10.0  # for a question; what takes long is answered at once and followed by its record


class Access(msgspec.Struct, frozen=True):
    """Who the command is to the bus, and whom it believes to be the bus: files, as the services' settings have them."""

    credential: Path | None = None
    ca: Path | None = None
    tls: Tls = Tls.AUTO


class Target(msgspec.Struct, frozen=True):
    """Where a command is sent, and how long its outcome may take."""

    url: str
    host: str
    timeout_s: float
    access: Access = Access()


class Session:
    """An open connection, and the questions that several commands ask."""

    def __init__(self, bus: Bus, target: Target) -> None:
        self.bus = bus
        self.host = target.host
        self.timeout_s = target.timeout_s
        self._answer_s = min(ANSWER_S, target.timeout_s)

    async def ask(self, subject: str, message: Message, reply: Any, *, whom: str, what: str) -> Any:
        """Ask and return the reply. Raises Failure where `whom` does not answer, or refuses `what`."""
        answer = await self.request(subject, message, reply, whom=whom, what=what)
        if isinstance(answer, Refused):
            raise refusal(answer, what)
        return answer

    async def request(self, subject: str, message: Message, reply: Any, *, whom: str, what: str) -> Any:
        """Ask and return the reply, a refusal too. Raises Failure where `whom` does not answer."""
        try:
            return await self.bus.request(subject, message, reply, timeout_s=self._answer_s)
        except NotPermitted as error:
            raise Failure(ExitCode.DENIED, f"{what}: {error}; {_OTHER}") from error
        except NobodyListens as error:
            raise Failure(
                ExitCode.UNREACHABLE,
                f"{what}: no {whom} answers for host {self.host!r}; check --host, and `holdfast doctor`",
            ) from error
        except Unanswered as error:
            raise Failure(
                ExitCode.UNREACHABLE,
                f"{what}: the {whom} of host {self.host!r} did not answer within {self._answer_s:g} s; "
                "`holdfast doctor` tells whether it lives, `holdfast history` whether it acted",
            ) from error

    async def topology(self) -> Topology:
        """Ask the fabric for the host's functions."""
        subject = subjects.fabric(self.host, "topology")
        reply = await self.ask(subject, AskTopology(), AskTopologyReply, whom="fabric", what="topology")
        topology: Topology = reply.topology
        return topology

    async def leases(self, port: Address | None = None) -> LeaseList:
        """Ask the fabric for the open leases, all or those that cover `port`."""
        subject = subjects.fabric(self.host, "leases")
        reply: LeaseList = await self.ask(subject, Leases(port=port), LeasesReply, whom="fabric", what="leases")
        return reply

    async def read(self, *registers: tuple[Address, int, int]) -> tuple[int | None, ...]:
        """Read registers (function, offset, width); None where nothing answers."""
        operations = tuple(
            Operation(verb=Verb.READ, function=function, offset=offset, width=width)
            for function, offset, width in registers
        )
        subject = subjects.fabric(self.host, "read")
        reply = await self.ask(subject, Read(operations=operations), ReadReply, whom="fabric", what="read")
        values: tuple[int | None, ...] = reply.values
        return values

    async def devices(self) -> tuple[Device, ...]:
        """List the registry of the host."""
        entries = await self.bus.keys(f"device.{self.host}.")
        return tuple(decode(entry.value, Device) for entry in entries)

    async def recovery(self, port: Address) -> Recovery | None:
        """Read the journal record of `port`."""
        entry = await self.bus.get(subjects.recovery_key(self.host, port))
        return None if entry is None else decode(entry.value, Recovery)

    async def resolve(self, text: str) -> tuple[Address, Topology]:
        """Find what `text` names; return it with the topology it was found in."""
        _names.literal(text)  # nonsense is refused before anybody is asked
        topology = await self.topology()
        return _names.resolve(text, topology, await self.devices()), topology


@asynccontextmanager
async def session(target: Target) -> AsyncIterator[Session]:
    """Connect to the bus within CONNECT_S, or fail by name."""
    try:
        subjects.host_name(target.host)
    except ValueError as error:
        raise Failure(ExitCode.USAGE, str(error)) from error
    access = target.access
    settings = Settings(
        nats_url=target.url,
        hosts=(target.host,),
        instance=holder(),
        nats_credential=access.credential,
        nats_ca=access.ca,
        tls=access.tls,
    )
    if problems := settings.problems():
        raise Failure(ExitCode.USAGE, problems[0])
    try:
        bus = await connect(settings, "console", timeout_s=CONNECT_S, creates=False)
    except BusUnreachable as error:
        raise Failure(ExitCode.UNREACHABLE, str(error)) from error
    except BusRefused as error:
        raise Failure(ExitCode(error.exit_code), str(error)) from error
    try:
        yield Session(bus, target)
    except BusUnreachable as error:
        raise Failure(ExitCode.UNREACHABLE, f"the bus at {settings.nats_url_shown} went away: {error}") from error
    except NotPermitted as error:
        raise Failure(ExitCode.DENIED, f"{error}; {_OTHER}") from error
    except BusError as error:
        raise Failure(ExitCode.UNREACHABLE, f"the bus at {settings.nats_url_shown} did not answer: {error}") from error
    finally:
        await bus.close()


def holder() -> str:
    """Name the person and the process behind a request, for whoever finds its lease."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        user = f"uid{os.getuid()}"
    return f"{user}-{os.getpid()}"
