from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from shared.pcie import Address
from shared.protocol import Message
from shared.protocol.requests import DriverAnswer, DriverCall, DriverStep, Vote
from shared.runtime import BusError, BusUnreachable, NobodyListens, Settings, Unanswered, call_driver
from tests.unit.coordinator.work_bench import InVirtualTime

CALL = DriverCall(function=Address.parse("01:00.0"), step=DriverStep.SLOT_RESET, lease="r-1")
ANSWER = DriverAnswer(vote=Vote.RECOVERED, driver="nvme", has_callbacks=True)


class LossyBus:
    """Fails each request as told, and answers the ones after."""

    def __init__(self, *failures: BusError) -> None:
        self.failures = list(failures)
        self.asked: list[Message] = []

    async def request(self, _subject: str, message: Message, _reply: Any, *, timeout_s: float) -> Message:
        self.asked.append(message)
        if not self.failures:
            return ANSWER
        failure = self.failures.pop(0)
        if type(failure) is Unanswered:
            await asyncio.sleep(timeout_s)
        raise failure


async def ask(bus: LossyBus, call: DriverCall = CALL) -> Message:
    return await call_driver(SimpleNamespace(host="lab", bus=bus, settings=Settings(instance="test")), call)  # type: ignore[arg-type]


@pytest.mark.parametrize("failure", [Unanswered("lost"), BusUnreachable("down"), NobodyListens("not yet back")])
def test_p9_a_lost_driver_call_costs_time_and_not_the_device(in_virtual_time: InVirtualTime, failure: BusError) -> None:
    async def story() -> None:
        bus = LossyBus(failure, failure)
        assert await ask(bus) is ANSWER
        assert bus.asked == [CALL, CALL, CALL]

    in_virtual_time(story())


def test_a_driver_that_never_answers_is_given_up_at_its_bound(in_virtual_time: InVirtualTime) -> None:
    async def story() -> None:
        started = asyncio.get_running_loop().time()
        with pytest.raises(TimeoutError):
            await ask(LossyBus(*[Unanswered("lost")] * 1000))
        assert asyncio.get_running_loop().time() - started == pytest.approx(Settings(instance="test").driver_s)

    in_virtual_time(story())


def test_who_does_not_come_back_to_the_bus_drives_nothing(in_virtual_time: InVirtualTime) -> None:
    async def story() -> None:
        with pytest.raises(NobodyListens):
            await ask(LossyBus(*[NobodyListens("nobody")] * 1000))

    in_virtual_time(story())


def test_without_a_lease_the_repetitions_of_a_call_are_one_and_the_next_is_another(
    in_virtual_time: InVirtualTime,
) -> None:
    async def story() -> None:
        bus = LossyBus(Unanswered("slow"))
        call = DriverCall(function=CALL.function, step=DriverStep.BIND)
        await ask(bus, call)
        await ask(bus, call)
        first, again, other = bus.asked
        assert first == again != other

    in_virtual_time(story())
