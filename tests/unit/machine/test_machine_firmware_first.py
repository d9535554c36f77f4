"""A host whose firmware keeps AER and DPC: it takes their interrupts, notifies of containment, and is answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.fabric._machine_socket import MachineSocket as Hardware
from services.machine import Machine, MachineError, MachineSocket, parse
from shared.pcie import Address
from shared.pcie import registers as r
from shared.protocol.requests import Inject, Injection
from tests.unit.machine.machine_bench import DISK, PORT, Bench, on_bench

SUCCESS = 0x80


@on_bench(firmware_first=True)
async def test_a_containment_is_notified_once_and_raises_no_dpc_interrupt(bench: Bench) -> None:
    notified: list[Address] = []
    firmware = bench.machine.firmware
    assert firmware is not None
    firmware.listen(notified.append)
    bench.inject(Injection.ERROR, DISK, names=("MalfTLP",))
    assert bench.get(PORT, r.DPC_STATUS) & r.DpcStatus.TRIGGER
    await asyncio.sleep(30)
    assert notified == [PORT]
    assert bench.vectors() == [0], "the link went down; that interrupt is hotplug's, and no other came"
    assert firmware.waiting == [PORT]
    firmware.answer(PORT, SUCCESS)
    assert (firmware.waiting, firmware.answers) == ([], [(PORT, SUCCESS)])


@on_bench(firmware_first=True)
async def test_error_interrupts_are_the_firmwares(bench: Bench) -> None:
    bench.inject(Injection.ERROR, DISK, names=("CmpltTO",))
    assert bench.get(PORT, r.ROOT_ERROR_STATUS) & r.RootErrorStatus.NONFATAL_RECEIVED
    assert bench.vectors() == []
    assert bench.machine.firmware is not None
    assert bench.machine.firmware.waiting == []


@on_bench(firmware_first=True)
async def test_the_firmware_may_notify_again_and_of_a_port_that_is_not_contained(bench: Bench) -> None:
    notified: list[Address] = []
    assert bench.machine.firmware is not None
    unlisten = bench.machine.firmware.listen(notified.append)
    bench.inject(Injection.EDR, PORT)
    bench.inject(Injection.EDR, PORT)
    assert notified == [PORT, PORT]
    assert bench.machine.firmware.waiting == [PORT]
    unlisten()
    bench.inject(Injection.EDR, PORT)
    assert notified == [PORT, PORT]


@on_bench(firmware_first=True)
async def test_an_interrupt_that_the_firmware_never_gets_is_notified_to_nobody(bench: Bench) -> None:
    bench.inject(Injection.INTERRUPT_LOST, PORT, service="dpc")
    bench.inject(Injection.ERROR, DISK, names=("MalfTLP",))
    assert bench.machine.firmware is not None
    assert bench.machine.firmware.waiting == []


@on_bench()
async def test_edr_needs_a_firmware_first_host(bench: Bench) -> None:
    assert bench.machine.firmware is None
    with pytest.raises(MachineError, match="firmware_first = true"):
        bench.inject(Injection.EDR, PORT)


@on_bench(dpc=False, firmware_first=True)
async def test_edr_needs_containment(bench: Bench) -> None:
    with pytest.raises(MachineError, match="edr needs containment"):
        bench.inject(Injection.EDR, PORT)


def test_firmware_first_is_a_key_of_the_whole_file() -> None:
    assert parse("firmware_first = true\nfunction = []").firmware_first
    assert not parse("function = []").firmware_first


class Socket:
    """A firmware-first machine at a path, for a fabric's side of the socket."""

    def __init__(self, path: Path, *, firmware_first: bool = True) -> None:
        self.machine: Machine = Bench(firmware_first=firmware_first).machine
        self.path = path
        self.server = MachineSocket(self.machine, path)

    async def connect(self) -> tuple[Hardware, asyncio.Queue[Address]]:
        """Connect a fabric; return what it is notified of."""
        hardware, events, connected = Hardware(str(self.path)), asyncio.Queue[Address](), asyncio.Event()
        hardware.on_firmware_event(events.put_nowait)
        self._running = asyncio.create_task(hardware.run(connected.set, lambda: None))
        await connected.wait()
        return hardware, events

    async def disconnect(self) -> None:
        self._running.cancel()
        await asyncio.wait({self._running})


@pytest.fixture
async def socket(tmp_path: Path) -> AsyncIterator[Socket]:
    socket = Socket(tmp_path / "machine.sock")
    await socket.server.start()
    yield socket
    await socket.disconnect()
    await socket.server.close()


async def test_the_fabric_is_notified_and_answers(socket: Socket) -> None:
    hardware, events = await socket.connect()
    assert await hardware.firmware_first() is True
    socket.machine.inject(Inject(what=Injection.DPC, target=PORT, reason="uncorrectable"))
    assert await asyncio.wait_for(events.get(), 5) == PORT
    assert await hardware.answer_firmware(PORT, SUCCESS)
    assert socket.machine.firmware is not None
    assert socket.machine.firmware.answers == [(PORT, SUCCESS)]


async def test_a_fabric_that_was_away_is_notified_when_it_is_back_until_it_has_answered(socket: Socket) -> None:
    socket.machine.inject(Inject(what=Injection.EDR, target=PORT))
    for _ in range(2):
        hardware, events = await socket.connect()
        assert await asyncio.wait_for(events.get(), 5) == PORT
        await socket.disconnect()
    assert not await hardware.answer_firmware(PORT, SUCCESS), "nobody was there to take it"
    hardware, events = await socket.connect()
    assert await asyncio.wait_for(events.get(), 5) == PORT
    assert await hardware.answer_firmware(PORT, SUCCESS)
    await socket.disconnect()
    hardware, events = await socket.connect()
    assert await hardware.firmware_first() is True
    assert events.empty()


async def test_p9_without_a_machine_nobody_knows_whose_the_registers_are(tmp_path: Path) -> None:
    hardware = Hardware(str(tmp_path / "nobody.sock"))
    assert await hardware.firmware_first() is None
    assert not await hardware.answer_firmware(PORT, SUCCESS)


async def test_a_machine_whose_firmware_keeps_nothing_says_so_and_takes_no_answer(tmp_path: Path) -> None:
    socket = Socket(tmp_path / "machine.sock", firmware_first=False)
    await socket.server.start()
    hardware, _ = await socket.connect()
    assert await hardware.firmware_first() is False
    with pytest.raises(Exception, match="keeps nothing"):
        await hardware.answer_firmware(PORT, SUCCESS)
    await socket.disconnect()
    await socket.server.close()
