"""A bench for services that look at ports: config spaces behind a bus that answers as the fabric would."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from shared.pcie import Address, Capabilities, ConfigSpace, Function, Identity, Topology
from shared.pcie import registers as r
from shared.protocol import Message, Reason, Refused, decode, encode, fabric
from shared.protocol.facts import Fact, What
from shared.protocol.requests import Accepted, Recover
from shared.runtime import (
    BusStatistics,
    Context,
    FabricClient,
    Incoming,
    PortActors,
    Settings,
    Subscription,
    Unanswered,
)

HOST = "lab"
EXPRESS, AER, DPC = 0x40, 0x100, 0x200
ROOT, SWITCH_ROOT = Address.parse("0000:00:01.0"), Address.parse("0000:00:02.0")
NVME, NVME_1 = Address.parse("0000:01:00.0"), Address.parse("0000:01:00.1")
UPSTREAM = Address.parse("0000:06:00.0")
DOWN_0, DOWN_1 = Address.parse("0000:07:00.0"), Address.parse("0000:07:01.0")
GPU_0, GPU_1 = Address.parse("0000:08:00.0"), Address.parse("0000:09:00.0")
COLLECTOR = Address.parse("0000:00:1e.0")
INTEGRATED, INTEGRATED_3 = Address.parse("0000:00:1f.0"), Address.parse("0000:00:1f.3")
_SLOT = r.SlotCapabilities.HOTPLUG_CAPABLE | r.SlotCapabilities.HOTPLUG_SURPRISE


def function(
    address: Address,
    kind: r.DeviceType,
    parent: Address | None = None,
    bus: int = 0,
    last: int = 0,
    *,
    dpc: bool = True,
    associated: tuple[Address, ...] = (),
) -> Function:
    return Function(
        address=address,
        kind=kind,
        identity=Identity(vendor=0x8086, device=0x2030, class_code=0x060400, revision=0, subsystem=0),
        capabilities=Capabilities(express=EXPRESS, aer=AER, dpc=DPC if dpc and kind.is_downstream_port else 0),
        parent=parent,
        secondary=bus,
        subordinate=last,
        slot=_SLOT if kind.is_downstream_port else None,
        link_active_reporting=kind.is_downstream_port,
        associated=associated,
    )


TOPOLOGY = Topology(
    (
        function(ROOT, r.DeviceType.ROOT_PORT, None, 1, 1),
        function(SWITCH_ROOT, r.DeviceType.ROOT_PORT, None, 6, 9),
        function(COLLECTOR, r.DeviceType.ROOT_COMPLEX_EVENT_COLLECTOR, associated=(INTEGRATED,)),
        function(INTEGRATED, r.DeviceType.ROOT_COMPLEX_ENDPOINT),
        function(INTEGRATED_3, r.DeviceType.ROOT_COMPLEX_ENDPOINT),
        function(NVME, r.DeviceType.ENDPOINT, ROOT),
        function(NVME_1, r.DeviceType.ENDPOINT, ROOT),
        function(UPSTREAM, r.DeviceType.UPSTREAM_PORT, SWITCH_ROOT, 7, 9),
        function(DOWN_0, r.DeviceType.DOWNSTREAM_PORT, UPSTREAM, 8, 8),
        function(DOWN_1, r.DeviceType.DOWNSTREAM_PORT, UPSTREAM, 9, 9),
        function(GPU_0, r.DeviceType.ENDPOINT, DOWN_0),
        function(GPU_1, r.DeviceType.ENDPOINT, DOWN_1),
    )
)


def lease(port: Address, lease_id: str = "lease-1", *, reach: fabric.Reach = fabric.Reach.RESET) -> fabric.Lease:
    return fabric.Lease(
        id=lease_id,
        token=0,
        port=port,
        rank=fabric.Rank.RECOVERY,
        reach=reach,
        role=fabric.Role.COORDINATOR,
        cause="aer_fatal",
        holder="coordinator",
        allowed_s=5.0,
    )


class _Silence:
    async def close(self) -> None:
        """Nothing was opened."""


class Bench:
    """Hardware, fabric, coordinator and bus in one; it is also the bus that the services are given."""

    def __init__(self, **settings: float) -> None:
        self.topology = TOPOLOGY
        self.spaces = {each.address: _space(each) for each in TOPOLOGY}
        self.silent: set[Address] = set()
        self.without_fabric = False
        self.leases: tuple[fabric.Lease, ...] = ()
        self.retired: tuple[fabric.RetiredLease, ...] = ()
        self.quarantines: tuple[fabric.Quarantine, ...] = ()
        self.edr: tuple[Address, ...] = ()
        self.reads: list[fabric.Operation] = []
        self.recovers: list[Recover] = []
        self.replies: list[Message | Exception] = []  # of the coordinator, in order; then Accepted
        self.acknowledged: list[tuple[Address, int, int]] = []
        self.refuses_acknowledgement = False
        self.after_acknowledge: Callable[[], None] | None = None
        self.facts: list[Fact] = []
        self.reconnects = 0
        self.handlers: dict[str, Callable[[Incoming], None]] = {}
        self.context = Context("test", HOST, self, Settings(removal_grace_s=0.02, **settings), None)  # type: ignore[arg-type]
        self.ports = PortActors(
            self.context,
            "test",
            FabricClient(self, HOST, fabric.Role.AER, "test"),  # type: ignore[arg-type]
            lambda _topology: (),
            lambda _port, _ports: None,  # type: ignore[arg-type, return-value]
        )
        self.ports.topology = TOPOLOGY

    # --- Hardware ---

    def get(self, address: Address, register: r.Register, base: int = 0) -> int:
        return self.spaces[address].read(base + register.offset, register.width)

    def put(self, address: Address, register: r.Register, value: int, base: int = 0) -> None:
        self.spaces[address].set(base + register.offset, register.width, value)

    def set_bits(self, address: Address, register: r.Register, bits: int, base: int = AER) -> None:
        self.put(address, register, self.get(address, register, base) | bits, base)

    def latch(self, root: Address, bits: int, correctable: Address | None = None, fatal: Address | None = None) -> None:
        """Latch the arrival of messages, with their senders."""
        self.set_bits(root, r.ROOT_ERROR_STATUS, bits)
        low = 0 if correctable is None else correctable.requester_id
        high = 0 if fatal is None else fatal.requester_id
        self.put(root, r.ERROR_SOURCE, high << 16 | low, AER)

    def said(self, what: What) -> list[Fact]:
        return [fact for fact in self.facts if fact.what is what]

    # --- The bus ---

    def record(self, fact: Fact) -> None:
        self.facts.append(decode(encode(fact), Fact))  # as a reader of the stream gets it

    def statistics(self) -> BusStatistics:
        return BusStatistics(reconnects=self.reconnects, malformed=0, slow=0, facts_pending=0, connected=True)

    async def subscribe(self, subject: str, _kind: Any, handler: Callable[[Incoming], None]) -> Subscription:
        self.handlers[subject] = handler
        return _Silence()

    async def watch_facts(self, subject: str, handler: Callable[[Incoming], None]) -> Subscription:
        return await self.subscribe(subject, Fact, handler)

    async def request(self, subject: str, message: Message, _reply: Any, *, timeout_s: float) -> Message:  # noqa: ARG002
        if isinstance(message, Recover):
            self.recovers.append(message)
            reply = self.replies.pop(0) if self.replies else Accepted(lease="lease-1")
            if isinstance(reply, Exception):
                raise reply
            return reply
        if self.without_fabric:
            raise Unanswered
        if isinstance(message, fabric.Read):
            self.reads.extend(message.operations)
            return fabric.Values(values=tuple(self._read(each) for each in message.operations))
        if isinstance(message, fabric.Leases):
            return fabric.LeaseList(
                leases=self.leases, retired=self.retired, quarantines=self.quarantines, edr=self.edr
            )
        if isinstance(message, fabric.AskTopology):
            return fabric.TopologyReply(topology=self.topology)
        assert isinstance(message, fabric.Acknowledge), subject
        if self.refuses_acknowledgement:
            return Refused(reason=Reason.POLICY, message="not for aer to clear (now)")
        for each in message.operations:
            self.acknowledged.append((each.function, each.offset, each.value))
            self.spaces[each.function].write(each.offset, each.width, each.value)
        if self.after_acknowledge is not None:
            then, self.after_acknowledge = self.after_acknowledge, None
            then()
        return fabric.Executed(values=tuple(each.value for each in message.operations))

    def _read(self, operation: fabric.Operation) -> int | None:
        if operation.function in self.silent:
            return None
        return self.spaces[operation.function].read(operation.offset, operation.width)


def _space(each: Function) -> ConfigSpace:
    space = ConfigSpace()
    header = r.TYPE1 if each.kind.is_bridge else r.TYPE0
    for register in header:
        space.place(register, {r.VENDOR_ID: each.identity.vendor}.get(register, 0))
    for register in r.EXPRESS:
        space.place(register, 0, EXPRESS)
    if each.kind.is_downstream_port:
        space.set(EXPRESS + r.SLOT_STATUS.offset, 2, r.SlotStatus.PRESENCE)
        space.set(EXPRESS + r.LINK_STATUS.offset, 2, r.LinkStatus.LINK_ACTIVE)
    for register in r.AER_ROOT if each.kind.receives_errors else r.AER:
        value = r.UNCORRECTABLE_FATAL_DEFAULT if register is r.UNCORRECTABLE_SEVERITY else 0
        space.place(register, value, AER)
    if each.capabilities.dpc:
        for register in r.DPC_ROOT if each.kind is r.DeviceType.ROOT_PORT else r.DPC:
            value = r.DpcCapabilities.RP_EXTENSIONS if register is r.DPC_CAPABILITIES else 0
            space.place(register, value if each.kind is r.DeviceType.ROOT_PORT else 0, DPC)
    return space


def without_aer(topology: Topology, address: Address) -> Topology:
    """Return the topology with a function that has no AER."""
    return Topology(
        tuple(
            msgspec.structs.replace(each, capabilities=Capabilities(express=EXPRESS))
            if each.address == address
            else each
            for each in topology
        )
    )
