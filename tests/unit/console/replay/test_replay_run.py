"""Running a plan against a bus that answers as the services would: what is waited for, what is judged, what is printed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any, cast

import msgspec
import pytest

from services.console import kernel_log
from services.console._exit import Failure
from services.console._session import Session, Target
from services.console.replay import Fate
from services.console.replay import _run as _replay
from services.console.replay._facts import Planned, Source
from services.console.replay._plan import Plan, plans
from services.console.replay._steps import Ending
from shared.pcie import Address, Identity
from shared.protocol import LeaseRef, Message, encode, subjects
from shared.protocol.fabric import LeaseList, Rank, Reach, RetiredLease
from shared.protocol.facts import Fact, What
from shared.protocol.records import Device, Recovery, RecoveryState, Verdict
from shared.protocol.requests import Inject, Injected
from shared.runtime import Bus, Incoming
from shared.runtime.bus import Entry
from tests.unit.console.logs import DATA

LOG = kernel_log.load(DATA / "03.txt")
(PLAN,) = plans(LOG)
PORT = Address.parse("0004:00:00.0")
FUNCTIONS = (Address.parse("0004:01:00.0"), Address.parse("0004:01:00.1"))
CARD = Identity(vendor=0x15B3, device=0x1017, class_code=0x020000, revision=0, subsystem=0, serial=1)


class Silent:
    """A subscription."""

    async def close(self) -> None:
        """Do nothing."""


class Services:
    """All services behind one bus: an injection is answered by one recovery, over at once."""

    def __init__(self, *, generation_after: int = 1, registers: bool = True, closes_late: bool = False) -> None:
        self.injected: list[Inject] = []
        self.stored: list[Fact] = [self.fact(What.DEVICE_ADDED)]
        self.handlers: list[Callable[[Incoming], None]] = []
        self.generation_after = generation_after
        self.registers = registers
        self.closes_late = closes_late  # the record is open for one look more
        self.looks: list[int] = []  # how much had been injected, at each look at the records

    def fact(self, what: What, **data: Any) -> Fact:
        return Fact(what=what, host="lab", port=PORT, service="x", seq=1, at=datetime.now(UTC), lease="L1", data=data)

    async def request(self, _subject: str, message: Message, _reply: Any, *, timeout_s: float) -> Any:
        assert timeout_s > 0
        if isinstance(message, Inject):
            self.injected.append(message)
            for fact in (
                self.fact(What.RECOVERY_STARTED, functions=[str(PORT)]),
                self.fact(What.RECOVERY_CLOSED, verdicts=dict.fromkeys(map(str, FUNCTIONS), "kept")),
            ):
                self.stored.append(fact)
                self.handlers[0](Incoming("", fact))
            return Injected(what=message.what, target=message.target)
        ref = LeaseRef(id="L1", port=str(PORT), rank="recovery", cause="dpc", holder="c")
        return LeaseList(
            leases=(), retired=(RetiredLease(lease=ref), RetiredLease(lease=msgspec.structs.replace(ref, id="older")))
        )

    async def keys(self, prefix: str) -> tuple[Entry, ...]:
        if prefix.startswith("recovery."):
            self.looks.append(len(self.injected))
            return (Entry("r", encode(self.record()), 1),) if self.injected else ()
        if not self.registers:
            return ()
        generation = self.generation_after if self.injected else 1
        return tuple(
            Entry(
                subjects.device_key("lab", function),
                encode(Device(function=function, port=PORT, identity=CARD, generation=generation, present=True)),
                1,
            )
            for function in FUNCTIONS
        )

    def record(self) -> Recovery:
        return Recovery(
            lease="L1",
            port=PORT,
            cause="dpc",
            rank=Rank.RECOVERY,
            reach=Reach.RESET,
            state=RecoveryState.OPEN if self.closes_late and len(self.looks) == 1 else RecoveryState.CLOSED,
            step="closed",
            verdicts=dict.fromkeys(map(str, FUNCTIONS), Verdict.KEPT),
        )

    async def facts(self, _subjects: tuple[str, ...] = ()) -> AsyncIterator[Fact]:
        for fact in self.stored:
            yield fact

    async def watch_facts(self, _subject: str, handler: Callable[[Incoming], None]) -> Silent:
        self.handlers.append(handler)
        return Silent()


async def run(services: Services, heard: list[Fact] | None = None, planned: Plan = PLAN) -> _replay.Replayed:
    session = Session(cast("Bus", services), Target("nats://nowhere", "lab", 5.0))
    facts = [] if heard is None else heard
    return await _replay._Run(session, LOG, planned, lambda _: None, facts.append).run()


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_replay, "_QUIET_S", 0.02)
    monkeypatch.setattr(_replay, "_POLL_S", 0.01)
    monkeypatch.setattr(_replay, "_CALM_S", 0.01)
    monkeypatch.setattr(_replay, "_SEATED_MAX_S", 0.05)


async def test_what_the_plan_says_is_injected_and_only_later_facts_are_told() -> None:
    services = Services()
    heard: list[Fact] = []

    result = await run(services, heard)

    assert [inject.names for inject in services.injected] == [("CmpltAbrt",)]
    assert [fact.what for fact in heard] == [What.RECOVERY_STARTED, What.RECOVERY_CLOSED]
    assert [fact.what for fact in result.facts] == [What.RECOVERY_STARTED, What.RECOVERY_CLOSED]


async def test_both_verdicts_stand_side_by_side() -> None:
    result = await run(Services())

    assert [(str(d.function), d.kernel, d.holdfast) for d in result.devices] == [
        ("0004:01:00.0", Fate.LOST, Fate.KEPT),
        ("0004:01:00.1", Fate.LOST, Fate.KEPT),
    ]


async def test_p3_a_grown_generation_is_a_lost_device_whatever_the_recovery_says() -> None:
    result = await run(Services(generation_after=2))

    assert {device.holdfast for device in result.devices} == {Fate.LOST}


async def test_json_has_the_form_of_the_design() -> None:
    document = (await run(Services())).as_json()

    assert list(document) == ["log", "devices", "facts", "leases"]
    assert list(document["devices"][0]) == ["function", "kernel", "holdfast", "why"]
    assert list(document["facts"][0]) == ["what", "from", "line"]
    assert {fact["from"] for fact in document["facts"]} == {"log", "inferred", "assumed"}
    assert [lease["id"] for lease in document["leases"]] == ["L1"], "only those of the replay"


async def test_a_device_that_hotplug_never_registers_ends_the_replay_by_name() -> None:
    with pytest.raises(Failure, match=r"hotplug did not register 0004:01:00\.0, 0004:01:00\.1 within"):
        await asyncio.wait_for(run(Services(registers=False)), 5)


async def test_a_step_after_a_long_gap_waits_until_what_came_before_is_over() -> None:
    (step,) = PLAN.steps
    again = msgspec.structs.replace(PLAN, steps=(step, msgspec.structs.replace(step, after_s=0.0, settled=True)))
    services = Services(closes_late=True)

    await run(services, planned=again)

    assert len(services.injected) == 2
    assert services.looks[:2] == [1, 1], "it looked again before it went on"


async def test_variants_are_one_document_and_name_what_holds_in_one_of_them_only() -> None:
    result = await run(Services())
    returns, gone = (msgspec.structs.replace(result, variant=ending) for ending in Ending)
    gone = msgspec.structs.replace(gone, planned=(*gone.planned[1:], Planned("it stays down", Source.ASSUMED, 6)))

    document = _replay.as_document((returns, gone))

    assert document["variants"] == ["returns", "gone"]
    assert [one["variant"] for one in document["devices"]] == ["returns", "returns", "gone", "gone"]
    assert [(fact["what"], fact["variant"]) for fact in document["facts"] if "variant" in fact] == [
        (result.planned[0].what, "returns"),
        ("it stays down", "gone"),
    ]
    assert len(document["facts"]) == len(result.planned) + 1, "what holds in both is told once"


async def test_a_log_that_leaves_nothing_open_has_a_document_without_variants() -> None:
    result = await run(Services())

    assert _replay.as_document((result,)) == result.as_json()
