"""How ports' actors are woken, kept and ended."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
import uvloop

from shared.pcie import Address, Topology
from shared.protocol import Reason, Refused, subjects
from shared.protocol.fabric import Role
from shared.protocol.facts import Fact, Interrupt, What
from shared.runtime import BusUnreachable, Context, FabricClient, Incoming, PortActor, PortActors, RefusedError, Wake
from tests.port_bench import DOWN_0, HOST, ROOT, SWITCH_ROOT, Bench


class Watcher(PortActor):
    """Notes every look."""

    def __init__(self, port: Address, ports: PortActors) -> None:
        super().__init__(f"watcher {port}", port, ports)
        self.looks: list[frozenset[Wake]] = []
        self.looked = asyncio.Event()
        self.troubles: list[Exception] = []
        self.busy: asyncio.Event | None = None  # until then, a look does something after it has read
        self.reads = False  # a register, through the fabric

    async def look(self, wakes: frozenset[Wake]) -> None:
        self.looks.append(wakes)
        if self.troubles:
            raise self.troubles.pop(0)
        if self.reads:
            await self.ports.fabric.read((), timeout_s=0.01)
        if self.busy is not None:
            self.has_read()
            await self.busy.wait()
        self.looked.set()

    async def next(self) -> frozenset[Wake]:
        """Await the next look."""
        await asyncio.wait_for(self.looked.wait(), 2)
        self.looked.clear()
        return self.looks[-1]


class Lab:
    """Watchers of every root port, kept by a PortActors."""

    def __init__(self) -> None:
        self.bench = Bench()
        self.watchers: dict[Address, Watcher] = {}
        self.troubles: dict[Address, list[Exception]] = {}  # of the first looks
        self.busy: dict[Address, asyncio.Event] = {}
        self.complete = asyncio.Event()
        client = FabricClient(self.bench, HOST, Role.AER, "test")  # type: ignore[arg-type]
        self.ports = PortActors(self.bench.context, "aer", client, _roots, self._make)

    def _make(self, port: Address, ports: PortActors) -> Watcher:
        watcher = self.watchers[port] = Watcher(port, ports)
        watcher.troubles, watcher.busy = self.troubles.get(port, []), self.busy.get(port)
        if len(self.watchers) == len(_roots(self.bench.topology)):
            self.complete.set()
        return self.watchers[port]

    async def started(self) -> None:
        await asyncio.wait_for(self.complete.wait(), 2)
        for watcher in self.watchers.values():
            assert await watcher.next() == {Wake.START}

    def hint(self, port: Address) -> None:
        self._deliver(subjects.irq(HOST, "*", "aer"), Interrupt(port=port))

    def tell(self, what: What, port: Address) -> None:
        fact = Fact(what=what, host=HOST, port=port, service="fabric", seq=1, at=datetime.now(UTC))
        self._deliver(subjects.fact(HOST, "*", what), fact)

    def _deliver(self, subject: str, message: Interrupt | Fact) -> None:
        self.bench.handlers[subject](Incoming(subject=subject, message=message))


def _roots(topology: Topology) -> tuple[Address, ...]:
    return tuple(each.address for each in topology if each.parent is None)


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    lab = Lab()
    running = asyncio.create_task(lab.ports.run())
    await lab.started()
    yield lab
    lab.bench.context.stopping.set()
    await asyncio.wait_for(running, 2)


@contextlib.asynccontextmanager
async def begun(lab: Lab) -> AsyncIterator[Context]:
    """Run a lab whose hardware is not as it should be, to the end of its first looks."""
    running = asyncio.create_task(lab.ports.run())
    await calm()
    yield lab.bench.context
    lab.bench.context.stopping.set()
    await running


async def sees(lab: Lab, waiting: str | None) -> None:
    """Await that the service waits for this."""
    async with asyncio.timeout(2):
        while lab.bench.context.waiting != waiting:
            await calm()


async def calm() -> None:
    """Let everything run that can."""
    for _ in range(100):
        await asyncio.sleep(0)


async def test_p9_the_service_is_ready_once_the_registers_of_every_port_have_been_read(lab: Lab) -> None:
    await calm()
    assert lab.bench.context.waiting is None


async def test_a_port_that_could_not_be_read_keeps_the_service_from_being_ready_and_is_named() -> None:
    lab = Lab()
    lab.troubles[ROOT] = [BusUnreachable("gone")]
    async with begun(lab) as context:
        assert context.waiting == f"not read yet: {ROOT}"
        lab.hint(ROOT)
        await calm()
        assert context.waiting is None


async def test_what_a_look_does_after_it_has_read_is_not_waited_for() -> None:
    lab = Lab()
    lab.busy[ROOT] = asyncio.Event()
    async with begun(lab) as context:
        assert len(lab.watchers[ROOT].looks) == 1
        assert context.waiting is None


async def test_a_fabric_that_has_found_no_hardware_yet_is_asked_again_before_anybody_is_ready() -> None:
    lab = Lab()
    hardware, lab.bench.topology = lab.bench.topology, Topology()
    async with begun(lab) as context:
        assert context.waiting == "the fabric has not found any hardware yet"
        lab.bench.topology = hardware
        lab.ports.changed()
        await lab.started()
        await calm()
        assert context.waiting is None


async def test_a_service_whose_fabric_does_not_answer_is_not_ready_until_the_topology_can_be_read_again(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.runtime._port_actors.TOPOLOGY_S", 0.01)
    await calm()
    lab.bench.without_fabric = True
    lab.ports.changed()
    await sees(lab, "the fabric does not answer")
    lab.bench.without_fabric = False
    lab.ports.changed()
    await sees(lab, None)


async def test_a_service_whose_fabric_does_not_answer_is_not_ready_until_a_register_can_be_read_again(lab: Lab) -> None:
    await calm()
    lab.watchers[ROOT].reads = True
    lab.bench.without_fabric = True
    lab.hint(ROOT)
    await sees(lab, "the fabric does not answer")
    lab.bench.without_fabric = False
    await sees(lab, None)  # it looks again by itself


async def test_a_look_that_fails_for_want_of_somebody_else_leaves_the_service_ready(lab: Lab) -> None:
    await calm()
    lab.watchers[ROOT].troubles = [BusUnreachable("no coordinator")]
    lab.hint(ROOT)
    await calm()
    assert len(lab.watchers[ROOT].looks) == 2
    assert lab.bench.context.waiting is None


async def test_an_interrupt_wakes_its_port_alone(lab: Lab) -> None:
    lab.hint(ROOT)
    assert await lab.watchers[ROOT].next() == {Wake.INTERRUPT}
    assert len(lab.watchers[SWITCH_ROOT].looks) == 1


async def test_p9_an_interrupt_of_an_unknown_port_changes_nothing(lab: Lab) -> None:
    lab.hint(Address.parse("0000:ff:00.0"))
    await asyncio.sleep(0)
    assert all(len(watcher.looks) == 1 for watcher in lab.watchers.values())


async def test_many_wakes_are_one_look_that_knows_every_reason(lab: Lab) -> None:
    for _ in range(100):
        lab.hint(ROOT)
    lab.tell(What.LEASE_CLOSED, ROOT)
    assert await lab.watchers[ROOT].next() == {Wake.INTERRUPT, Wake.ENDED}
    assert len(lab.watchers[ROOT].looks) == 2


async def test_the_end_of_a_lease_wakes_the_ports_of_its_tree(lab: Lab) -> None:
    lab.tell(What.RECOVERY_CLOSED, DOWN_0)
    assert await lab.watchers[SWITCH_ROOT].next() == {Wake.ENDED}
    assert len(lab.watchers[ROOT].looks) == 1


async def test_a_change_that_hotplug_leaves_to_others_wakes_them_as_a_lost_interrupt_would_have(lab: Lab) -> None:
    lab.tell(What.SLOT_DEFERRED, DOWN_0)
    assert await lab.watchers[SWITCH_ROOT].next() == {Wake.INTERRUPT}
    assert len(lab.watchers[ROOT].looks) == 1


async def test_a_port_that_comes_or_goes_has_its_actor_begun_or_ended(lab: Lab) -> None:
    whole = lab.bench.topology
    lab.bench.topology = Topology(tuple(each for each in whole if each.address != ROOT))
    lab.tell(What.DEVICE_REMOVED, SWITCH_ROOT)
    assert await lab.watchers[SWITCH_ROOT].next() == {Wake.POLL}
    lab.hint(ROOT)
    await asyncio.sleep(0)
    assert len(lab.watchers[ROOT].looks) == 1, "nobody is left to look"
    gone = lab.watchers.pop(ROOT)
    lab.bench.topology = whole
    lab.tell(What.DEVICE_ADDED, ROOT)
    assert await lab.watchers[SWITCH_ROOT].next() == {Wake.POLL}
    assert await lab.watchers[ROOT].next() == {Wake.START}
    assert lab.watchers[ROOT] is not gone


async def test_a_look_that_failed_for_want_of_a_bus_is_made_again_for_the_same_reasons(lab: Lab) -> None:
    watcher = lab.watchers[ROOT]
    watcher.troubles = [BusUnreachable("down"), BusUnreachable("down")]
    lab.hint(ROOT)
    assert await watcher.next() == {Wake.INTERRUPT, Wake.AGAIN}


async def test_a_function_that_the_fabric_does_not_know_has_the_topology_read_again(lab: Lab) -> None:
    lab.bench.topology = Topology(tuple(each for each in lab.bench.topology if each.address != DOWN_0))
    lab.watchers[SWITCH_ROOT].troubles = [RefusedError(Refused(reason=Reason.UNKNOWN_PORT, message="no function"))]
    lab.hint(SWITCH_ROOT)
    assert Wake.POLL in await lab.watchers[SWITCH_ROOT].next()
    assert lab.ports.topology == lab.bench.topology


async def test_p9_after_a_reconnect_everybody_looks(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.runtime._port_actors.CONNECTION_LOOK_S", 0.01)
    lab.tell(What.DEVICE_ADDED, ROOT)  # so that the next pause looks as often
    assert await lab.watchers[ROOT].next() == {Wake.POLL}
    lab.bench.reconnects += 1
    assert await lab.watchers[ROOT].next() == {Wake.POLL}


async def test_an_earlier_look_replaces_a_later_one_and_not_the_other_way_round(lab: Lab) -> None:
    watcher = lab.watchers[ROOT]
    watcher.again(60)
    watcher.again(0)
    watcher.again(60)
    assert await watcher.next() == {Wake.AGAIN}


def test_a_look_at_once_may_be_asked_for_twice_on_the_loop_that_services_run_on() -> None:
    """On uvloop a timer without a delay is no timer, and does not say when it is due."""

    async def twice() -> None:
        watcher = Watcher(ROOT, Lab().ports)
        watcher.again(0)
        watcher.again(0)
        watcher.again(60)
        await asyncio.sleep(0.01)
        await watcher.receive(None)
        assert watcher.looks == [{Wake.AGAIN}]

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(twice())
