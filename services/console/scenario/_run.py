"""Runs a scenario: a fleet of its own, what happens at its time or upon its fact, and the judgement at the end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from services.console._exit import ExitCode, Failure
from services.console._facts import of_host
from services.console._fleet import Fleet
from services.console._process import OnLine, Process, ProcessError
from services.console._session import Session, Target, session
from shared.pcie import Address, Topology
from shared.pcie import registers as reg
from shared.protocol import decode, subjects
from shared.protocol.fabric import LeaseList
from shared.protocol.facts import Fact
from shared.protocol.records import Recovery, RecoveryState
from shared.protocol.requests import Inject, InjectReply
from shared.runtime import BusError

from ._judge import Ended, Ran, State, judge, masked_bits, pending
from ._registers import place
from ._scenario import Kill, Restart, RunCommand, Scenario, Signal, Timed, When

_POLL_S: Final = 0.05
_SEATED_MAX_S: Final = 30.0  # for hotplug to register what firmware left in the slots
_CALM_S: Final = 0.3  # without a lease: hotplug has set up at the start what it sets up
_IDLE_MAX_S: Final = 10.0  # nothing open, nothing told, and still something expected: it will not come any more
_CRASHED: Final = '"actor crashed"'  # what a service's supervisor logs
_SAID_MAX: Final = 800  # characters of such a line: what was raised stands in it
_STOP_S: Final = 5.0  # a command that the scenario has started is given so long to end

Tell = Callable[[str], None]
OnFact = Callable[[Fact], None]


class Result(msgspec.Struct, frozen=True):
    """How a scenario ended: what failed, and what was told since it began."""

    file: str
    title: str
    number: int | None
    passed: bool
    seconds: float
    failures: tuple[str, ...] = ()
    facts: tuple[Fact, ...] = ()


async def run_scenario(
    scenario: Scenario, *, timeout_s: float | None = None, tell: Tell = lambda _: None, on_fact: OnFact = lambda _: None
) -> Result:
    """Run a scenario to its end. Nothing is left running, however it ends. Raises Failure where it cannot be run."""
    began = asyncio.get_running_loop().time()
    limit = timeout_s or scenario.header.timeout_s
    with tempfile.TemporaryDirectory(prefix="holdfast-scenario-") as directory:
        topology = Path(directory) / "topology.toml"
        await asyncio.to_thread(topology.write_text, scenario.machine, encoding="utf-8")
        crashes: list[str] = []
        try:
            async with (
                Fleet(topology, environment=scenario.settings, on_line=_listener(crashes)) as fleet,
                session(Target(fleet.url, fleet.host, limit)) as opened,
            ):
                ran = await _Run(scenario, fleet, opened, limit, tell, on_fact).run()
        except ProcessError as error:
            raise Failure(ExitCode.INTERNAL, str(error)) from error
    failures = (*judge(scenario, ran), *crashes)
    return Result(
        file=str(scenario.file),
        title=scenario.header.title,
        number=scenario.header.number,
        passed=not failures,
        seconds=round(asyncio.get_running_loop().time() - began, 2),
        failures=failures,
        facts=ran.facts,
    )


def _listener(crashes: list[str]) -> OnLine:
    """Return what notes an actor that has crashed: its supervisor starts it anew, so no fact would tell."""

    def listen(name: str, line: str) -> None:
        if _CRASHED in line:
            crashes.append(f"{name}: {line[:_SAID_MAX]}")

    return listen


class _Run:
    """One scenario on a running fleet."""

    def __init__(
        self, scenario: Scenario, fleet: Fleet, opened: Session, limit_s: float, tell: Tell, on_fact: OnFact
    ) -> None:
        self._scenario = scenario
        self._fleet = fleet
        self._session = opened
        self._limit_s = limit_s
        self._tell = tell
        self._on_fact = on_fact
        self._story: list[Fact] = []
        self._begun = 0  # where the scenario's facts begin in the story
        self._last = 0.0  # loop time of the last fact
        self._more = asyncio.Condition()
        self._problems: list[str] = []
        self._ended: list[Ended] = []
        self._done: dict[str, asyncio.Event] = {}  # of timed things, by their names
        self._accidents: set[str] = set()  # services that end on purpose

    async def run(self) -> Ran:
        """Run it, whatever becomes of it; what is asked of the fleet in vain is a problem of the scenario."""
        following = asyncio.create_task(self._follow())
        watching = asyncio.create_task(self._watch())
        try:
            topology = await self._seated()
            before = await self._state(topology)
            await self._caught_up()
            await self._happen()
            return await self._left(topology, before)
        finally:
            for task in (following, watching):
                task.cancel()
            await asyncio.gather(following, watching, return_exceptions=True)

    # --- The story ---

    async def _follow(self) -> None:
        async for fact in self._session.bus.facts(of_host(self._session.host), follow=True):
            async with self._more:
                self._story.append(fact)
                self._last = asyncio.get_running_loop().time()
                self._more.notify_all()
            if self._begun:
                self._on_fact(fact)

    async def _caught_up(self) -> None:
        """Have heard all that is stored: the scenario's own facts begin here."""
        stored = [fact async for fact in self._session.bus.facts(of_host(self._session.host))]
        async with asyncio.timeout(_SEATED_MAX_S), self._more:
            await self._more.wait_for(lambda: len(self._story) >= len(stored))
        self._begun = len(self._story)

    @property
    def _facts(self) -> tuple[Fact, ...]:
        return tuple(self._story[self._begun :])

    # --- The beginning ---

    async def _seated(self) -> Topology:
        """Wait until hotplug has registered what firmware left, and has set up its slots under their leases."""
        loop = asyncio.get_running_loop()
        until = loop.time() + _SEATED_MAX_S
        calm_since: float | None = None
        while True:
            topology = await self._session.topology()
            below = {function.address for function in topology if function.parent is not None}
            missing = below - {device.function for device in await self._session.devices() if device.present}
            if missing and loop.time() > until:
                names = ", ".join(map(str, sorted(missing)))
                raise Failure(ExitCode.INTERNAL, f"hotplug did not register {names} within {_SEATED_MAX_S:g} s")
            if missing or (await self._session.leases()).leases:
                calm_since = None
            elif calm_since is None:
                calm_since = loop.time()
            elif loop.time() - calm_since >= _CALM_S:
                return topology
            await asyncio.sleep(_POLL_S)

    # --- What happens ---

    async def _happen(self) -> None:
        """Do all that is timed, each in its time, until everything is over or the limit is reached."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._limit_s
        self._last = loop.time()
        self._done = {timed.when.name: asyncio.Event() for timed in self._scenario.timed}
        doing = [asyncio.create_task(self._timed(timed)) for timed in self._scenario.timed]
        try:
            while not await self._is_over(all(task.done() for task in doing)):
                if loop.time() >= until:
                    self._problems.append(f"not over within {self._limit_s:g} s")
                    break
                await asyncio.sleep(_POLL_S)
        finally:
            for task in doing:
                task.cancel()
            ended = await asyncio.gather(*doing, return_exceptions=True)
        for timed, error in zip(self._scenario.timed, ended, strict=True):
            if isinstance(error, asyncio.CancelledError):
                self._problems.append(f"did not come to pass, or to an end: {_name(timed)}")
            elif isinstance(error, BaseException):
                raise error

    async def _is_over(self, done: bool) -> bool:
        """Tell whether all has happened, nothing is open, and nobody has anything to say any more."""
        silent_s = asyncio.get_running_loop().time() - self._last
        if silent_s < self._scenario.header.quiet_s:
            return False
        try:
            open_now = bool((await self._session.leases()).leases) or await self._recovering()
        except (Failure, BusError):  # whom the scenario has killed cannot be asked
            return silent_s >= self._limit_s
        waits = not done or pending(self._scenario, self._facts)
        return not open_now and (not waits or silent_s >= _IDLE_MAX_S)

    async def _recovering(self) -> bool:
        entries = await self._session.bus.keys(f"recovery.{self._session.host}.")
        records: list[Recovery] = [decode(entry.value, Recovery) for entry in entries]
        return any(record.state is RecoveryState.OPEN for record in records)

    async def _timed(self, timed: Timed) -> None:
        await self._due(timed.when)
        self._tell(_name(timed))
        try:
            await self._do(timed.action)
        except Failure as failure:
            self._problems.append(str(failure))
        self._done[timed.when.name].set()

    async def _due(self, when: When) -> None:
        if when.done is not None:
            await self._done[when.done].wait()
        upon = when.upon
        if upon is not None:
            async with self._more:
                await self._more.wait_for(lambda: sum(map(upon.fits, self._facts)) >= upon.nth)
        await asyncio.sleep(when.at)

    def _do(self, action: Inject | RunCommand | Kill | Restart) -> Coroutine[Any, Any, None]:
        match action:
            case Inject():
                return self._inject(action)
            case RunCommand():
                return self._command(action)
            case Kill():
                return self._kill(action)
            case Restart():
                return self._restart(action)

    async def _inject(self, inject: Inject) -> None:
        subject, what = subjects.inject(self._session.host), f"inject {inject.what} at {inject.target}"
        await self._session.ask(subject, inject, InjectReply, whom="machine", what=what)

    async def _kill(self, kill: Kill) -> None:
        self._accidents.add(kill.service)
        self._fleet.kill(kill.service, getattr(signal, f"SIG{kill.signal}"))
        if kill.for_s is None:
            return
        await asyncio.sleep(kill.for_s)
        if kill.signal is Signal.STOP:
            self._fleet.kill(kill.service, signal.SIGCONT)
        else:
            await self._fleet.restart(kill.service)

    async def _restart(self, restart: Restart) -> None:
        self._accidents.add(restart.service)
        await self._fleet.restart(restart.service)

    async def _command(self, command: RunCommand) -> None:
        """Run `holdfast` as an operator would."""
        written: list[str] = []
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")}
        process = await Process.start(
            "holdfast",
            (sys.executable, "-m", "services.console", *command.argv),
            {
                **inherited,
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
                "HOLDFAST_NATS_URL": self._fleet.url,
                "HOLDFAST_HOST": self._fleet.host,
            },
            on_line=lambda _, line: written.append(line),
            is_ready=lambda _: False,
        )
        try:
            code = await process.ended()
            self._ended.append(Ended(command, datetime.now(UTC)))
        finally:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.shield(process.stop(_STOP_S))
        said, name = "\n".join(written), f"holdfast {' '.join(command.argv)}"
        if code != command.exit:
            self._problems.append(f"{name} ended with {code}, not {command.exit}: {said}")
        self._problems += [f"{name} did not say {text!r}: {said}" for text in command.says if text not in said]

    async def _watch(self) -> None:
        """Notice a service that ends although nobody told it to."""
        while True:
            for name, process in self._fleet.processes.items():
                if process.exit_code is not None and name not in self._accidents:
                    self._accidents.add(name)
                    said = "".join(f"\n  {line}" for line in process.last_lines)
                    self._problems.append(f"{name} ended with code {process.exit_code}{said}")
            await asyncio.sleep(_POLL_S)

    # --- The end ---

    async def _left(self, begin: Topology, before: State) -> Ran:
        """Look at what is left."""
        topology = await self._session.topology()
        after = await self._state(topology)
        known = {function.address for function in begin}
        both = (*begin.functions, *(function for function in topology if function.address not in known))
        return Ran(
            everything=tuple(self._story),
            facts=self._facts,
            topology=msgspec.structs.replace(topology, functions=both),
            before=before,
            after=after,
            leases=await self._leases(),
            registers=await self._registers(topology),
            ended=tuple(self._ended),
            problems=tuple(self._problems),
        )

    async def _leases(self) -> LeaseList:
        return await self._session.leases()

    async def _state(self, topology: Topology) -> State:
        slots = [function for function in topology if function.hotplug_capable]
        rows = [(slot.address, slot.capabilities.express + reg.SLOT_CONTROL.offset, 2) for slot in slots]
        controls = await self._session.read(*rows) if rows else ()
        devices = {device.function: device for device in await self._session.devices()}
        config = {function.address: await self._config(topology, function.address) for function in topology}
        enables = {slot.address: masked_bits(control) for slot, control in zip(slots, controls, strict=True)}
        return State(devices=devices, enables=enables, config=config)

    async def _config(self, topology: Topology, address: Address) -> dict[str, int | None]:
        """Read what software has set up in a function, and a reset must not lose."""
        function = topology.get(address)
        rows = [(reg.COMMAND, 0)]
        if function.capabilities.express:
            rows.append((reg.DEVICE_CONTROL, function.capabilities.express))
        if function.kind.is_bridge:
            rows += [(row, 0) for row in (reg.SECONDARY_BUS, reg.SUBORDINATE_BUS, reg.MEMORY_BASE, reg.MEMORY_LIMIT)]
        else:
            rows.append((reg.BAR[0], 0))
        values = await self._session.read(*((address, base + row.offset, row.width) for row, base in rows))
        return {row.name: value for (row, _), value in zip(rows, values, strict=True)}

    async def _registers(self, topology: Topology) -> tuple[int | None, ...]:
        """Read the registers that the scenario asks for; None where nothing answers, or the function has none."""
        found: list[int | None] = []
        for held in self._scenario.registers:
            function = topology.find(held.function)
            where = None if function is None else place(function, held.register)
            found.append(None if where is None else (await self._session.read((held.function, *where)))[0])
        return tuple(found)


def _name(timed: Timed) -> str:
    match timed.action:
        case Inject(what=what, target=target):
            return f"inject {what} at {target}"
        case RunCommand(argv=argv):
            return f"run holdfast {' '.join(argv)}"
        case Kill(service=service, signal=number):
            return f"send {service} SIG{number}"
        case Restart(service=service):
            return f"restart {service}"
