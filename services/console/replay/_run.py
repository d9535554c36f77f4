"""Runs a plan: a whole fleet on the rebuilt machine, the injections at their pace, and the judgement at the end."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

import msgspec

from services.console._exit import ExitCode, Failure
from services.console._fleet import Fleet
from services.console._process import ProcessError
from services.console._session import Session, Target, session
from services.console.kernel_log import KernelLog
from shared.pcie import Address
from shared.protocol import decode, subjects
from shared.protocol.fabric import RetiredLease
from shared.protocol.facts import Fact
from shared.protocol.records import Device, Recovery, RecoveryState, Verdict
from shared.protocol.requests import InjectReply
from shared.runtime import Incoming

from ._facts import Planned
from ._plan import Plan
from ._steps import Ending
from ._verdicts import Judged, holdfast_fate, kernel_fate

_POLL_S: Final = 0.1
_SEATED_MAX_S: Final = 20.0  # for hotplug to register what firmware left in the slots
_CALM_S: Final = 0.5  # without a lease: hotplug has set up at the start what it sets up
_QUIET_S: Final = 1.5  # without a new fact, nothing open: it is over ...
_RETRY_QUIET_S: Final = 6.0  # ... after a failure, longer than the longest pause before a retry (4 s)

Tell = Callable[[str], None]
OnFact = Callable[[Fact], None]


class Replayed(msgspec.Struct, frozen=True):
    """How a replay ended."""

    log: str
    devices: tuple[Judged, ...]
    planned: tuple[Planned, ...]
    leases: tuple[RetiredLease, ...]  # in the order in which they ended
    facts: tuple[Fact, ...]  # from the first injection on
    variant: Ending | None = None

    def as_json(self) -> dict[str, Any]:
        """Return it in the form of DESIGN 8."""
        return {
            "log": self.log,
            "devices": [
                {"function": str(one.function), "kernel": one.kernel, "holdfast": one.holdfast, "why": one.why}
                for one in self.devices
            ],
            "facts": [{"what": fact.what, "from": fact.source, "line": fact.line} for fact in self.planned],
            "leases": [
                {
                    "id": retired.lease.id,
                    "port": retired.lease.port,
                    "rank": retired.lease.rank,
                    "cause": retired.lease.cause,
                    "outcomes": {str(outcome.function): outcome.result for outcome in retired.outcomes},
                    "absorbed_by": retired.absorbed_by,
                }
                for retired in self.leases
            ],
        }


def as_document(replays: tuple[Replayed, ...]) -> dict[str, Any]:
    """Return one document for all that a log leaves open: what holds in one variant only names it in `variant`."""
    documents = [one.as_json() for one in replays]
    if len(documents) == 1:
        return documents[0]
    merged: dict[str, Any] = {"log": replays[0].log, "variants": [one.variant for one in replays]}
    for part in ("devices", "facts", "leases"):
        merged[part] = []
        for one, document in zip(replays, documents, strict=True):
            for row in document[part]:
                if part != "devices" and all(row in other[part] for other in documents):
                    shared = row
                else:
                    shared = {**row, "variant": one.variant}
                if shared not in merged[part]:
                    merged[part].append(shared)
    return merged


async def replay(log: KernelLog, plan: Plan, *, timeout_s: float, tell: Tell, on_fact: OnFact) -> Replayed:
    """Replay `plan`. Nothing is left running, however it ends. Raises Failure."""
    with tempfile.TemporaryDirectory(prefix="holdfast-replay-") as directory:
        topology = Path(directory) / "topology.toml"
        topology.write_text(plan.topology, encoding="utf-8")
        tell(f"starting the services on a machine with the devices of {plan.log}")
        try:
            async with Fleet(topology) as fleet, session(Target(fleet.url, fleet.host, timeout_s)) as opened:
                return await _while_all_live(fleet, _Run(opened, log, plan, tell, on_fact).run())
        except ProcessError as error:
            raise Failure(ExitCode.INTERNAL, str(error)) from error


async def _while_all_live(fleet: Fleet, work: Coroutine[Any, Any, Replayed]) -> Replayed:
    """Run `work`; a service that ends meanwhile ends it, for what is waited for may then never come."""
    running = asyncio.create_task(work)
    ends = {asyncio.create_task(fleet.ended(name)): name for name in fleet.processes}
    try:
        await asyncio.wait((running, *ends), return_when=asyncio.FIRST_COMPLETED)
        for end, name in ends.items():
            if end.done() and not running.done():
                raise Failure(ExitCode.INTERNAL, f"{name} ended with code {end.result()} during the replay")
        return running.result()
    finally:
        for task in (running, *ends):
            task.cancel()
        await asyncio.gather(running, *ends, return_exceptions=True)


class _Run:
    """One replay on a running fleet."""

    def __init__(self, opened: Session, log: KernelLog, plan: Plan, tell: Tell, on_fact: OnFact) -> None:
        self._session = opened
        self._log = log
        self._plan = plan
        self._tell = tell
        self._on_fact = on_fact
        self._injected = False
        self._last_fact = 0.0  # loop time

    async def run(self) -> Replayed:
        await self._seated()
        before = await self._devices()
        earlier = len(await self._stored())
        subscriptions = [
            await self._session.bus.watch_facts(subjects.fact(self._session.host, "*", f"{kind}.>"), self._hear)
            for kind in subjects.FACT_KINDS
        ]
        try:
            await self._inject()
            await self._settled()
        finally:
            for subscription in subscriptions:
                await subscription.close()
        facts = tuple((await self._stored())[earlier:])
        after = await self._devices()
        leases = await self._session.leases()
        named = {fact.lease for fact in facts}
        return Replayed(
            log=self._plan.log,
            devices=tuple(self._judge(function, before, after, facts) for function in self._plan.functions),
            planned=self._plan.facts,
            leases=tuple(retired for retired in reversed(leases.retired) if retired.lease.id in named),
            facts=facts,
            variant=self._plan.variant,
        )

    async def _seated(self) -> None:
        """Wait until hotplug has registered what firmware left, and has set up its slots under their leases."""
        loop = asyncio.get_running_loop()
        until = loop.time() + _SEATED_MAX_S
        calm_since: float | None = None
        while calm_since is None or loop.time() - calm_since < _CALM_S:
            missing = await self._unregistered()
            if missing and loop.time() > until:
                names = ", ".join(map(str, sorted(missing)))
                raise Failure(ExitCode.INTERNAL, f"hotplug did not register {names} within {_SEATED_MAX_S:g} s")
            if missing or await self._leased():
                calm_since = None
            elif calm_since is None:
                calm_since = loop.time()
            await asyncio.sleep(_POLL_S)

    async def _unregistered(self) -> set[Address]:
        present = {address for address, device in (await self._devices()).items() if device.present}
        return set(self._plan.registered) - present

    async def _inject(self) -> None:
        for step in self._plan.steps:
            await asyncio.sleep(step.after_s)
            if step.settled and self._injected:
                await self._settled()
            self._injected = True
            self._last_fact = asyncio.get_running_loop().time()
            self._tell(f"line {step.line}: {step.what}")
            subject = subjects.inject(self._session.host)
            await self._session.ask(subject, step.inject, InjectReply, whom="machine", what=step.what)

    async def _settled(self) -> None:
        """Wait until no lease is open, every recovery is closed, and nobody has anything to say any more."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._session.timeout_s
        while loop.time() < until:
            failed = await self._failed()
            pause = _RETRY_QUIET_S if failed else _QUIET_S
            if failed is not None and loop.time() - self._last_fact >= pause and not await self._leased():
                return
            await asyncio.sleep(_POLL_S)
        # A recovery that does not end is a result, too: the devices are judged as they are.
        self._tell(f"not settled within {self._session.timeout_s:g} s")

    async def _failed(self) -> bool | None:
        """Tell whether a recovery has failed; None while one is open."""
        failed = False
        for entry in await self._session.bus.keys(f"recovery.{self._session.host}."):
            record: Recovery = decode(entry.value, Recovery)
            if record.state is RecoveryState.OPEN:
                return None
            failed = failed or Verdict.FAILED in record.verdicts.values()
        return failed

    async def _leased(self) -> bool:
        return bool((await self._session.leases()).leases)

    async def _devices(self) -> dict[Address, Device]:
        return {device.function: device for device in await self._session.devices()}

    async def _stored(self) -> list[Fact]:
        chosen = tuple(subjects.fact(self._session.host, "*", f"{kind}.>") for kind in subjects.FACT_KINDS)
        return [fact async for fact in self._session.bus.facts(chosen)]

    def _hear(self, incoming: Incoming) -> None:
        assert isinstance(incoming.message, Fact)
        self._last_fact = asyncio.get_running_loop().time()
        if self._injected:
            self._on_fact(incoming.message)

    def _judge(
        self, function: Address, before: dict[Address, Device], after: dict[Address, Device], facts: tuple[Fact, ...]
    ) -> Judged:
        kernel, kernel_why = kernel_fate(self._log, function, self._plan.above[function])
        holdfast, why = holdfast_fate(function, before.get(function), after.get(function), facts)
        return Judged(function=function, kernel=kernel, kernel_why=kernel_why, holdfast=holdfast, why=why)
