"""The socket and the lab: what others see of the machine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, cast

import msgpack
import pytest

from services.machine import Lab, Machine, MachineError, MachineSocket
from services.machine._calls import LEASES_MAX
from shared.pcie import Address
from shared.protocol import Message, Reason, Refused, subjects
from shared.protocol.requests import (
    Channel,
    DriverAnswer,
    DriverCall,
    DriverStep,
    Inject,
    Injected,
    Injection,
    Vote,
)
from shared.runtime.bus import Bus
from tests.unit.machine.machine_bench import CARD, DISK, PORT, Bench


class Client:
    """A fabric, as small as it gets."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._unpacker = msgpack.Unpacker()
        self.writer = writer

    async def next(self) -> Any:
        while True:
            for message in self._unpacker:
                return message
            chunk = await self._reader.read(65536)
            assert chunk, "the machine hung up"
            self._unpacker.feed(chunk)

    async def ask(self, *request: Any) -> Any:
        self.writer.write(msgpack.packb(list(request)))
        return await self.next()


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[tuple[Machine, Client]]:
    machine = Bench(dpc=False).machine
    path = tmp_path / "run" / "machine.sock"
    server = MachineSocket(machine, path)
    await server.start()
    client = Client(*await asyncio.open_unix_connection(path))
    yield machine, client
    client.writer.close()
    await server.close()
    assert not path.exists()


async def test_requests_are_answered_in_order(served: tuple[Machine, Client]) -> None:
    _, client = served
    for number, offset in enumerate((0, 2)):
        client.writer.write(msgpack.packb([number, "read", str(DISK), offset, 2]))
    assert await client.next() == [0, b"\x4d\x14"]
    assert await client.next() == [1, b"\x08\xa8"]
    assert (await client.ask(2, "enumerate"))[1][0] == str(PORT)
    assert await client.ask(3, "write", str(DISK), 4, b"\x00\x00") == [3, True]
    assert await client.ask(4, "read", str(DISK), 4, 2) == [4, b"\x00\x00"]
    assert len((await client.ask(5, "read", "0000:77:00.0", 0, 4096))[1]) == 4096


@pytest.mark.parametrize(
    "request_",
    [["enumerate"], [1, "read", "nowhere", 0, 4], [1, "read", str(DISK), 4095, 4], [1, "erase"], 7, [1, "write", 1, 2]],
)
async def test_a_bad_request_is_answered_and_the_connection_lives(
    served: tuple[Machine, Client], request_: Any
) -> None:
    _, client = served
    client.writer.write(msgpack.packb(request_))
    _, value, text = await client.next()
    assert value is None
    assert text
    assert (await client.ask(9, "enumerate"))[0] == 9


async def test_interrupts_are_pushed(served: tuple[Machine, Client]) -> None:
    machine, client = served
    machine.inject(Inject(what=Injection.REMOVE, target=PORT))
    assert await client.next() == ["irq", str(PORT), 0]


async def test_a_second_machine_does_not_take_the_socket(served: tuple[Machine, Client], tmp_path: Path) -> None:
    machine, _ = served
    with pytest.raises(MachineError, match="another machine"):
        await MachineSocket(machine, tmp_path / "run" / "machine.sock").start()


async def test_a_socket_file_left_by_a_dead_machine_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "machine.sock"
    dead = await asyncio.start_unix_server(lambda _reader, writer: writer.close(), path)
    dead.close()
    await dead.wait_closed()
    server = MachineSocket(Bench().machine, path)
    await server.start()
    await server.close()


class Asked:
    """A request from the bus."""

    def __init__(self, subject: str, message: Message) -> None:
        self.subject = subject
        self.message = message
        self.abandoned = False
        self.reply: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

    async def answer(self, reply: Message) -> None:
        self.reply.set_result(reply)


class FakeBus:
    def __init__(self) -> None:
        self.endpoints: Mapping[str, tuple[type[Message], Any]] = {}

    async def serve(self, _name: str, endpoints: Mapping[str, tuple[type[Message], Any]]) -> None:
        self.endpoints = endpoints

    def ask(self, endpoint: str, subject: str, message: Message) -> asyncio.Future[Message]:
        asked = Asked(subject, message)
        self.endpoints[endpoint][1](asked)
        return asked.reply


@pytest.fixture
async def bus() -> AsyncIterator[FakeBus]:
    fake = FakeBus()
    lab = Lab(Bench(dpc=False).machine, "lab")
    await lab.serve(cast("Bus", fake))
    yield fake
    await lab.close()


def call(
    bus: FakeBus, function: Address, step: DriverStep, *, of: Address | None = None, **about: Any
) -> asyncio.Future[Message]:
    message = DriverCall(function=function, step=step, channel=about.pop("channel", Channel.FROZEN), **about)
    return bus.ask(subjects.driver("lab", "*"), subjects.driver("lab", of or function), message)


def inject(bus: FakeBus, message: Inject) -> asyncio.Future[Message]:
    return bus.ask(subjects.inject("lab"), subjects.inject("lab"), message)


async def test_drivers_answer_as_the_file_says(bus: FakeBus) -> None:
    answer = await call(bus, DISK, DriverStep.ERROR_DETECTED)
    assert answer == DriverAnswer(vote=Vote.NEED_RESET, driver="nvme", has_callbacks=True)
    assert await call(bus, CARD, DriverStep.ERROR_DETECTED) == DriverAnswer(vote=Vote.NONE)
    await call(bus, DISK, DriverStep.UNBIND)
    assert await call(bus, DISK, DriverStep.RESUME) == DriverAnswer(vote=Vote.NONE)
    assert await call(bus, DISK, DriverStep.BIND) == DriverAnswer(vote=Vote.NONE, driver="nvme", has_callbacks=True)


async def test_a_driver_without_callbacks_says_so_and_a_hanging_one_delays_nobody(bus: FakeBus) -> None:
    await inject(bus, Inject(what=Injection.DRIVER, target=DISK, driver={"callbacks": False}))
    answer = await call(bus, DISK, DriverStep.SLOT_RESET)
    assert answer == DriverAnswer(vote=Vote.NO_HANDLER, driver="nvme", has_callbacks=False)
    await inject(bus, Inject(what=Injection.DRIVER, target=DISK, driver={"never": ["resume"]}))
    hanging = call(bus, DISK, DriverStep.RESUME)
    assert await call(bus, CARD, DriverStep.RESUME) == DriverAnswer(vote=Vote.NONE)
    assert not hanging.done()


@pytest.mark.parametrize("slowness", [{"never": ["resume"]}, {"delay_s": 1000.0}])
async def test_a_driver_put_in_the_place_of_one_that_hangs_answers_what_that_one_was_asked(
    bus: FakeBus, slowness: dict[str, Any]
) -> None:
    await inject(bus, Inject(what=Injection.DRIVER, target=DISK, driver=slowness))
    hanging = call(bus, DISK, DriverStep.RESUME)
    await call(bus, CARD, DriverStep.RESUME)
    assert not hanging.done()
    quick = {"name": "nvme2", "never": False, "delay_s": 0.0}
    await inject(bus, Inject(what=Injection.DRIVER, target=DISK, driver=quick))
    assert await hanging == DriverAnswer(vote=Vote.NONE, driver="nvme2", has_callbacks=True)


async def test_p9_a_call_that_arrives_again_is_the_same_call(bus: FakeBus) -> None:
    await inject(bus, Inject(what=Injection.DRIVER, target=DISK, driver={"delay_s": 0.05}))
    calls = [call(bus, DISK, DriverStep.ERROR_DETECTED, lease="r-1", token=1) for _ in range(2)]
    first, again = await asyncio.gather(*calls)
    await inject(bus, Inject(what=Injection.DRIVER, target=DISK, driver={"error_detected": "disconnect"}))
    await call(bus, DISK, DriverStep.SLOT_RESET, lease="r-1", token=1)
    late = await call(bus, DISK, DriverStep.ERROR_DETECTED, lease="r-1", token=2)
    assert first is again is late


@pytest.mark.parametrize("other", [{"lease": "r-2"}, {"lease": "r-1", "channel": Channel.PERM_FAILURE}])
async def test_a_call_under_another_lease_or_for_another_channel_is_another(
    bus: FakeBus, other: dict[str, Any]
) -> None:
    first = await call(bus, DISK, DriverStep.ERROR_DETECTED, lease="r-1")
    assert await call(bus, DISK, DriverStep.ERROR_DETECTED, **other) is not first


async def test_without_a_lease_a_nonce_tells_calls_apart(bus: FakeBus) -> None:
    first, again = [await call(bus, DISK, DriverStep.BIND, nonce="a") for _ in range(2)]
    assert first is again
    assert await call(bus, DISK, DriverStep.BIND, nonce="b") is not first


async def test_p7_a_deposed_holder_calls_no_driver(bus: FakeBus) -> None:
    await call(bus, DISK, DriverStep.SLOT_RESET, lease="r-1", token=2)
    for step in (DriverStep.SLOT_RESET, DriverStep.UNBIND):
        refused = await call(bus, DISK, step, lease="r-1", token=1)
        assert isinstance(refused, Refused)
        assert refused.reason is Reason.FENCED
    answer = await call(bus, DISK, DriverStep.RESUME, lease="r-1", token=2)
    assert isinstance(answer, DriverAnswer)
    assert answer.driver == "nvme"


async def test_what_is_remembered_of_leases_is_bounded(bus: FakeBus) -> None:
    first = await call(bus, DISK, DriverStep.RESUME, lease="r-0")
    for number in range(1, LEASES_MAX + 1):
        await call(bus, DISK, DriverStep.RESUME, lease=f"r-{number}")
    assert await call(bus, DISK, DriverStep.RESUME, lease="r-0") is not first


async def test_a_call_on_another_functions_subject_is_refused(bus: FakeBus) -> None:
    refused = await call(bus, DISK, DriverStep.RESUME, of=CARD)
    assert isinstance(refused, Refused)
    assert refused.reason is Reason.MALFORMED


async def test_injections_are_answered(bus: FakeBus) -> None:
    done = await inject(bus, Inject(what=Injection.REMOVE, target=PORT))
    assert done == Injected(what=Injection.REMOVE, target=PORT)
    refused = await inject(bus, Inject(what=Injection.REMOVE, target=Address.parse("77:00.0")))
    assert isinstance(refused, Refused)
    assert "no function 0000:77:00.0" in refused.message
