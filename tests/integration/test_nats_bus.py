"""The bus over a real nats-server: what it promises, and the traps of prior-art/nats.md that it steers around."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import nats
import pytest
from nats.aio.client import Client

from shared.pcie import Address
from shared.protocol import Message, Reason, Refused, decode, fabric
from shared.protocol.facts import Fact, Interrupt, What
from shared.protocol.records import Owner
from shared.runtime import (
    BusUnreachable,
    Facts,
    Incoming,
    NatsBus,
    NobodyListens,
    Ownership,
    Request,
    Settings,
    Unanswered,
    WrongRevision,
    connect,
)
from tests.conftest import NatsServer

PORT = Address.parse("0000:3b:00.0")
PATIENCE_S = 20.0  # for what happens sooner or later
_hosts = itertools.count(1)


@pytest.fixture
def host() -> str:
    """A host of its own for each test, so that all can share one server."""
    return f"host{next(_hosts)}"


@asynccontextmanager
async def bus_to(server: NatsServer, instance: str = "test-1") -> AsyncIterator[NatsBus]:
    bus = await connect(Settings(nats_url=server.url, instance=instance), "test", timeout_s=PATIENCE_S)
    try:
        yield bus
    finally:
        await bus.close()


@pytest.fixture
async def bus(nats_server: NatsServer) -> AsyncIterator[NatsBus]:
    async with bus_to(nats_server) as connected:
        yield connected


@pytest.fixture
async def person(nats_server: NatsServer) -> AsyncIterator[Client]:
    """A person with the plain `nats` command."""
    client = await nats.connect(nats_server.url)
    yield client
    await client.close()


async def until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not happened():  # noqa: ASYNC110 - what happens here happens in other processes
            await asyncio.sleep(0.01)


async def eventually(attempt: Callable[[], Awaitable[object]]) -> None:
    """Try until it no longer fails for want of a bus."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with contextlib.suppress(BusUnreachable, Unanswered):
                await attempt()
                return
            await asyncio.sleep(0.05)


async def hear(facts: AsyncIterator[Fact], heard: list[int]) -> None:
    """Note the number in each fact."""
    async for fact in facts:
        heard.append(fact.data["number"])  # noqa: PERF401 - the list is looked at in between


def owner(text: str) -> Owner:
    return Owner(owner=text, beat=0)


class Answering:
    """Serves one subject: refuses everything, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Message] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def __call__(self, request: Request) -> None:
        self.asked.append(request.message)
        reply = Refused(reason=Reason.POLICY, message="no")
        self._tasks.add(asyncio.create_task(request.answer(reply)))


class TestRequests:
    async def test_a_request_is_answered_from_any_task(self, bus: NatsBus, host: str) -> None:
        serving = Answering()
        await bus.serve(f"fabric-{host}", {f"pcie.{host}.fabric.dump": (fabric.Dump, serving)})
        asked = fabric.Dump(function=PORT)
        reply = await bus.request(f"pcie.{host}.fabric.dump", asked, fabric.DumpReply, timeout_s=PATIENCE_S)
        assert reply == Refused(reason=Reason.POLICY, message="no")
        assert serving.asked == [asked]

    async def test_a_person_who_asks_in_json_is_answered_in_json(self, bus: NatsBus, person: Client, host: str) -> None:
        await bus.serve(f"fabric-{host}", {f"pcie.{host}.fabric.dump": (fabric.Dump, Answering())})
        reply = await person.request(f"pcie.{host}.fabric.dump", b' {"function": "0000:3b:00.0"}', timeout=PATIENCE_S)
        assert json.loads(reply.data)["reason"] == "policy"

    @pytest.mark.parametrize(
        ("sent", "reason"),
        [
            (b"\xffnonsense", Reason.MALFORMED),
            (b'{"function": "yonder"}', Reason.MALFORMED),
            (b'{"function": "0000:3b:00.0", "colour": "red"}', Reason.MALFORMED),
            (b'{"v": 99, "function": "0000:3b:00.0"}', Reason.VERSION),
        ],
    )
    async def test_p10_a_malformed_request_is_answered_counted_and_changes_nothing(
        self, bus: NatsBus, person: Client, host: str, sent: bytes, reason: Reason
    ) -> None:
        serving = Answering()
        await bus.serve(f"fabric-{host}", {f"pcie.{host}.fabric.dump": (fabric.Dump, serving)})
        reply = await person.request(f"pcie.{host}.fabric.dump", sent, timeout=PATIENCE_S)
        refused: Refused = decode(reply.data, Refused)
        assert refused.reason is reason
        assert refused.message
        assert not serving.asked
        assert bus.statistics().malformed == 1

    async def test_nobody_listens_means_not_executed(self, bus: NatsBus, host: str) -> None:
        with pytest.raises(NobodyListens):
            await bus.request(f"pcie.{host}.fabric.read", fabric.Read(operations=()), Refused, timeout_s=PATIENCE_S)

    async def test_no_answer_in_time_means_unknown(self, bus: NatsBus, host: str) -> None:
        heard: list[Request] = []
        await bus.serve("mute", {f"pcie.{host}.fabric.read": (fabric.Read, heard.append)})
        with pytest.raises(Unanswered) as caught:
            await bus.request(f"pcie.{host}.fabric.read", fabric.Read(operations=()), Refused, timeout_s=0.2)
        assert not isinstance(caught.value, NobodyListens)
        assert len(heard) == 1

    async def test_a_handler_that_crashes_leaves_the_outcome_unknown_and_the_service_alive(
        self, bus: NatsBus, host: str
    ) -> None:
        serving = Answering()

        def crash_once(request: Request) -> None:
            if not serving.asked:
                serving.asked.append(request.message)
                raise RuntimeError("a bug")
            serving(request)

        subject = f"pcie.{host}.fabric.read"
        await bus.serve("crashing", {subject: (fabric.Read, crash_once)})
        with pytest.raises(Unanswered, match="a bug"):
            await bus.request(subject, fabric.Read(operations=()), Refused, timeout_s=PATIENCE_S)
        await bus.request(subject, fabric.Read(operations=()), Refused, timeout_s=PATIENCE_S)

    async def test_services_are_seen_by_nats_micro(self, bus: NatsBus, person: Client, host: str) -> None:
        await bus.serve(f"slots {host}", {f"pcie.{host}.*.slot.status": (fabric.Read, Answering())})
        info = json.loads((await person.request(f"$SRV.INFO.slots-{host}", timeout=PATIENCE_S)).data)
        assert [endpoint["name"] for endpoint in info["endpoints"]] == ["slot-status"]
        assert info["metadata"]["instance"] == "test-1"

    async def test_a_closed_service_answers_no_more(self, bus: NatsBus, host: str) -> None:
        subject = f"pcie.{host}.fabric.read"
        service = await bus.serve("short", {subject: (fabric.Read, Answering())})
        await service.close()
        with pytest.raises(NobodyListens):
            await bus.request(subject, fabric.Read(operations=()), Refused, timeout_s=PATIENCE_S)

    async def test_a_request_in_hand_is_answered_while_the_connection_drains(
        self, nats_server: NatsServer, bus: NatsBus, host: str
    ) -> None:
        """prior-art/nats.md C8."""
        subject = f"pcie.{host}.fabric.read"
        in_hand: asyncio.Queue[Request] = asyncio.Queue()
        async with bus_to(nats_server, "test-2") as leaving:
            await leaving.serve("leaving", {subject: (fabric.Read, in_hand.put_nowait)})
            question = fabric.Read(operations=())
            asking = asyncio.create_task(bus.request(subject, question, Refused, timeout_s=PATIENCE_S))
            await until(lambda: asking.done() or not in_hand.empty())
            if asking.done():
                asking.result()
            request = await in_hand.get()
            await request.answer(Refused(reason=Reason.STOPPING, message="bye"))
        assert (await asking).reason is Reason.STOPPING


class TestHints:
    async def test_a_malformed_hint_is_counted_and_not_delivered(self, bus: NatsBus, person: Client, host: str) -> None:
        heard: list[Incoming] = []
        await bus.subscribe(f"pcie.{host}.*.irq.aer", Interrupt, heard.append)
        await person.publish(f"pcie.{host}.x.irq.aer", b"nonsense")
        await person.flush()
        await bus.publish(f"pcie.{host}.x.irq.aer", Interrupt(port=PORT))
        await until(lambda: bool(heard))
        assert heard == [Incoming(f"pcie.{host}.x.irq.aer", Interrupt(port=PORT))]
        assert bus.statistics().malformed == 1

    async def test_subscriptions_survive_a_restart_of_the_server(self, own_nats_server: NatsServer) -> None:
        async with bus_to(own_nats_server) as bus:
            heard: list[Incoming] = []
            await bus.subscribe("pcie.lab.*.irq.aer", Interrupt, heard.append)
            own_nats_server.kill()
            own_nats_server.start()
            await until(lambda: bus.statistics().reconnects == 1)
            await eventually(lambda: bus.publish("pcie.lab.x.irq.aer", Interrupt(port=PORT)))
            await until(lambda: bool(heard))

    async def test_nothing_is_buffered_while_the_bus_is_down(self, own_nats_server: NatsServer) -> None:
        """prior-art/nats.md C2: a command that arrives seconds later is worse than one that failed."""
        async with bus_to(own_nats_server) as bus:
            heard: list[Incoming] = []
            await bus.subscribe("pcie.lab.*.irq.>", Interrupt, heard.append)
            own_nats_server.kill()
            await until(lambda: not bus.statistics().connected)
            with pytest.raises(BusUnreachable):
                await bus.publish("pcie.lab.x.irq.while-down", Interrupt(port=PORT))
            with pytest.raises(BusUnreachable):
                await bus.request("pcie.lab.x.irq.while-down", Interrupt(port=PORT), Refused, timeout_s=PATIENCE_S)
            own_nats_server.start()
            await eventually(lambda: bus.publish("pcie.lab.x.irq.after", Interrupt(port=PORT)))
            await until(lambda: bool(heard))
            assert [incoming.subject for incoming in heard] == ["pcie.lab.x.irq.after"]


class TestRecords:
    async def test_a_write_needs_the_revision_that_it_read(self, bus: NatsBus, host: str) -> None:
        key = f"device.{host}.x"
        assert await bus.get(key) is None
        first = await bus.put(key, owner("a"), revision=0)
        with pytest.raises(WrongRevision):
            await bus.put(key, owner("b"), revision=0)
        second = await bus.put(key, owner("c"), revision=first)
        with pytest.raises(WrongRevision):
            await bus.put(key, owner("d"), revision=first)
        entry = await bus.get(key)
        assert entry is not None
        assert (entry.key, decode(entry.value, Owner), entry.revision) == (key, owner("c"), second)

    async def test_p7_a_deposed_owner_is_refused_by_the_bucket(self, bus: NatsBus, host: str) -> None:
        owner_key, key = f"owner.{host}.hotplug", f"device.{host}.x"
        mine = await bus.put(owner_key, owner("me"), revision=0)
        await bus.put_owned(key, owner("by me"), owner_key=owner_key, owner_revision=mine)
        theirs = await bus.put(owner_key, owner("them"), revision=mine)
        with pytest.raises(WrongRevision):
            await bus.put_owned(key, owner("zombie"), owner_key=owner_key, owner_revision=mine)
        await bus.put_owned(key, owner("by them"), owner_key=owner_key, owner_revision=theirs)
        entry = await bus.get(key)
        assert entry is not None
        assert decode(entry.value, Owner) == owner("by them")

    async def test_a_deleted_record_is_absent_and_can_be_made_anew(
        self, bus: NatsBus, person: Client, host: str
    ) -> None:
        """prior-art/nats.md K1 and K2: an operator's `nats kv del` leaves a tombstone."""
        key = f"device.{host}.x"
        await bus.put(key, owner("a"), revision=0)
        await (await person.jetstream().key_value("PCIE")).delete(key)
        assert await bus.get(key) is None
        assert await bus.keys(f"device.{host}.") == ()
        revision = await bus.put(key, owner("b"), revision=0)
        entry = await bus.get(key)
        assert entry is not None
        assert entry.revision == revision

    async def test_records_are_listed_by_whole_tokens_in_order(self, bus: NatsBus, host: str) -> None:
        for key in (f"device.{host}.b", f"device.{host}.a", f"device.{host}2.c", f"owner.{host}.aer"):
            await bus.put(key, owner(key), revision=0)
        assert [entry.key for entry in await bus.keys(f"device.{host}.")] == [f"device.{host}.a", f"device.{host}.b"]

    async def test_a_write_whose_answer_was_lost_is_read_back(
        self, bus: NatsBus, host: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """prior-art/nats.md K8: a lost answer is not a lost race."""
        stored = bus._records._publish
        lost = []

        async def answer_lost(subject: str, value: bytes, headers: dict[str, str]) -> int:
            lost.append(await stored(subject, value, headers))
            raise Unanswered(subject)

        monkeypatch.setattr(bus._records, "_publish", answer_lost)
        assert await bus.put(f"device.{host}.x", owner("a"), revision=0) == lost[0]

    async def test_a_write_that_did_not_happen_stays_unknown(
        self, bus: NatsBus, host: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        revision = await bus.put(f"device.{host}.x", owner("a"), revision=0)

        async def not_sent(subject: str, *_: object) -> int:
            raise Unanswered(subject)

        monkeypatch.setattr(bus._records, "_publish", not_sent)
        with pytest.raises(Unanswered):
            await bus.put(f"device.{host}.x", owner("a"), revision=revision)

    async def test_writes_through_a_frozen_server_are_unknown_and_ownership_lapses(
        self, own_nats_server: NatsServer
    ) -> None:
        """prior-art/nats.md C1 and C4: only one's own timer tells."""
        async with bus_to(own_nats_server) as bus:
            ownership = Ownership(bus, "owner.lab.aer", "test-1", 1.0)
            await ownership.acquire()
            keeping = asyncio.create_task(ownership.keep())
            own_nats_server.freeze()
            try:
                with pytest.raises((Unanswered, BusUnreachable)):
                    await bus.put("device.lab.x", owner("a"), revision=0)
                async with asyncio.timeout(PATIENCE_S):
                    await keeping
                assert not ownership.held
            finally:
                own_nats_server.thaw()
            async with asyncio.timeout(PATIENCE_S):
                await ownership.acquire()

    async def test_a_second_instance_takes_over_from_one_that_fell_silent(
        self, nats_server: NatsServer, host: str
    ) -> None:
        key = f"owner.{host}.aer"
        async with bus_to(nats_server, "a") as first_bus, bus_to(nats_server, "b") as second_bus:
            first, second = Ownership(first_bus, key, "a", 0.5), Ownership(second_bus, key, "b", 0.5)
            await first.acquire()  # and never beats
            async with asyncio.timeout(PATIENCE_S):
                await second.acquire()
            with pytest.raises(WrongRevision):
                await first.put_owned(f"device.{host}.x", owner("zombie"))
            assert await second_bus.get(f"device.{host}.x") is None


class TestFacts:
    async def stored(self, bus: NatsBus, count: int, *filters: str) -> list[Fact]:
        await until(lambda: bus.statistics().facts_pending == 0)
        found = [fact async for fact in bus.facts(filters)]
        assert len(found) == count
        return found

    async def test_facts_are_stored_and_filtered_by_subject(self, bus: NatsBus, host: str) -> None:
        facts = Facts(bus, "hotplug", host)
        facts.say(What.LINK_DOWN, PORT, lease="l1")
        facts.say(What.DEVICE_REMOVED, PORT)
        facts.say(What.LINK_UP, PORT)
        assert len(await self.stored(bus, 3, f"pcie.{host}.>")) == 3
        (removed,) = await self.stored(bus, 1, f"pcie.{host}.*.device.>")
        assert removed.what is What.DEVICE_REMOVED
        both = await self.stored(bus, 2, f"pcie.{host}.*.link.up", f"pcie.{host}.{PORT.token}.link.down")
        assert [fact.what for fact in both] == [What.LINK_DOWN, What.LINK_UP]

    async def test_p10_facts_are_kept_in_order_and_once_across_a_crash_of_the_server(
        self, own_nats_server: NatsServer
    ) -> None:
        count = 600
        async with bus_to(own_nats_server) as bus:
            facts = Facts(bus, "fabric", "lab")
            for number in range(count // 3):
                facts.say(What.LEASE_EXECUTED, PORT, number=number)
            await until(lambda: bus.statistics().facts_pending < count // 4)  # some are stored, some under way
            own_nats_server.kill()
            for number in range(count // 3, 2 * count // 3):
                facts.say(What.LEASE_EXECUTED, PORT, number=number)
            own_nats_server.start()
            for number in range(2 * count // 3, count):
                facts.say(What.LEASE_EXECUTED, PORT, number=number)
            found = await self.stored(bus, count)
            assert [fact.data["number"] for fact in found] == list(range(count))

    async def test_facts_stated_before_a_restart_of_their_publisher_do_not_hide_those_after(
        self, nats_server: NatsServer, host: str
    ) -> None:
        """In a container every life of a service has the same process id, so the same name and numbers."""
        for _ in range(2):
            async with bus_to(nats_server, "aer-1") as bus:
                Facts(bus, "aer", host).say(What.ERROR_FATAL, PORT)
        async with bus_to(nats_server) as bus:
            assert len(await self.stored(bus, 2, f"pcie.{host}.>")) == 2

    async def test_closing_the_bus_stores_what_was_stated_last(self, nats_server: NatsServer, host: str) -> None:
        async with bus_to(nats_server) as bus:
            facts = Facts(bus, "aer", host)
            for _ in range(50):
                facts.say(What.ERROR_FATAL, PORT)
        async with bus_to(nats_server) as bus:
            await self.stored(bus, 50, f"pcie.{host}.>")

    async def test_a_follower_hears_what_is_stored_and_what_comes_through_a_crash_of_the_server(
        self, own_nats_server: NatsServer
    ) -> None:
        """prior-art/nats.md C5: a consumer would be deaf for 18 s."""
        async with bus_to(own_nats_server) as bus:
            facts = Facts(bus, "aer", "lab")
            heard: list[int] = []

            facts.say(What.ERROR_FATAL, PORT, number=1)
            following = asyncio.create_task(hear(bus.facts(follow=True), heard))
            await until(lambda: heard == [1])
            own_nats_server.kill()
            facts.say(What.ERROR_FATAL, PORT, number=2)
            own_nats_server.start()
            await until(lambda: heard == [1, 2])
            following.cancel()

    async def test_a_follower_can_begin_with_what_comes(self, bus: NatsBus, host: str) -> None:
        facts = Facts(bus, "aer", host)
        facts.say(What.ERROR_FATAL, PORT, number=1)
        await self.stored(bus, 1, f"pcie.{host}.>")
        following = bus.facts((f"pcie.{host}.>",), since_sequence=0, follow=True)
        first = asyncio.ensure_future(anext(following))
        await asyncio.sleep(0.2)
        facts.say(What.ERROR_FATAL, PORT, number=2)
        assert (await asyncio.wait_for(first, PATIENCE_S)).data["number"] == 2
        await following.aclose()  # type: ignore[attr-defined]  # an async generator behind the interface

    async def test_a_server_that_forgot_everything_is_furnished_again(self, own_nats_server: NatsServer) -> None:
        """prior-art/nats.md 1.4: NATS may forget."""
        async with bus_to(own_nats_server) as bus:
            facts = Facts(bus, "aer", "lab")
            for number in range(3):
                facts.say(What.ERROR_FATAL, PORT, number=number)
            await self.stored(bus, 3)
            heard: list[int] = []

            following = asyncio.create_task(hear(bus.facts(follow=True), heard))
            await until(lambda: heard == [0, 1, 2])
            own_nats_server.kill()
            own_nats_server.forget()
            own_nats_server.start()
            facts.say(What.ERROR_FATAL, PORT, number=9)
            (fact,) = await self.stored_again(bus)
            assert fact.data["number"] == 9
            await until(lambda: heard == [0, 1, 2, 9])
            await eventually(lambda: bus.put("device.lab.x", owner("a"), revision=0))
            following.cancel()

    async def stored_again(self, bus: NatsBus) -> list[Fact]:
        await until(lambda: bus.statistics().facts_pending == 0)
        return [fact async for fact in bus.facts()]

    async def test_a_forged_fact_that_is_malformed_is_skipped_and_counted(
        self, bus: NatsBus, person: Client, host: str
    ) -> None:
        await person.jetstream().publish(f"pcie.{host}.x.link.up", b"forged")
        Facts(bus, "aer", host).say(What.LINK_UP, PORT)
        await self.stored(bus, 1, f"pcie.{host}.>")
        assert bus.statistics().malformed == 1

    async def test_facts_can_be_watched_as_hints(self, bus: NatsBus, host: str) -> None:
        heard: list[Incoming] = []
        await bus.watch_facts(f"pcie.{host}.*.lease.>", heard.append)
        facts = Facts(bus, "fabric", host)
        said = facts.say(What.LEASE_CLOSED, PORT, lease="l1")
        facts.say(What.LINK_UP, PORT)
        await until(lambda: bool(heard))
        assert [incoming.message for incoming in heard] == [said]


class TestConnecting:
    async def test_a_bus_that_is_not_there_is_named_with_what_to_do(self) -> None:
        settings = Settings(nats_url="nats://user:secret@127.0.0.1:9", instance="console-1")
        with pytest.raises(BusUnreachable) as caught:
            await connect(settings, "console", timeout_s=0.5)
        said = str(caught.value)
        assert "127.0.0.1:9" in said
        assert "HOLDFAST_NATS_URL" in said
        assert "secret" not in said

    async def test_all_services_may_create_the_streams_at_the_same_time(self, own_nats_server: NatsServer) -> None:
        settings = [Settings(nats_url=own_nats_server.url, instance=f"s-{number}") for number in range(6)]
        buses = await asyncio.gather(*(connect(each, "test", timeout_s=PATIENCE_S) for each in settings))
        for bus in buses:
            assert await bus.get("owner.lab.aer") is None
            await bus.close()

    async def test_streams_with_a_configuration_of_their_own_are_left_alone(self, own_nats_server: NatsServer) -> None:
        client = await nats.connect(own_nats_server.url)
        await client.jetstream().add_stream(name="PCIE_FACTS", subjects=["pcie.*.*.link.>"], allow_direct=True)
        await client.close()
        async with bus_to(own_nats_server) as bus:
            Facts(bus, "aer", "lab").say(What.LINK_UP, PORT)
            await until(lambda: bus.statistics().facts_pending == 0)

    async def test_a_service_comes_up_after_its_server(self, own_nats_server: NatsServer) -> None:
        own_nats_server.stop()
        settings = Settings(nats_url=own_nats_server.url, instance="early")
        connecting = asyncio.create_task(connect(settings, "test"))
        await asyncio.sleep(0.3)
        assert not connecting.done()
        own_nats_server.start()
        bus = await asyncio.wait_for(connecting, PATIENCE_S)
        await bus.close()

    async def test_a_connection_stuck_with_unsent_bytes_is_given_up_for_a_new_one(
        self, nats_server: NatsServer, host: str
    ) -> None:
        """prior-art/nats.md C4 (nats.py #671): the client as it is waits for the old socket to drain, for ever.

        And C2: what had not left by then never leaves.
        """
        flood = Interrupt(port=PORT, registers={f"register{number}": number for number in range(2000)})
        heard: list[Incoming] = []
        async with bus_to(nats_server) as other, stalling_proxy(nats_server.port) as (port, stall):
            await other.subscribe(f"pcie.{host}.x.irq.*", Interrupt, heard.append)
            settings = Settings(nats_url=f"nats://127.0.0.1:{port}", instance="stuck")
            bus = await connect(settings, "test", timeout_s=PATIENCE_S)
            stall()
            with contextlib.suppress(BusUnreachable):
                while True:
                    await bus.publish(f"pcie.{host}.x.irq.flood", flood)
                    await asyncio.sleep(0)  # let it go down to the socket
            await until(lambda: bus.statistics().reconnects == 1)
            await eventually(lambda: bus.publish(f"pcie.{host}.x.irq.after", Interrupt(port=PORT)))
            await until(lambda: bool(heard))
            assert heard[0].subject.endswith("after")
            await bus.close()


@asynccontextmanager
async def stalling_proxy(target: int) -> AsyncIterator[tuple[int, Callable[[], None]]]:
    """Relay connections to `target`. The function stops reading from those that are open, and keeps them open."""
    tasks: set[asyncio.Task[None]] = set()
    stalled: set[asyncio.Task[None]] = set()
    writers: list[asyncio.StreamWriter] = []
    readers: list[asyncio.StreamReader] = []  # a reader that is let go takes its connection with it

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", target)
        writers.extend((writer, server_writer))
        readers.extend((reader, server_reader))
        tasks.update(
            (asyncio.create_task(relay(reader, server_writer)), asyncio.create_task(relay(server_reader, writer)))
        )

    def stall() -> None:
        for task in tasks - stalled:
            task.cancel()
        stalled.update(tasks)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], stall
    finally:
        stall()
        await asyncio.wait(stalled)
        for writer in writers:
            writer.transport.abort()
        server.close()
