"""A recovery on a bench: scripted registers and drivers, and one transcript of everything in the order it happened."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import structlog

from services.coordinator._journal import Journal, blank
from services.coordinator._recovering import RecoveryWork
from shared.pcie import Address, Topology, Value
from shared.protocol import Message, Reason, Refused
from shared.protocol.fabric import Closed, Condition, FunctionOutcome, Lease, Opened, Operation, Reach, Result, Verb
from shared.protocol.records import Recovery
from shared.protocol.requests import Cause, DriverAnswer, DriverCall, DriverStep, Vote
from shared.runtime import Facts, Fenced, LeaseHandle, Settings, Unanswered, WrongRevision
from tests.unit.fabric.fabric_bench import DPC_STATUS, LINK_CONTROL
from tests.unit.recovery.forward_bench import DISABLE, TRIGGER, ForwardBench

InVirtualTime = Callable[[Coroutine[Any, Any, None]], None]
HANGS = "hangs"


class WorkBench:
    """Stands in for bus, fabric client and context at once. `story` is the transcript."""

    host = "lab"

    def __init__(self, *, cause: Cause = Cause.DPC, reach: Reach = Reach.RESET) -> None:
        self.bench = ForwardBench()
        self.started = asyncio.get_running_loop().time()
        self.settings = Settings(instance="test", driver_s=10.0, ready_s=5.0)
        self.log = structlog.get_logger()
        self.facts = Facts(self, "coordinator", "lab")  # type: ignore[arg-type]
        self.bus = self
        self.story: list[str] = []
        self.said: list[tuple[str, dict[str, Any]]] = []
        self.records: list[Recovery] = []
        self.calls: list[DriverCall] = []
        self.votes: dict[tuple[Address, DriverStep], Vote | str] = {}
        self.before_call: Callable[[DriverCall], None] = lambda _: None
        self.stop_before = ""  # a journalled step at which the coordinator dies
        self.loses_writes = 0  # of the journal: so many are not answered
        self.fenced = False
        self.degraded: set[Address] = set()
        lease = self.bench.lease(reach=reach)
        self.lease = Lease(**{name: getattr(lease, name) for name in lease.__struct_fields__} | {"cause": cause})

    def work(self, record: Recovery | None = None) -> RecoveryWork:
        journal = Journal(self, record or blank(self.lease))  # type: ignore[arg-type]
        return RecoveryWork(self, self, self.bench.topology, LeaseHandle(self.lease), journal)  # type: ignore[arg-type]

    def told(self, step: DriverStep) -> list[Address]:
        return [call.function for call in self.calls if call.step is step]

    # --- Context ---

    async def put_owned(self, _key: str, record: Message) -> int:
        assert isinstance(record, Recovery)
        await asyncio.sleep(0)
        if record.step == self.stop_before:
            raise WrongRevision("the coordinator dies here")
        if self.loses_writes:
            self.loses_writes -= 1
            raise Unanswered("the bus changes its leader")
        if not self.records or record.step != self.records[-1].step:
            self.story.append(f"journal {record.step}")
        self.records.append(record)
        return len(self.records)

    def record(self, fact: Any) -> None:
        self.said.append((fact.what, fact.data))

    # --- Bus: only drivers are asked here ---

    async def request(self, _subject: str, message: DriverCall, _reply: Any, *, timeout_s: float) -> DriverAnswer:
        self.calls.append(message)
        self.story.append(f"{message.step} {message.function} {message.channel}")
        self.before_call(message)
        vote = self.votes.get((message.function, message.step), self._usual(message.step))
        if vote == HANGS:
            await asyncio.sleep(timeout_s)
            raise Unanswered
        await asyncio.sleep(0.001)
        assert isinstance(vote, Vote)
        return DriverAnswer(vote=vote, driver="test", has_callbacks=vote is not Vote.NO_HANDLER)

    @staticmethod
    def _usual(step: DriverStep) -> Vote:
        usual = {DriverStep.ERROR_DETECTED: Vote.NEED_RESET, DriverStep.SLOT_RESET: Vote.RECOVERED}
        return usual.get(step, Vote.NONE)

    # --- Fabric client ---

    async def topology(self) -> Topology:
        return self.bench.topology

    async def execute(
        self, handle: LeaseHandle, operations: Sequence[Operation], provided: Sequence[Condition] = ()
    ) -> tuple[Value, ...]:
        del provided
        if self.fenced:
            handle.lost.set()
            raise Fenced("absorbed")
        await asyncio.sleep(0)
        self.bench.now = asyncio.get_running_loop().time() - self.started
        for operation in operations:
            if operation.verb is not Verb.READ:
                self.story.append(f"write {operation.function} {operation.offset:#x} {operation.value:#x}")
        return tuple(self.bench._access(operation) for operation in operations)

    async def beat(self, handle: LeaseHandle) -> None:
        await asyncio.sleep(0)
        if self.fenced:
            handle.lost.set()
            raise Fenced("absorbed")

    async def open(self, command: Any) -> Opened | Refused:
        self.story.append(f"open {command.reach}")
        if command.id != self.lease.id:
            return Refused(reason=Reason.HELD, message="held")
        self.lease = Lease(
            **{name: getattr(self.lease, name) for name in self.lease.__struct_fields__} | {"reach": command.reach}
        )
        return Opened(lease=self.lease)

    async def close(self, handle: LeaseHandle, quarantine: tuple[Address, ...] = (), why: str = "") -> Closed | Refused:
        self.story.append(f"close, quarantine {', '.join(map(str, quarantine))}: {why}" if quarantine else "close")
        if not all(self._is_held_down(port) for port in quarantine):
            return Refused(reason=Reason.POLICY, message="nothing holds it down")
        down = {function.address for port in quarantine for function in self.bench.topology.below(port)}
        outcomes = tuple(
            FunctionOutcome(
                function=saved.address,
                result=Result.QUARANTINED if saved.address in down else Result.RECOVERED,
                degraded=saved.address in self.degraded,
            )
            for saved in handle.lease.functions
        )
        return Closed(lease=handle.lease.ref, outcomes=outcomes)

    def _is_held_down(self, port: Address) -> bool:
        contained = self.bench.get(port, DPC_STATUS) & TRIGGER
        return bool(contained or self.bench.get(port, LINK_CONTROL) & DISABLE)
