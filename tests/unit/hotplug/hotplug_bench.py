"""One slot's actor with a scripted fabric, a bus that keeps what it is given, and a clock that really runs."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import msgspec

from services.hotplug._actor import SlotActor
from services.hotplug._drivers import Drivers
from services.hotplug._keeper import Shop
from services.hotplug._registry import Registry
from shared.pcie import NO_ANSWER, Address, Capabilities, Function, Identity, Topology, Value
from shared.pcie import registers as r
from shared.protocol import Message, Reason, Refused, subjects
from shared.protocol.fabric import (
    Condition,
    Lease,
    LeaseList,
    Open,
    Opened,
    Operation,
    Quarantine,
    Rank,
    Reach,
    RetiredLease,
    Role,
    Verb,
)
from shared.protocol.facts import What
from shared.protocol.records import Device
from shared.protocol.requests import Accepted, DriverAnswer, DriverCall, Lift, SlotRequest, SlotState, Vote
from shared.runtime import Fenced, LeaseHandle, RefusedError, Settings, Wake
from shared.runtime.bus import Entry, Unanswered

PORT = Address.parse("0000:00:01.0")
CARD = Address.parse("0000:01:00.0")
EXPRESS, AER, DPC = 0x40, 0x100, 0x200
ACTIVE, PRESENT = int(r.LinkStatus.LINK_ACTIVE), int(r.SlotStatus.PRESENCE)
LINK_CHANGED, PRESENCE_CHANGED = int(r.SlotStatus.LINK_STATE_CHANGED), int(r.SlotStatus.PRESENCE_CHANGED)
WHO = Identity(vendor=0x8086, device=0x0A54, class_code=0x010802, revision=0, subsystem=0)
ROOT = Function(
    address=PORT,
    kind=r.DeviceType.ROOT_PORT,
    identity=Identity(vendor=0x8086, device=0x6F04, class_code=0x060400, revision=0, subsystem=0),
    capabilities=Capabilities(express=EXPRESS, aer=AER, dpc=DPC),
    secondary=1,
    subordinate=1,
    slot=r.SlotCapabilities.HOTPLUG_CAPABLE | r.SlotCapabilities.HOTPLUG_SURPRISE,
    slot_number=4,
    link_active_reporting=True,
)
ENDPOINT = Function(
    address=CARD, kind=r.DeviceType.ENDPOINT, identity=WHO, capabilities=Capabilities(express=EXPRESS), parent=PORT
)
BUSY = int(r.Command.MEMORY_SPACE | r.Command.BUS_MASTER | r.Command.SERR)
QUICK = Settings(instance="hotplug-1", removal_grace_s=0.01, reconcile_s=5.0, button_s=0.02)


class Bench:
    """A port, perhaps a card, and the fabric in front of them."""

    def __init__(self) -> None:
        self.registers: dict[tuple[Address, int], int] = {
            (PORT, EXPRESS + r.SLOT_CONTROL.offset): 0x1028,
            (PORT, r.MEMORY_BASE.offset): 0x9000,
            (PORT, r.MEMORY_LIMIT.offset): 0x9010,
        }
        self.silent = False  # the port itself reads all ones
        self.topology = Topology((ROOT,))
        self.leases: list[Lease] = []
        self.retired: list[RetiredLease] = []
        self.quarantines: list[Quarantine] = []
        self.opened: list[str] = []
        self.closed: list[str] = []
        self.written: list[Operation] = []
        self.refusal: Refused | None = None
        self.on_open: Callable[[], None] = lambda: None
        self.on_execute: Callable[[Operation], None] = lambda _: None
        self.token = 0
        self.fenced = False

    def seat(self, identity: Identity = WHO, *, link: bool = True, command: int = 0) -> None:
        """Put a card into the slot."""
        self.status |= PRESENT
        self.registers |= {
            (CARD, r.VENDOR_ID.offset): identity.vendor,
            (CARD, r.DEVICE_ID.offset): identity.device,
            (CARD, r.REVISION_AND_CLASS.offset): identity.class_code << 8 | identity.revision,
            (CARD, r.SUBSYSTEM_VENDOR_ID.offset): identity.subsystem,
            (CARD, r.COMMAND.offset): command,
        }
        self.link(up=link)

    def pull(self) -> None:
        """Take the card away: the link goes down, and both changes latch."""
        self.registers = {place: value for place, value in self.registers.items() if place[0] != CARD}
        self.status = self.status & ~PRESENT | PRESENCE_CHANGED | LINK_CHANGED
        self.link(up=False)

    def link(self, *, up: bool) -> None:
        self.registers[PORT, EXPRESS + r.LINK_STATUS.offset] = ACTIVE if up else 0

    def dpc(self, *, triggered: bool) -> None:
        self.registers[PORT, DPC + r.DPC_STATUS.offset] = int(triggered)

    @property
    def status(self) -> int:
        return self.registers.get((PORT, EXPRESS + r.SLOT_STATUS.offset), 0)

    @status.setter
    def status(self, value: int) -> None:
        self.registers[PORT, EXPRESS + r.SLOT_STATUS.offset] = value

    def cover(self, lease_id: str) -> None:
        """Have a recovery take the port; slot operations are fenced."""
        self.fenced = bool(self.opened) and self.opened[-1] not in self.closed
        self.leases.append(
            Lease(
                id=lease_id, token=0, port=PORT, rank=Rank.RECOVERY, reach=Reach.RESET, role=Role.COORDINATOR,
                cause="dpc", holder="coordinator-1", allowed_s=5.0,
            )
        )  # fmt: skip

    def uncover(self) -> None:
        self.fenced = False
        self.retired = [RetiredLease(lease=lease.ref) for lease in self.leases]
        self.leases = []

    def quarantine(self, lease_id: str, port: Address = PORT) -> None:
        """Have a recovery give the port up: it is contained for good."""
        self.quarantines = [Quarantine(port=port, lease=lease_id, why="three failures in a row")]
        self.leases = []
        self.dpc(triggered=True)
        self.link(up=False)

    def out_of_band(self) -> None:
        """Let presence be the pins alone."""
        place = PORT, EXPRESS + r.SLOT_CONTROL.offset
        self.registers[place] |= int(r.SlotControl.IN_BAND_PRESENCE_DISABLE)

    def _value(self, operation: Operation) -> Value:
        if operation.function == PORT and self.silent:
            return NO_ANSWER
        if operation.function == CARD and (CARD, r.VENDOR_ID.offset) not in self.registers:
            return NO_ANSWER
        return self.registers.get((operation.function, operation.offset), 0)

    # --- FabricClient ---

    async def read(self, operations: Sequence[Operation]) -> tuple[Value, ...]:
        return tuple(self._value(operation) for operation in operations)

    async def topology_now(self) -> Topology:
        return self.topology

    async def list_leases(self) -> LeaseList:
        return LeaseList(leases=tuple(self.leases), retired=tuple(self.retired), quarantines=tuple(self.quarantines))

    async def open(self, command: Open) -> Opened | Refused:
        assert (command.rank, command.reach) == (Rank.SLOT_OPERATION, Reach.NOTHING)
        if self.refusal is not None:
            return self.refusal
        if self.leases:
            return Refused(reason=Reason.HELD, message="held", lease=self.leases[0].ref)
        self.token += 1
        self.opened.append(command.id)
        self.on_open()
        lease = Lease(
            id=command.id, token=self.token, port=PORT, rank=command.rank, reach=command.reach, role=Role.HOTPLUG,
            cause=command.cause, holder=command.holder, allowed_s=command.allowed_s,
        )  # fmt: skip
        return Opened(lease=lease)

    def _fence(self, handle: LeaseHandle) -> None:
        if self.fenced:
            handle.lost.set()
            raise Fenced(Refused(reason=Reason.FENCED, message="absorbed"))

    async def execute(
        self, handle: LeaseHandle, operations: Sequence[Operation], provided: Sequence[Condition] = ()
    ) -> tuple[Value, ...]:
        await asyncio.sleep(0)
        self._fence(handle)
        for condition in provided:
            active = bool(self.registers.get((PORT, EXPRESS + r.LINK_STATUS.offset)))
            assert condition.link_active in {None, active}, "the scripted hardware does not change in between"
            if condition.present not in {None, bool(self.status & PRESENT)}:
                raise RefusedError(Refused(reason=Reason.CONDITION, message="not so any more"))
        return tuple(self._perform(operation) for operation in operations)

    def _perform(self, operation: Operation) -> Value:
        self.on_execute(operation)
        place = operation.function, operation.offset
        if operation.verb is Verb.ENUMERATE:
            answers = (CARD, r.VENDOR_ID.offset) in self.registers and self.registers[
                PORT, EXPRESS + r.LINK_STATUS.offset
            ]
            self.topology = Topology((ROOT, ENDPOINT) if answers else (ROOT,))
            return int(bool(answers))
        if operation.verb is Verb.READ:
            if operation.function == CARD and operation.offset == r.BAR[0].offset:
                return 0xFFFF_C000
            return self._value(operation)
        self.written.append(operation)
        if place == (PORT, EXPRESS + r.SLOT_STATUS.offset):
            self.registers[place] = self.status & ~operation.value
        elif operation.verb is Verb.MODIFY:
            held = self.registers.get(place, 0)
            self.registers[place] = held & ~operation.mask | operation.value & operation.mask
        else:
            self.registers[place] = operation.value
        return operation.value

    async def beat(self, handle: LeaseHandle) -> None:
        self._fence(handle)

    async def close(self, handle: LeaseHandle) -> None:
        self._fence(handle)
        self.closed.append(handle.id)


class Store:
    """The bus, as far as a slot uses it."""

    def __init__(self) -> None:
        self.records: dict[str, Message] = {}
        self.calls: list[DriverCall] = []
        self.slow: asyncio.Event | None = None  # a driver call returns only when it is set
        self.lifts: list[Lift] = []
        self.deaf = False  # the coordinator does not answer

    async def keys(self, prefix: str) -> tuple[Entry, ...]:
        return tuple(self._entry(key) for key in sorted(self.records) if key.startswith(prefix))

    async def get(self, key: str) -> Entry | None:
        return self._entry(key) if key in self.records else None

    def _entry(self, key: str) -> Entry:
        return Entry(key, msgspec.msgpack.encode(self.records[key], enc_hook=str), 1)

    async def put_owned(self, key: str, message: Message) -> int:
        self.records[key] = message
        return 1

    async def request(
        self, subject: str, call: DriverCall | Lift, _reply: Any, *, timeout_s: float
    ) -> DriverAnswer | Accepted:
        if isinstance(call, Lift):
            assert subject == subjects.coordinator("lab", "lift")
            self.lifts.append(call)
            if self.deaf:
                raise Unanswered(subject)
            return Accepted(lease="r-lift")
        assert subject == subjects.driver("lab", call.function)
        assert 0 < timeout_s <= QUICK.driver_s
        self.calls.append(call)
        if self.slow is not None:
            await self.slow.wait()
        return DriverAnswer(vote=Vote.NONE, driver="nvme")


@dataclass
class Ask:
    """A request that keeps its answers."""

    subject: str
    message: Message = field(default_factory=SlotRequest)
    answers: list[Message] = field(default_factory=list)
    abandoned: bool = False

    async def answer(self, reply: Message) -> None:
        self.answers.append(reply)


class Lab:
    """A slot, its actor, and the facts that it states."""

    def __init__(self) -> None:
        self.bench = Bench()
        self.store = Store()
        self.facts: list[tuple[What, dict[str, Any]]] = []
        fabric = SimpleNamespace(
            read=self.bench.read, topology=self.bench.topology_now, leases=self.bench.list_leases,
            open=self.bench.open, execute=self.bench.execute, beat=self.bench.beat, close=self.bench.close,
        )  # fmt: skip
        self.context = SimpleNamespace(
            host="lab",
            bus=self.store,
            settings=QUICK,
            facts=SimpleNamespace(say=self._say),
            ownership=SimpleNamespace(put_owned=self.store.put_owned, tenure="7"),
            log=SimpleNamespace(info=lambda *_, **__: None, warning=lambda *_, **__: None),
        )
        actors = SimpleNamespace(
            topology=self.bench.topology, context=self.context, changed=lambda: None, has_read=lambda _: None
        )
        context: Any = self.context
        self.shop = Shop(context, cast("Any", fabric), cast("Any", actors), Registry(context), Drivers(context))
        self.actor = SlotActor(PORT, self.shop)

    def _say(
        self, what: What, _port: Address, *, lease: str | None = None, cause: str | None = None, **data: Any
    ) -> None:
        self.facts.append((what, {"lease": lease, "cause": cause, **data}))

    def state(self) -> SlotState:
        return self.actor.state

    def said(self, what: What) -> list[dict[str, Any]]:
        return [data for said, data in self.facts if said is what]

    async def look(self, *wakes: Wake) -> None:
        await self.actor.look(frozenset(wakes or {Wake.INTERRUPT}))

    async def occupied(self) -> None:
        """Start with a card that runs."""
        self.bench.seat(command=BUSY)
        self.bench.topology = self.shop.actors.topology = Topology((ROOT, ENDPOINT))
        await self.look(Wake.START)
        assert self.state() is SlotState.ON
        self.facts.clear()
        self.bench.written.clear()

    def device(self) -> Device:
        found = self.store.records[subjects.device_key("lab", CARD)]
        assert isinstance(found, Device)
        return found
