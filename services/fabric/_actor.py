"""The one actor of the fabric: it takes one request after another, persists, performs, answers. It decides nothing.

The order is that of raft's Ready: an entry is synced before what follows from it touches the hardware, everything is
synced before the answer leaves, and facts go to the bus after that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from typing import Any, Final, TypeAlias, TypeVar

import msgspec
import structlog

from shared.pcie import NO_ANSWER, Address, Function, Value
from shared.protocol import Message, Reason, Refused, fabric, subjects
from shared.protocol.fabric import Role, Verb
from shared.protocol.facts import What
from shared.recovery import Do
from shared.runtime import Actor, BusUnreachable, Context, Reading, Request, actor_gauges

from ._book import Book, Enumerated, Found, HandedOver, Said, Stored
from ._closing import close, notified, resume
from ._effects import Answer, Command, Effect, Enumerate, Persist, Tell
from ._execute import acknowledge, execute
from ._gauges import lease_gauges
from ._hardware import Hardware
from ._interrupts import DPC, interrupt, sharing, snapshot_reads, vectors
from ._leases import adopt, held, refuse
from ._ledger import Ledger, LedgerError
from ._opening import open_lease
from ._questions import list_leases, read_registers, tell_topology
from ._registers import Registers
from ._silence import Hearing, quarantine_key, silent
from ._snapshot import Known
from ._start import after_enumeration, held_back
from ._topology import discover

_STOPPING: Final = "the fabric is stopping; ask again"
R = TypeVar("R")
_log = structlog.get_logger()


class Asked(msgspec.Struct, frozen=True):
    """A request, and the role that its subject says; None for questions."""

    request: Request
    role: Role | None

    @property
    def fenced(self) -> bool:
        """Whether it is a command about a lease, which id or token keep from doing harm when it is done late."""
        return self.role is not None and not isinstance(self.request.message, fabric.Acknowledge)


class Interrupted(msgspec.Struct, frozen=True):
    """An interrupt message of a function."""

    function: Address
    vector: int


class Notified(msgspec.Struct, frozen=True):
    """The firmware notifies of a port's containment (EDR)."""

    port: Address


class Returned(msgspec.Struct, frozen=True):
    """The hardware is there (again): everything may have changed."""


class Lost(msgspec.Struct, frozen=True):
    """The hardware does not answer any more."""


Mail: TypeAlias = Asked | Interrupted | Notified | Returned | Lost


class Fabric(Actor[Mail]):
    """The authority on one host's leases. `broken` is set when the ledger fails: then nothing more is done."""

    def __init__(self, context: Context, hardware: Hardware, ledger: Ledger) -> None:
        super().__init__("fabric")
        self._context = context
        self._hardware = hardware
        self._ledger = ledger
        self._registers = Registers(hardware)
        self._hearing = Hearing()
        self._unsynced = False  # something was appended that must be durable before anybody hears of it
        self._unsaid = list(ledger.book.said)  # facts for the bus, after the next sync; first those of our predecessor
        self.broken: asyncio.Future[LedgerError] = asyncio.get_running_loop().create_future()
        self.enumerated = asyncio.Event()  # set while the hardware is there, and has been seen
        self.lost = asyncio.Event()  # set from the loss of the hardware to the next enumeration
        hardware.on_interrupt(lambda function, vector: _ignore(self.tell(Interrupted(function, vector))))
        hardware.on_firmware_event(lambda port: _ignore(self.tell(Notified(port))))

    async def started(self) -> None:
        """Enumerate, and finish what was left half done."""
        now = asyncio.get_running_loop().time()
        for known in _heard_of(self._ledger.book):
            self._hearing.note(known, now)
        await self._guarded(self._returned())

    async def receive(self, message: Mail) -> None:
        """Handle one request, interrupt or notification, or the return or loss of the hardware."""
        match message:
            case Asked():
                await self._guarded(self._answer(message))
            case Interrupted():
                await self._interrupt(message)
            case Notified():
                await self._guarded(self._notified(message.port))
            case Returned():
                await self._guarded(self._returned())
            case Lost():
                self.enumerated.clear()
                self.lost.set()

    async def refused(self, message: Mail) -> None:
        """Answer what is left in the mailbox at the end."""
        if isinstance(message, Asked):
            await message.request.answer(refuse(Reason.STOPPING, _STOPPING))

    def gauges(self) -> Iterator[Reading]:
        """Read the leases, and the mailbox."""
        host = self._context.host
        yield from lease_gauges(self._ledger.book, self._hearing, host, asyncio.get_running_loop().time())
        yield from actor_gauges(host, self.name, (self.statistics(),))

    async def _guarded(self, work: Any) -> None:
        """Run, unless the ledger has failed; if it fails now, this was the last thing done."""
        if self.broken.done():
            work.close()
            return
        try:
            await work
        except LedgerError as error:
            self.broken.set_result(error)

    async def _answer(self, asked: Asked) -> None:
        if asked.request.abandoned and not asked.fenced:
            # Who gives up asks again. Were the dead requests done first, as happens on a host that is slow for a while,
            # every answer would come too late from then on; and an acknowledgement would clear what came in between.
            _log.debug("nobody awaits the answer", request=type(asked.request.message).__name__)
            return
        reply = await self._reply(asked)
        if isinstance(reply, Refused):
            self._note_refusal(asked, reply)
        self._flush()
        await asked.request.answer(reply)

    async def _reply(self, asked: Asked) -> Message:
        """Run the command that was asked, on the book as it is."""
        message, role, book = asked.request.message, asked.role, self._ledger.book
        if isinstance(message, fabric.Dump):
            return await self._dump(message)
        if isinstance(message, fabric.Leases):
            return list_leases(book, message, self._hearing, asyncio.get_running_loop().time())
        if isinstance(message, fabric.AskTopology):
            return tell_topology(book)
        if isinstance(message, fabric.Read):
            return await self._run(read_registers(book, message))
        if isinstance(message, fabric.Acknowledge):
            return await self._run(acknowledge(book, message))
        assert role is not None, "commands are served by role"
        reply: Message = await self._command(message, role)
        self._heard(message, reply)
        return reply

    async def _command(self, message: Message, role: Role) -> Message:
        book = self._ledger.book
        match message:
            case fabric.Open():
                return await self._run(open_lease(book, message, role))
            case fabric.Execute():
                return await self._run(execute(book, message, role))
            case fabric.Adopt():
                now = asyncio.get_running_loop().time()
                silent_s = silent(self._hearing.get(message.id, now), now)
                return await self._run(adopt(book, message, role, silent_s=silent_s))
            case fabric.Close():
                return await self._run(close(book, message, role))
            case fabric.Beat():
                holding = held(book, message.token, role)
                return holding if isinstance(holding, Refused) else fabric.Alive(lease=holding.lease.ref)
        raise AssertionError(f"{type(message).__name__} is served, but not handled")

    def _heard(self, message: Message, reply: Message) -> None:
        """Every accepted command is a beat, also one that was refused for what it wanted, but not for who asked."""
        book, now = self._ledger.book, asyncio.get_running_loop().time()
        token = getattr(message, "token", None)
        if isinstance(reply, fabric.Opened | fabric.Adopted):
            self._hearing.note(reply.lease.id, now)
        elif not isinstance(reply, Refused) and token is not None:
            holding = book.by_token(token)
            if holding is not None:
                self._hearing.note(holding.lease.id, now)
        for record in book.quarantines:
            self._hearing.note(quarantine_key(record.port), now)
        self._hearing.forget_but(_heard_of(book) | {one.retired.lease.id for one in book.ended})

    def _note_refusal(self, asked: Asked, refused: Refused) -> None:
        """State every refused command as a fact; what was refused to a question is only logged."""
        message = asked.request.message
        port = getattr(message, "port", None)
        if refused.lease is not None:
            port = Address.parse(refused.lease.port)
        about = {"command": type(message).__name__.lower(), "reason": str(refused.reason), "why": refused.message}
        if port is None or asked.role is None:
            self._context.log.info("refused", **about)
            return
        lease = None if refused.lease is None else refused.lease.id
        data = {**about, "role": str(asked.role)}
        self._tell(
            Said(what=What.LEASE_REFUSED, port=port, lease=lease, cause=getattr(message, "cause", None), data=data)
        )

    async def _dump(self, asked: fabric.Dump) -> Message:
        if self._ledger.book.topology.find(asked.function) is None:
            return refuse(Reason.UNKNOWN_PORT, f"no function at {asked.function}")
        return fabric.Dumped(function=asked.function, config=await self._registers.image(asked.function))

    # --- Hardware ---

    async def _returned(self) -> None:
        """Enumerate, renew what no lease covers, then finish closes and masks that were left half done."""
        found = await self._enumerate()
        firmware_first = await self._hardware.firmware_first()
        if firmware_first is not None and firmware_first is not self._ledger.book.firmware_first:
            self._append(Found(firmware_first=firmware_first))
        if found:
            book = self._ledger.book
            back = await self._run(held_back(book))
            known = after_enumeration(book, found, back)
            if known != book.known:
                self._append(Enumerated(known=known))
            for slot in (one for one in self._ledger.book.topology if one.slot is not None):
                await self._registers.complete(slot)
            await self._run(resume(self._ledger.book))
            self.lost.clear()
            self.enumerated.set()
        self._flush()
        for function in self._ledger.book.topology:
            for vector in vectors(function):  # what was raised while nobody listened is not raised again
                await self._interrupt(Interrupted(function.address, vector))

    async def _interrupt(self, message: Interrupted) -> None:
        """Publish the hint to every service that shares the vector. A lost hint costs latency only."""
        function = self._ledger.book.topology.find(message.function)
        services = () if function is None else sharing(function, message.vector)
        if function is None or not services:
            _log.info("interrupt of nobody", port=str(message.function), vector=message.vector)
            return
        await self._hint(function, services)

    async def _notified(self, port: Address) -> None:
        """Write down that the firmware hands a containment over, then tell dpc. What is not known cannot be recovered."""
        if port not in self._ledger.book.edr:
            self._append(HandedOver(port=port))
        if self.enumerated.is_set():
            await self._run(notified(self._ledger.book, port))
        self._flush()
        function = self._ledger.book.topology.find(port)
        if function is None:
            _log.warning("the firmware notifies of a port that is not known", port=str(port))
            return
        await self._hint(function, (DPC,), edr=True)

    async def _hint(self, function: Function, services: tuple[str, ...], *, edr: bool = False) -> None:
        await self._registers.complete(function)
        reads = snapshot_reads(function)
        sent = await self._do(Do(tuple(reads.values())))
        hint = interrupt(function, dict(zip(reads, sent, strict=True)), edr=edr)
        for service in services:
            try:
                await self._context.bus.publish(subjects.irq(self._context.host, function.address, service), hint)
            except BusUnreachable:
                _log.warning("interrupt not published", port=str(function.address), to=service)

    async def _enumerate(self) -> tuple[Known, ...]:
        addresses = await self._hardware.enumerate()
        return discover({address: await self._registers.image(address) for address in addresses})

    # --- Effects ---

    async def _run(self, command: Command[R]) -> R:
        """Perform a command's effects in their order; return its reply."""
        sent: Any = None
        while True:
            try:
                effect = command.send(sent)
            except StopIteration as done:
                reply: R = done.value
                return reply
            sent = await self._perform(effect)

    async def _perform(self, effect: Effect) -> Any:
        if isinstance(effect, Persist):
            self._append(effect.entry, sync=effect.sync)
            if effect.sync:
                self._sync()
            return self._ledger.book
        if isinstance(effect, Tell):
            self._tell(effect.said)
            return self._ledger.book
        if isinstance(effect, Enumerate):
            return await self._enumerate()
        if isinstance(effect, Answer):
            return await self._hardware.answer_firmware(effect.port, effect.status)
        assert isinstance(effect, Do), f"the fabric does not {effect}: closing neither waits nor notes"
        return await self._do(effect)

    async def _do(self, effect: Do) -> tuple[Value, ...]:
        """Perform operations in their order. Reads in a row travel together: hardware answers in order, and sooner."""
        topology = self._ledger.book.topology
        values: list[int | None] = []
        for reads, operations in groupby(effect.operations, lambda operation: operation.verb is Verb.READ):
            if reads:
                values += await asyncio.gather(*(self._registers.perform(one, topology) for one in operations))
            else:
                values += [await self._registers.perform(one, topology) for one in operations]
        return tuple(NO_ANSWER if value is None else value for value in values)

    def _append(self, entry: Any, *, sync: bool = True) -> None:
        self._ledger.append(entry)
        self._unsynced = self._unsynced or sync

    def _tell(self, said: Said) -> None:
        self._append(said)
        self._unsaid.append(said)

    def _sync(self) -> None:
        if self._unsynced:
            self._ledger.sync()
            self._unsynced = False

    def _flush(self) -> None:
        """Make everything durable, then let the bus have the facts; forget those that it has stored."""
        stored = len(self._ledger.book.said) - len(self._unsaid)
        if stored > 0 and not self._context.bus.statistics().facts_pending:
            self._append(Stored(count=stored), sync=False)
        self._sync()
        for said in self._unsaid:
            self._context.facts.say(said.what, said.port, lease=said.lease, cause=said.cause, **said.data)
        self._unsaid.clear()
        if self._ledger.worth_compacting:
            self._ledger.compact()


def _heard_of(book: Book) -> frozenset[str]:
    return frozenset(
        (
            *(holding.lease.id for holding in book.leases),
            *(quarantine_key(record.port) for record in book.quarantines),
        )
    )


def _ignore(_: bool) -> None:
    """Drop the answer of `tell`: a mailbox that is full has said so, and an interrupt is a hint."""


def endpoints(
    host: str, receive: Callable[[Request, Role | None], None]
) -> Mapping[str, tuple[type[Message], Callable[[Request], None]]]:
    """Return every subject that the fabric answers, with its request type."""
    questions: dict[str, type[Message]] = {
        "read": fabric.Read,
        "dump": fabric.Dump,
        "leases": fabric.Leases,
        "topology": fabric.AskTopology,
    }
    commands: dict[str, type[Message]] = {
        "open": fabric.Open,
        "execute": fabric.Execute,
        "beat": fabric.Beat,
        "adopt": fabric.Adopt,
        "close": fabric.Close,
    }
    rows: dict[str, tuple[type[Message], Role | None]] = {
        subjects.fabric(host, name): (kind, None) for name, kind in questions.items()
    }
    for role in (Role.COORDINATOR, Role.HOTPLUG):
        rows |= {subjects.command(host, role, name): (kind, role) for name, kind in commands.items()}
    rows[subjects.command(host, Role.AER, "acknowledge")] = (fabric.Acknowledge, Role.AER)
    return {subject: (kind, _handler(receive, role)) for subject, (kind, role) in rows.items()}


def _handler(receive: Callable[[Request, Role | None], None], role: Role | None) -> Callable[[Request], None]:
    return lambda request: receive(request, role)
