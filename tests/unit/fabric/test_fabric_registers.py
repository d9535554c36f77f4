"""Access to hardware: answers, hotplug commands one at a time, interrupts, and the machine's socket."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgpack
import pytest

from services.fabric._actor import Interrupted, Returned
from services.fabric._layout import UNTOUCHED, Written, written
from services.fabric._machine_socket import MachineSocket
from services.fabric._registers import Registers
from services.fabric._topology import discover, topology_of
from shared.pcie import Address, Topology, timing
from shared.pcie import registers as reg
from shared.protocol.fabric import Operation, Verb
from shared.protocol.facts import Interrupt
from shared.recovery import modify, read, write

from .fabric_bench import CARD, DOWN, EXPRESS, OTHER, PRESENT, ROOT, SLOT_CONTROL, SLOT_STATUS, Bench, Rig, settle

COMPLETED = int(reg.SlotStatus.COMMAND_COMPLETED)


def topology(bench: Bench) -> Topology:
    return topology_of(discover({address: space.image() for address, space in bench.spaces.items()}))


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        (write(ROOT, 0x58, 2, 0x1234), Written(0xFFFF, 0x1234)),
        (write(ROOT, 0x58, 4, 0xAAAA_1234), Written(0xFFFF, 0x1234)),
        (write(ROOT, 0x56, 4, 0x1234_AAAA), Written(0xFFFF, 0x1234)),
        (write(ROOT, 0x59, 1, 0x12), Written(0xFF00, 0x1200)),
        (modify(ROOT, 0x58, 2, mask=0x0F, value=0xFF), Written(0x0F, 0x0F)),
        (write(ROOT, 0x5A, 2, 0xFFFF), UNTOUCHED),
        (write(ROOT, 0x54, 4, 0xFFFF), UNTOUCHED),
        (read(ROOT, 0x58, 2), UNTOUCHED),
    ],
)
def test_an_operation_writes_the_bits_of_a_register_that_its_bytes_cover(
    operation: Operation, expected: Written
) -> None:
    assert written(operation, reg.SLOT_CONTROL, EXPRESS) == expected


async def test_p9_all_ones_are_no_answer_but_a_byte_of_them_may_be_a_value() -> None:
    bench = Bench()
    registers = Registers(bench)
    bench.set(CARD, 0x0C, 0xFF, 1)
    assert await registers.read(CARD, 0x0C, 1) == 0xFF
    bench.away.add(CARD)
    assert [await registers.read(CARD, 0x0C, width) for width in (1, 2, 4)] == [None, None, None]
    assert await registers.perform(write(CARD, 0x0C, 1, 0), topology(bench)) is None


class Commanded(Bench):
    """A root port that reports Command Completed `after` seconds after each write to Slot Control."""

    def __init__(self, after: float | None) -> None:
        super().__init__()
        self.spaces[ROOT].set(EXPRESS + reg.SLOT_CAPABILITIES.offset, 4, reg.SlotCapabilities.HOTPLUG_CAPABLE)
        self.spaces[ROOT].set(SLOT_STATUS, 2, PRESENT | COMPLETED)
        self.in_flight = False
        self.before_write = self.command
        self.after = after

    def command(self, address: Address, offset: int, _: int) -> None:
        if (address, offset) != (ROOT, SLOT_CONTROL):
            return
        assert not self.in_flight, "one command at a time (§6.7.3.2)"
        if self.after is not None:
            self.in_flight = True
            asyncio.get_running_loop().call_later(self.after, self.complete)

    def complete(self) -> None:
        self.in_flight = False
        self.latch(ROOT, COMPLETED)


ORDER = Operation(verb=Verb.MODIFY, function=ROOT, offset=SLOT_CONTROL, width=2, mask=1, value=1)


async def test_p5_only_a_hardware_command_in_flight_is_waited_for_and_the_mask_is_one() -> None:
    bench = Commanded(after=0.05)
    registers, tree = Registers(bench), topology(bench)
    loop = asyncio.get_running_loop()
    begun = loop.time()
    await registers.perform(ORDER, tree)
    assert loop.time() - begun < 0.04, "a command is not waited for when it is issued"
    await registers.perform(read(ROOT, SLOT_STATUS, 2), tree)
    assert loop.time() - begun < 0.04, "reads are not commands"
    await registers.perform(ORDER, tree)
    assert loop.time() - begun >= 0.04
    assert bench.get(ROOT, SLOT_STATUS) & COMPLETED == 0


async def test_a_command_that_never_completes_is_waited_for_no_longer_than_it_may_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(timing, "COMMAND_COMPLETED_MAX", 0.1)
    bench = Commanded(after=None)
    registers, tree = Registers(bench), topology(bench)
    loop = asyncio.get_running_loop()
    begun = loop.time()
    await registers.perform(ORDER, tree)
    await registers.perform(ORDER, tree)
    assert 0.09 <= loop.time() - begun < 1.0


async def test_a_completion_is_cleared_at_its_interrupt_or_no_other_edge_could_come(tmp_path: Path) -> None:
    rig = await Rig(tmp_path / "ledger", Commanded(after=None)).start()
    assert rig.bench.get(ROOT, SLOT_STATUS) & COMPLETED == 0, "found set at the start"
    rig.bench.latch(ROOT, COMPLETED)
    await rig.fabric.receive(Interrupted(ROOT, 0))
    assert rig.bench.get(ROOT, SLOT_STATUS) & COMPLETED == 0
    rig.ledger.close()


async def test_a_completion_that_latched_beside_an_event_is_cleared_with_it_as_it_raised_no_edge_of_its_own() -> None:
    bench = Commanded(after=None)
    registers, tree = Registers(bench), topology(bench)
    event = int(reg.SlotStatus.MRL_CHANGED)
    bench.latch(ROOT, COMPLETED | event)
    clear = Operation(verb=Verb.WRITE, function=ROOT, offset=SLOT_STATUS, width=2, value=event)
    await registers.perform(clear, tree)
    assert bench.get(ROOT, SLOT_STATUS) & (COMPLETED | event) == 0


async def test_an_interrupt_wakes_every_service_on_its_vector_with_a_snapshot(rig: Rig) -> None:
    rig.context.bus.published.clear()
    await rig.fabric.receive(Interrupted(ROOT, 0))
    await rig.fabric.receive(Interrupted(ROOT, 9))
    await rig.fabric.receive(Interrupted(CARD, 0))
    port = "pcie.lab.0000-00-01-0.irq."
    assert [subject for subject, _ in rig.context.bus.published] == [port + one for one in ("hotplug", "aer", "dpc")]
    hint = rig.context.bus.published[0][1]
    assert isinstance(hint, Interrupt)
    assert hint.registers["slot_status"] == PRESENT
    rig.bench.away.add(DOWN)
    await rig.fabric.receive(Interrupted(DOWN, 0))
    silent = rig.context.bus.published[-1][1]
    assert isinstance(silent, Interrupt)
    assert set(silent.registers.values()) == {None}


# --- The machine's socket ---


class FakeMachine:
    """Answers the socket's protocol, in the pieces that it is told to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seen: list[Any] = []
        self.writers: list[asyncio.StreamWriter] = []

    async def start(self) -> None:
        self.server = await asyncio.start_unix_server(self.serve, self.path)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        unpacker = msgpack.Unpacker()
        while chunk := await reader.read(1 << 16):
            unpacker.feed(chunk)
            for number, verb, *rest in unpacker:
                self.seen.append((verb, *rest))
                answers = {"enumerate": [str(ROOT)], "read": b"\x86\x80", "write": True}
                for byte in msgpack.packb([number, answers[verb]]):
                    writer.write(bytes([byte]))
                    await writer.drain()

    def stop(self) -> None:
        self.server.close()
        for writer in self.writers:
            writer.close()
        self.path.unlink(missing_ok=True)


async def test_the_socket_speaks_reconnects_and_reads_all_ones_without_a_machine(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path / "m.sock")
    hardware = MachineSocket(str(machine.path))
    returned, lost = asyncio.Event(), asyncio.Event()
    interrupts: asyncio.Queue[tuple[Address, int]] = asyncio.Queue()
    hardware.on_interrupt(lambda address, vector: interrupts.put_nowait((address, vector)))
    running = asyncio.create_task(hardware.run(returned.set, lost.set))
    assert await hardware.read(ROOT, 0, 2) == b"\xff\xff"
    assert await hardware.enumerate() == ()
    for _ in range(2):
        await machine.start()
        async with asyncio.timeout(5):
            await returned.wait()
        assert await hardware.enumerate() == (ROOT,)
        assert await hardware.read(ROOT, 0, 2) == b"\x86\x80"
        await hardware.write(ROOT, 4, b"\x06\x00")
        assert machine.seen[-1] == ("write", str(ROOT), 4, b"\x06\x00")
        machine.writers[-1].write(msgpack.packb(["irq", str(ROOT), 3]))
        async with asyncio.timeout(5):
            assert await interrupts.get() == (ROOT, 3)
        returned.clear()
        assert not lost.is_set()
        machine.stop()
        async with asyncio.timeout(5):
            await lost.wait()
        lost.clear()
        while await hardware.read(ROOT, 0, 2) != b"\xff\xff":
            await settle()
    running.cancel()
    await asyncio.wait({running})


async def test_p9_hardware_that_returns_wakes_every_service_of_every_port(rig: Rig) -> None:
    """What it raised while nobody was connected is an edge, and does not come again."""
    rig.context.bus.published.clear()
    await rig.fabric.receive(Returned())
    woken = {subject.rpartition(".irq.")[2] for subject, _ in rig.context.bus.published}
    ports = {message.port for _, message in rig.context.bus.published if isinstance(message, Interrupt)}
    assert {"hotplug", "aer", "dpc"} <= woken
    assert {ROOT, DOWN, OTHER} <= ports
