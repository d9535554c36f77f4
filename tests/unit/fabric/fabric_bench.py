"""A bench of bare config spaces: just enough hardware for the fabric, written without the machine on purpose."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from services.fabric._actor import Asked, Fabric
from services.fabric._ledger import Ledger
from shared.pcie import Address, ConfigSpace
from shared.pcie import registers as reg
from shared.protocol import Message
from shared.protocol.fabric import Role
from shared.protocol.facts import Fact
from shared.runtime import BusStatistics, Facts

A = Address.parse
ROOT, UP, DOWN, CARD, NESTED = (A(text) for text in ("00:01.0", "01:00.0", "02:00.0", "03:00.0", "03:00.1"))
OTHER, OTHER_CARD = A("00:02.0"), A("05:00.0")
EXPRESS, AER, DSN, DPC = 0x40, 0x100, 0x148, 0x158
SLOT_CONTROL, SLOT_STATUS = EXPRESS + 0x18, EXPRESS + 0x1A
LINK_CONTROL, LINK_STATUS = EXPRESS + 0x10, EXPRESS + 0x12
ERROR_STATUS, ERROR_MASK = AER + 0x04, AER + 0x08
DPC_CONTROL, DPC_STATUS = DPC + 0x06, DPC + 0x08
SURPRISE_DOWN = int(reg.Uncorrectable.SURPRISE_DOWN)
ENABLES = int(reg.SLOT_MASKED)
FIRMWARE_SLOT_CONTROL = ENABLES | int(reg.SlotControl.HOTPLUG_INTERRUPT_ENABLE)
ACTIVE = int(reg.LinkStatus.LINK_ACTIVE)
PRESENT = int(reg.SlotStatus.PRESENCE)
CHANGED = int(reg.SlotStatus.PRESENCE_CHANGED | reg.SlotStatus.LINK_STATE_CHANGED)
_CAPABILITY_LIST = 0x0010


def _extended(space: ConfigSpace, offset: int, identifier: int, following: int) -> None:
    space.set(offset, 4, following << 20 | 1 << 16 | identifier)


def space(
    kind: reg.DeviceType, *, bus: tuple[int, int] = (0, 0), serial: int = 0, slot: int | None = None
) -> ConfigSpace:
    """Return a function that answers: header, PCI Express, AER, serial number, and DPC for downstream ports."""
    made = ConfigSpace()
    for register in reg.TYPE1 if kind.is_bridge else reg.TYPE0:
        made.place(register)
    made.place(reg.VENDOR_ID, 0x8086)
    made.place(reg.DEVICE_ID, 0x1000 + kind)
    made.place(reg.STATUS, _CAPABILITY_LIST)
    made.place(reg.HEADER_TYPE, int(kind.is_bridge))
    made.place(reg.REVISION_AND_CLASS, 0x060400_01 if kind.is_bridge else 0x010802_01)
    made.set(reg.CAPABILITY_POINTER, 1, EXPRESS)
    if kind.is_bridge:
        made.set(reg.SECONDARY_BUS.offset, 1, bus[0])
        made.set(reg.SUBORDINATE_BUS.offset, 1, bus[1])
    made.set(EXPRESS, 2, reg.CapabilityId.EXPRESS)
    for register in reg.EXPRESS:
        made.place(register, base=EXPRESS)
    flags = kind << reg.EXPRESS_TYPE_SHIFT | (reg.EXPRESS_SLOT_IMPLEMENTED if slot is not None else 0)
    made.set(EXPRESS + reg.EXPRESS_CAPABILITIES.offset, 2, flags)
    made.set(EXPRESS + reg.LINK_CAPABILITIES.offset, 4, reg.LinkCapabilities.LINK_ACTIVE_REPORTING)
    for register in reg.AER_ROOT if kind is reg.DeviceType.ROOT_PORT else reg.AER:
        made.place(register, base=AER)
    _extended(made, AER, reg.ExtendedId.AER, DSN)
    for register in reg.SERIAL_NUMBER:
        made.place(register, base=DSN)
    made.set(DSN + 4, 4, serial)
    _extended(made, DSN, reg.ExtendedId.DEVICE_SERIAL_NUMBER, DPC if kind.is_downstream_port else 0)
    if kind.is_downstream_port:
        for register in reg.DPC:
            made.place(register, base=DPC)
        _extended(made, DPC, reg.ExtendedId.DPC, 0)
    if slot is not None:
        made.set(EXPRESS + reg.SLOT_CAPABILITIES.offset, 4, slot)
        made.set(SLOT_CONTROL, 2, FIRMWARE_SLOT_CONTROL)
        made.set(SLOT_STATUS, 2, PRESENT)
        made.set(LINK_STATUS, 2, ACTIVE)
    return made


HOTPLUG = int(reg.SlotCapabilities.HOTPLUG_CAPABLE | reg.SlotCapabilities.NO_COMMAND_COMPLETED)


class Bench:
    """Two root ports with slots: a switch with a nested slot under the first, a card under the second.

    00:01.0 slot -- 01:00.0 -- 02:00.0 slot -- 03:00.0, 03:00.1
    00:02.0 slot -- 05:00.0
    """

    def __init__(self) -> None:
        kinds = reg.DeviceType
        self.spaces = {
            ROOT: space(kinds.ROOT_PORT, bus=(1, 3), slot=HOTPLUG),
            UP: space(kinds.UPSTREAM_PORT, bus=(2, 3), serial=0x11),
            DOWN: space(kinds.DOWNSTREAM_PORT, bus=(3, 3), slot=HOTPLUG),
            CARD: space(kinds.ENDPOINT, serial=0x22),
            NESTED: space(kinds.ENDPOINT, serial=0x23),
            OTHER: space(kinds.ROOT_PORT, bus=(5, 5), slot=HOTPLUG),
            OTHER_CARD: space(kinds.ENDPOINT, serial=0x33),
        }
        self.away: set[Address] = set()
        self.writes: list[tuple[Address, int, int, int]] = []
        self.before_write: Callable[[Address, int, int], None] = lambda *_: None
        self.after_read: Callable[[Address, int], None] = lambda *_: None
        self.is_firmware_first = False
        self.answers: list[tuple[Address, int]] = []

    # --- Hardware ---

    async def enumerate(self) -> tuple[Address, ...]:
        return tuple(sorted(set(self.spaces) - self.away))

    async def read(self, address: Address, offset: int, length: int) -> bytes:
        if address in self.away or address not in self.spaces:
            return b"\xff" * length
        data = self.spaces[address].image()[offset : offset + length]
        self.after_read(address, offset)
        return data

    async def write(self, address: Address, offset: int, data: bytes) -> None:
        if address in self.away or address not in self.spaces:
            return
        value = int.from_bytes(data, "little")
        self.before_write(address, offset, value)
        self.writes.append((address, offset, len(data), value))
        self.spaces[address].write(offset, len(data), value)

    def on_interrupt(self, handler: Any) -> None:
        self.interrupt = handler

    async def firmware_first(self) -> bool | None:
        return self.is_firmware_first

    def on_firmware_event(self, handler: Any) -> None:
        self.notify = handler

    async def answer_firmware(self, address: Address, status: int) -> bool:
        self.answers.append((address, status))
        return True

    # --- What happens on a bench ---

    def get(self, address: Address, offset: int, width: int = 2) -> int:
        return self.spaces[address].read(offset, width)

    def set(self, address: Address, offset: int, value: int, width: int = 2) -> None:
        self.spaces[address].set(offset, width, value)

    def latch(self, port: Address, bits: int) -> None:
        self.set(port, SLOT_STATUS, self.get(port, SLOT_STATUS) | bits)

    def take_down(self, port: Address, *below: Address) -> None:
        """The link below `port` goes down: both changes latch, and nothing below answers."""
        self.latch(port, CHANGED)
        self.set(port, LINK_STATUS, 0)
        self.away |= set(below)

    def bring_up(self, port: Address, *below: Address) -> None:
        self.set(port, LINK_STATUS, ACTIVE)
        self.latch(port, CHANGED)
        self.away -= set(below)

    def enables(self, port: Address) -> int:
        return self.get(port, SLOT_CONTROL) & ENABLES

    def surprise_down_masked(self, port: Address) -> bool:
        return bool(self.get(port, ERROR_MASK, 4) & SURPRISE_DOWN)


class FakeBus:
    """Keeps facts and hints."""

    def __init__(self) -> None:
        self.recorded: list[Fact] = []
        self.published: list[tuple[str, Message]] = []

    def record(self, fact: Fact) -> None:
        self.recorded.append(fact)

    async def publish(self, subject: str, message: Message) -> None:
        self.published.append((subject, message))

    def statistics(self) -> BusStatistics:
        return BusStatistics(reconnects=0, malformed=0, slow=0, facts_pending=0, connected=True)


class FakeRequest:
    """A request whose answer is kept."""

    def __init__(self, message: Message) -> None:
        self.subject = "test"
        self.message = message
        self.abandoned = False
        self.answered: Message | None = None

    async def answer(self, reply: Message) -> None:
        assert self.answered is None, "answered once"
        self.answered = reply


class FakeContext:
    """What the actor uses of a context."""

    def __init__(self) -> None:
        self.host = "lab"
        self.bus = FakeBus()
        self.log = structlog.get_logger()
        self.facts = Facts(self.bus, "fabric", "lab")  # type: ignore[arg-type]


class Rig:
    """A fabric on a bench, asked directly. `restart` lets it die and starts another on the same ledger."""

    def __init__(self, path: Path, bench: Bench | None = None) -> None:
        self.path = path
        self.bench = Bench() if bench is None else bench

    async def start(self) -> Rig:
        self.context = FakeContext()
        self.ledger = Ledger(self.path)
        self.fabric = Fabric(self.context, self.bench, self.ledger)  # type: ignore[arg-type]
        await self.fabric.started()
        return self

    async def restart(self) -> Rig:
        self.ledger.close()
        return await self.start()

    async def ask(self, message: Message, role: Role | None = Role.COORDINATOR) -> Any:
        request = FakeRequest(message)
        await self.fabric.receive(Asked(request, role))
        assert request.answered is not None or self.fabric.broken.done(), "every request is answered"
        return request.answered

    def facts(self, what: str) -> list[Fact]:
        return [fact for fact in self.context.bus.recorded if fact.what == what]


async def settle() -> None:
    """Let every task that can run do so."""
    for _ in range(3):
        await asyncio.sleep(0)
