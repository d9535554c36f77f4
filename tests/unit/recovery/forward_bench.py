"""A scripted bench for rolling forward: config spaces, a clock that Pause moves, and links that come up when let go."""

from __future__ import annotations

from collections.abc import Callable

from shared.pcie import NO_ANSWER, Address, ConfigSpace, Topology, Value, describe, restorable
from shared.pcie import registers as reg
from shared.protocol.fabric import (
    Lease,
    Operation,
    Rank,
    Reach,
    Role,
    SavedFunction,
    SavedRegister,
    SavedSlot,
    Verb,
)
from shared.recovery import Bounds, Do, Effect, Logic, Note, Pause, Verified, roll_forward
from tests.unit.fabric.fabric_bench import (
    ACTIVE,
    CARD,
    DOWN,
    DPC_STATUS,
    ENABLES,
    ERROR_MASK,
    HOTPLUG,
    LINK_CONTROL,
    LINK_STATUS,
    NESTED,
    PRESENT,
    ROOT,
    SLOT_CONTROL,
    SLOT_STATUS,
    SURPRISE_DOWN,
    UP,
    space,
)

BRIDGE_CONTROL = reg.BRIDGE_CONTROL.offset
COMMAND = reg.COMMAND.offset
BAR0 = reg.BAR[0].offset
TRIGGER = int(reg.DpcStatus.TRIGGER)
BUSY = int(reg.DpcStatus.RP_BUSY)
SBR = int(reg.BridgeControl.SECONDARY_BUS_RESET)
RETRAIN = int(reg.LinkControl.RETRAIN_LINK)
DISABLE = int(reg.LinkControl.LINK_DISABLE)
OUT_OF_BAND = int(reg.SlotControl.IN_BAND_PRESENCE_DISABLE)
BAR_VALUE, COMMAND_VALUE = 0xFE00_0000, 0x0006


class ForwardBench:
    """00:01.0 slot -- 01:00.0 switch -- 02:00.0 slot -- 03:00.0 and 03:00.1. All healthy, a lease on 00:01.0 open."""

    def __init__(self) -> None:
        kinds = reg.DeviceType
        self.spaces: dict[Address, ConfigSpace] = {
            ROOT: space(kinds.ROOT_PORT, bus=(1, 3), slot=HOTPLUG),
            UP: space(kinds.UPSTREAM_PORT, bus=(2, 3), serial=0x11),
            DOWN: space(kinds.DOWNSTREAM_PORT, bus=(3, 3), slot=HOTPLUG),
            CARD: space(kinds.ENDPOINT, serial=0x22),
            NESTED: space(kinds.ENDPOINT, serial=0x23),
        }
        for address, made in self.spaces.items():
            made.set(COMMAND, 2, COMMAND_VALUE)
            if address in {CARD, NESTED}:
                made.place(reg.Register("BAR 0", BAR0, 4, "", rw=0xFFFF_FFFF), BAR_VALUE)
        parents = {UP: ROOT, DOWN: UP, CARD: DOWN, NESTED: DOWN}
        functions = []
        for address, made in sorted(self.spaces.items()):
            function = describe(address, made.image(), parents.get(address))
            assert function is not None
            functions.append(function)
        self.topology = Topology(functions=tuple(functions))
        self.images = {address: made.image() for address, made in self.spaces.items()}
        self.now = 0.0
        self.link_s = 0.03  # from release to link active
        self.ready_s: dict[Address, float] = {}  # from reset on: when a function answers
        self.drops_s: dict[Address, float] = {}  # ports whose link goes down so long after it came up, each time
        self.negotiates: dict[Address, list[int]] = {}  # Link Status fields that the next trainings of a port reach
        self.stuck: set[Address] = set()  # ports whose link does not come up
        self.empty: set[Address] = set()  # ports whose card is gone
        self.writes: list[Operation] = []
        self.steps: list[list[Operation]] = []
        self.notes: list[Note] = []
        self.at: list[tuple[float, Callable[[], None]]] = []
        self._up_at: dict[Address, float] = {ROOT: 0.0, DOWN: 0.0}
        self._ready_at: dict[Address, float] = {}
        for port in (ROOT, DOWN):
            self.set(port, SLOT_CONTROL, self.get(port, SLOT_CONTROL) & ~ENABLES)
            self.set(port, ERROR_MASK, SURPRISE_DOWN, 4)

    # --- The lease ---

    def lease(self, *, rank: Rank = Rank.RECOVERY, reach: Reach = Reach.RESET, seen: int | None = 0) -> Lease:
        functions = tuple(
            SavedFunction(
                address=function.address,
                identity=function.identity,
                registers=tuple(SavedRegister(*row) for row in restorable(function, self.images[function.address])),
                uncorrectable=seen,
                correctable=seen,
            )
            for function in self.topology
        )
        slots = tuple(SavedSlot(port=port, enables=ENABLES, surprise_down_masked=False) for port in (ROOT, DOWN))
        return Lease(
            id="r-1",
            token=1,
            port=ROOT,
            rank=rank,
            reach=reach,
            role=Role.COORDINATOR,
            cause="dpc",
            holder="test",
            allowed_s=5.0,
            slots=slots if reach is not Reach.NOTHING else (),
            functions=functions,
        )

    # --- Hardware ---

    def get(self, address: Address, offset: int, width: int = 2) -> int:
        return self.spaces[address].read(offset, width)

    def set(self, address: Address, offset: int, value: int, width: int = 2) -> None:
        self.spaces[address].set(offset, width, value)

    def take_down(self, port: Address) -> None:
        """The link below `port` goes down: a hot reset of everything behind it."""
        self.set(port, LINK_STATUS, 0)
        self._up_at.pop(port, None)
        for behind in self.topology.below(port):
            made = self.spaces[behind.address]
            made.hot_reset()
            self._ready_at.pop(behind.address, None)
            if behind.is_port:
                made.set(LINK_STATUS, 2, 0)
                self._up_at.pop(behind.address, None)

    def stick(self, port: Address) -> None:
        """The link goes down and does not come up any more."""
        self.stuck.add(port)
        self.take_down(port)

    def trigger(self, port: Address) -> None:
        self.set(port, DPC_STATUS, TRIGGER)
        self.take_down(port)

    def pull(self, port: Address) -> None:
        self.empty.add(port)
        self.take_down(port)
        self.set(port, SLOT_STATUS, self.get(port, SLOT_STATUS) & ~PRESENT)

    def swap(self, address: Address, *, serial: int) -> None:
        kind = self.topology.get(address).kind
        self.spaces[address] = space(kind, serial=serial)

    def reachable(self, address: Address) -> bool:
        parent = self.topology.get(address).parent
        if parent is None:
            return True
        if not self.reachable(parent):
            return False
        bridge = self.topology.get(parent)
        if self.get(parent, reg.SECONDARY_BUS.offset, 1) != bridge.secondary:
            return False
        if not bridge.is_port:
            return True
        return bool(self.get(parent, LINK_STATUS) & ACTIVE) and self.now >= self._ready_at.get(address, 0.0)

    def _settle(self) -> None:
        """Links whose way is free come up in their time."""
        for when, happens in [one for one in self.at if one[0] <= self.now]:
            self.at.remove((when, happens))
            happens()
        for port in (ROOT, DOWN):
            held = (
                self.get(port, BRIDGE_CONTROL) & SBR
                or self.get(port, LINK_CONTROL) & DISABLE
                or self.get(port, DPC_STATUS) & TRIGGER
                or port in self.stuck | self.empty
                or not self.reachable(port)
            )
            if held:
                self._up_at.pop(port, None)
                if self.get(port, LINK_STATUS) & ACTIVE:
                    self.take_down(port)
                continue
            up_at = self._up_at.setdefault(port, self.now + self.link_s)
            if port in self.drops_s and self.now >= up_at + self.drops_s[port]:
                self.take_down(port)
                continue
            if self.now >= self._up_at[port] and not self.get(port, LINK_STATUS) & ACTIVE:
                self.set(port, LINK_STATUS, ACTIVE | self._negotiated(port))
                for child in self.topology.children(port):
                    self._ready_at[child.address] = self.now + self.ready_s.get(child.address, 0.0)

    def _negotiated(self, port: Address) -> int:
        coming = self.negotiates.get(port, [0])
        return coming.pop(0) if len(coming) > 1 else coming[0]

    def _access(self, operation: Operation) -> Value:
        self._settle()
        address, offset, width = operation.function, operation.offset, operation.width
        if not self.reachable(address):
            return NO_ANSWER
        made = self.spaces[address]
        value = made.read(offset, width)
        if operation.verb is Verb.READ:
            return value
        new = operation.value
        if operation.verb is Verb.MODIFY:
            new = value & ~operation.mask | operation.value & operation.mask
        self.writes.append(operation)
        made.write(offset, width, new)
        if offset == LINK_CONTROL and new & RETRAIN and self.get(address, LINK_STATUS) & ACTIVE:
            self.set(address, LINK_STATUS, ACTIVE | self._negotiated(address))
        self._settle()
        return new

    # --- Driving ---

    def answer(self, effect: Effect) -> object:
        match effect:
            case Do():
                self.steps.append(list(effect.operations))
                return tuple(self._access(operation) for operation in effect.operations)
            case Pause():
                self.now += effect.seconds
                self._settle()
                return self.now
            case Note():
                self.notes.append(effect)
                return None

    def drive(self, logic: Logic[Verified]) -> Verified:
        sent: object = None
        while True:
            try:
                effect = logic.send(sent)
            except StopIteration as done:
                result: Verified = done.value
                return result
            sent = self.answer(effect)

    def roll(self, lease: Lease | None = None, bounds: Bounds | None = None) -> Verified:
        return self.drive(roll_forward(lease or self.lease(), self.topology, bounds or Bounds(ready_s=5.0)))
