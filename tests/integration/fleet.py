"""A running fleet for a test: the real processes, a connection of one's own, and every fact since the start."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from services.console._fleet import Fleet
from shared.pcie import Address, Topology
from shared.pcie.registers import SLOT_CONTROL, SLOT_STATUS, Register, SlotControl
from shared.protocol import Message, Refused, decode, from_builtins, subjects
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
from shared.protocol.facts import Fact, What
from shared.protocol.records import Device, Recovery, RecoveryState
from shared.protocol.requests import Inject, Injected, InjectReply
from shared.runtime import BusError, NatsBus, Settings, connect

ANSWER_S: Final = 15.0  # bounds for a heavily loaded machine; nothing is measured by them
FACT_S: Final = 60.0
READY_S: Final = 120.0
_POLL_S: Final = 0.05
_CALM_LOOKS: Final = 6

T = TypeVar("T")


class Bench:
    """A fleet under test. Addresses may be written as text."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.host = fleet.host
        self.bus: NatsBus
        self._facts: list[Fact] = []
        self._more = asyncio.Condition()
        self._following: asyncio.Task[None]

    async def __aenter__(self) -> Self:
        await self.fleet.__aenter__()
        try:
            self.bus = await self.connect("operator")
            self._following = asyncio.create_task(self._follow())
            await self._settled()
        except BaseException:
            await self.fleet.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._following
        await self.bus.close()
        await self.fleet.stop()

    async def connect(self, user: str) -> NatsBus:
        """Connect as `user`, where the fleet has keys."""
        environment = {
            **self.fleet.access(user),
            "HOLDFAST_NATS_URL": self.fleet.url,
            "HOLDFAST_HOSTS": self.host,
            "HOLDFAST_INSTANCE": "test",
        }
        return await connect(Settings.from_env("test", environment), "test", timeout_s=ANSWER_S)

    # --- Asking ---

    async def request(self, subject: str, message: Message, reply: Any, *, timeout_s: float = ANSWER_S) -> Any:
        """Ask a service. A refusal is returned, not raised."""
        return await self.bus.request(subject, message, reply, timeout_s=timeout_s)

    async def inject(self, what: str, target: Address | str, **fields: Any) -> None:
        """Inject into the machine: `await bench.inject("remove", "0000:00:01.0")`."""
        message = from_builtins({"what": what, "target": str(target), **fields}, Inject)
        reply = await self.request(subjects.inject(self.host), message, InjectReply)
        assert isinstance(reply, Injected), reply

    async def hang(self, function: Address | str, *steps: str, name: str = "nvme") -> None:
        """Have the function's driver not answer these callbacks until `answer`."""
        await self.inject("driver", function, driver={"name": name, "never": list(steps), "delay_s": 0.0})

    async def answer(self, function: Address | str, name: str = "nvme") -> None:
        """Have the function's driver answer at once: what it has been asked meanwhile, and what it will be."""
        await self.inject("driver", function, driver={"name": name, "never": False, "delay_s": 0.0})

    async def topology(self) -> Topology:
        reply = await self.request(subjects.fabric(self.host, "topology"), AskTopology(), AskTopologyReply)
        assert not isinstance(reply, Refused), reply
        found: Topology = reply.topology
        return found

    async def leases(self) -> LeaseList:
        reply = await self.request(subjects.fabric(self.host, "leases"), Leases(), LeasesReply)
        assert isinstance(reply, LeaseList), reply
        return reply

    async def read(self, function: Address | str, register: Register, base: int = 0) -> int | None:
        """Read a register; `base` is its capability's offset. None where nothing answers."""
        operation = Operation(
            verb=Verb.READ, function=_address(function), offset=base + register.offset, width=register.width
        )
        reply = await self.request(subjects.fabric(self.host, "read"), Read(operations=(operation,)), ReadReply)
        assert not isinstance(reply, Refused), reply
        value: int | None = reply.values[0]
        return value

    async def slot_control(self, port: Address | str) -> SlotControl | None:
        """Read Slot Control: where PDCE and DLLSCE show whether the slot is masked."""
        value = await self.read(port, SLOT_CONTROL, await self._express(port))
        return None if value is None else SlotControl(value)

    async def slot_status(self, port: Address | str) -> int | None:
        return await self.read(port, SLOT_STATUS, await self._express(port))

    async def _express(self, port: Address | str) -> int:
        return (await self.topology()).get(_address(port)).capabilities.express

    # --- Records ---

    async def registry(self) -> dict[str, Device]:
        """Return the registered functions by address."""
        entries = await self.bus.keys(f"device.{self.host}.")
        devices: list[Device] = [decode(entry.value, Device) for entry in entries]
        return {str(device.function): device for device in devices}

    async def recovery(self, port: Address | str) -> Recovery | None:
        """Return the journal record of a port."""
        entry = await self.bus.get(subjects.recovery_key(self.host, _address(port)))
        return None if entry is None else decode(entry.value, Recovery)

    async def closed(self, port: Address | str, lease: str | None = None, timeout_s: float = FACT_S) -> Recovery:
        """Wait until the record of a port says `closed` (of `lease`, if it is given)."""

        async def look() -> Recovery | None:
            record = await self.recovery(port)
            done = record is not None and record.state is RecoveryState.CLOSED
            return record if done and record is not None and lease in {None, record.lease} else None

        return await self.eventually(look, f"recovery of {port} closed", timeout_s)

    # --- Facts ---

    def facts(self, what: What | str | None = None, port: Address | str | None = None, since: int = 0) -> list[Fact]:
        """Return the facts heard so far, from number `since` on (see `mark`), optionally of one kind and port."""
        return [fact for fact in self._facts[since:] if _fits(fact, what, port)]

    def mark(self) -> int:
        """Return the place in the story, to wait for what comes after it."""
        return len(self._facts)

    async def wait_fact(
        self,
        what: What | str,
        port: Address | str | None = None,
        *,
        timeout_s: float = FACT_S,
        since: int = 0,
        lease: str | None = None,
    ) -> Fact:
        """Return the first such fact from number `since` on (of `lease`, if given), waiting for it if need be."""
        try:
            async with asyncio.timeout(timeout_s), self._more:
                while not (found := [fact for fact in self.facts(what, port, since) if lease in {None, fact.lease}]):
                    await self._more.wait()
                return found[0]
        except TimeoutError:
            told = "\n".join(f"  {fact.port} {fact.what} {fact.data}" for fact in self._facts[since:][-20:])
            raise AssertionError(f"no fact {what} of {port} within {timeout_s} s; the last ones:\n{told}") from None

    async def eventually(self, look: Callable[[], Awaitable[T | None]], what: str, timeout_s: float = FACT_S) -> T:
        """Look until there is something, and return it."""
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    with contextlib.suppress(BusError):  # a test may have killed the bus
                        found = await look()
                        if found is not None:
                            return found
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise AssertionError(f"not within {timeout_s} s: {what}") from None

    async def _follow(self) -> None:
        async for fact in self.bus.facts((f"pcie.{self.host}.>",), follow=True):
            async with self._more:
                self._facts.append(fact)
                self._more.notify_all()

    async def _settled(self) -> None:
        """Wait until hotplug has registered what was there at the start, and holds no lease to set enables."""
        calm = 0

        async def look() -> bool | None:
            nonlocal calm
            topology, registry = await self.topology(), await self.registry()
            below = {str(function.address) for function in topology if function.parent is not None}
            calm = calm + 1 if below and below <= registry.keys() and not (await self.leases()).leases else 0
            return calm >= _CALM_LOOKS or None

        await self.eventually(look, "everything registered", READY_S)

    # --- Accidents ---

    def kill(self, service: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to a service's process (SIGKILL, SIGSTOP, SIGCONT ...)."""
        self.fleet.kill(service, number)

    async def restart(self, service: str) -> None:
        """Start a service again, killed before or not, and wait until it is ready."""
        await self.fleet.restart(service)


def start(topology: str, directory: Path, **options: Any) -> Bench:
    """Return a bench for a topology file's text; `options` are those of Fleet."""
    file = directory / "topology.toml"
    file.write_text(topology)
    # A port that tests share is recovered more often in a minute than a storm breaker lets pass.
    options["environment"] = {"HOLDFAST_STORM_RECOVERIES": "1000", **options.get("environment", {})}
    return Bench(Fleet(file, **{"state_dir": directory / "state", "on_line": _print_line, **options}))


def _print_line(name: str, line: str) -> None:
    """Leave the line to pytest, which shows it when the test fails."""
    print(f"{name}: {line}")  # noqa: T201 - captured by pytest


def _fits(fact: Fact, what: What | str | None, port: Address | str | None) -> bool:
    return (what is None or fact.what == what) and (port is None or fact.port == _address(port))


def _address(text: Address | str) -> Address:
    return text if isinstance(text, Address) else Address.parse(text)
