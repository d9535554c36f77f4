"""Requests, services and hints over a real nats-server."""

from __future__ import annotations

import asyncio
import json

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from shared.protocol import Message, Reason, Refused, decode, fabric
from shared.protocol.facts import Interrupt
from shared.runtime import (
    BusUnreachable,
    Incoming,
    NatsBus,
    NobodyListens,
    Request,
    Unanswered,
)
from tests.conftest import NatsServer
from tests.integration.bus.bench import PATIENCE_S, PORT, bus_to, eventually, until


class Answering:
    """Serves one subject: refuses everything, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Message] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def __call__(self, request: Request) -> None:
        self.asked.append(request.message)
        reply = Refused(reason=Reason.POLICY, message="no")
        self._tasks.add(asyncio.create_task(request.answer(reply)))


async def test_a_request_is_answered_from_any_task(bus: NatsBus, host: str) -> None:
    serving = Answering()
    await bus.serve(f"fabric-{host}", {f"pcie.{host}.fabric.dump": (fabric.Dump, serving)})
    asked = fabric.Dump(function=PORT)
    reply = await bus.request(f"pcie.{host}.fabric.dump", asked, fabric.DumpReply, timeout_s=PATIENCE_S)
    assert reply == Refused(reason=Reason.POLICY, message="no")
    assert serving.asked == [asked]


async def test_who_answers_knows_that_an_asker_has_given_up_and_a_person_waits_for_ever(
    bus: NatsBus, person: Client, host: str
) -> None:
    asked: list[Request] = []
    subject = f"pcie.{host}.fabric.dump"
    await bus.serve(f"fabric-{host}", {subject: (fabric.Dump, asked.append)})
    question = fabric.Dump(function=PORT)
    asking = asyncio.create_task(bus.request(subject, question, fabric.DumpReply, timeout_s=PATIENCE_S))
    await until(lambda: len(asked) == 1)
    with pytest.raises(Unanswered):
        await bus.request(subject, question, fabric.DumpReply, timeout_s=0.05)
    await person.publish(subject, b'{"function": "0000:3b:00.0"}', reply="nobody")
    await person.publish(
        subject, b'{"function": "0000:3b:00.0"}', reply="nobody", headers={"Holdfast-Patience": "a while"}
    )
    await until(lambda: len(asked) == 4 and asked[1].abandoned)
    assert [request.abandoned for request in asked] == [False, True, False, False]
    await asked[0].answer(Refused(reason=Reason.POLICY, message="no"))
    await asking


async def test_a_person_who_asks_in_json_is_answered_in_json(bus: NatsBus, person: Client, host: str) -> None:
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
    bus: NatsBus, person: Client, host: str, sent: bytes, reason: Reason
) -> None:
    serving = Answering()
    await bus.serve(f"fabric-{host}", {f"pcie.{host}.fabric.dump": (fabric.Dump, serving)})
    reply = await person.request(f"pcie.{host}.fabric.dump", sent, timeout=PATIENCE_S)
    refused: Refused = decode(reply.data, Refused)
    assert refused.reason is reason
    assert refused.message
    assert not serving.asked
    assert bus.statistics().malformed == 1


async def test_nobody_listens_means_not_executed(bus: NatsBus, host: str) -> None:
    with pytest.raises(NobodyListens):
        await bus.request(f"pcie.{host}.fabric.read", fabric.Read(operations=()), Refused, timeout_s=PATIENCE_S)


async def test_no_answer_in_time_means_unknown(bus: NatsBus, host: str) -> None:
    heard: list[Request] = []
    await bus.serve("mute", {f"pcie.{host}.fabric.read": (fabric.Read, heard.append)})
    with pytest.raises(Unanswered) as caught:
        await bus.request(f"pcie.{host}.fabric.read", fabric.Read(operations=()), Refused, timeout_s=0.2)
    assert not isinstance(caught.value, NobodyListens)
    await until(lambda: bool(heard))


async def test_a_handler_that_crashes_leaves_the_outcome_unknown_and_the_service_alive(bus: NatsBus, host: str) -> None:
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


async def test_services_are_seen_by_nats_micro(bus: NatsBus, person: Client, host: str) -> None:
    await bus.serve(f"slots {host}", {f"pcie.{host}.*.slot.status": (fabric.Read, Answering())})
    info = json.loads((await person.request(f"$SRV.INFO.slots-{host}", timeout=PATIENCE_S)).data)
    assert [endpoint["name"] for endpoint in info["endpoints"]] == ["slot-status"]
    assert info["metadata"]["instance"] == "test-1"


async def test_a_closed_service_answers_no_more(bus: NatsBus, host: str) -> None:
    subject = f"pcie.{host}.fabric.read"
    service = await bus.serve("short", {subject: (fabric.Read, Answering())})
    await service.close()
    with pytest.raises(NobodyListens):
        await bus.request(subject, fabric.Read(operations=()), Refused, timeout_s=PATIENCE_S)


async def test_a_request_in_hand_is_answered_while_the_connection_drains(
    nats_server: NatsServer, bus: NatsBus, host: str
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


async def test_a_malformed_hint_is_counted_and_not_delivered(bus: NatsBus, person: Client, host: str) -> None:
    heard: list[Incoming] = []
    await bus.subscribe(f"pcie.{host}.*.irq.aer", Interrupt, heard.append)
    await person.publish(f"pcie.{host}.x.irq.aer", b"nonsense")
    await person.flush()
    await bus.publish(f"pcie.{host}.x.irq.aer", Interrupt(port=PORT))
    await until(lambda: bool(heard))
    assert heard == [Incoming(f"pcie.{host}.x.irq.aer", Interrupt(port=PORT))]
    assert bus.statistics().malformed == 1


async def test_subscriptions_survive_a_restart_of_the_server(own_nats_server: NatsServer) -> None:
    async with bus_to(own_nats_server) as bus:
        heard: list[Incoming] = []
        await bus.subscribe("pcie.lab.*.irq.aer", Interrupt, heard.append)
        own_nats_server.kill()
        own_nats_server.start()
        await until(lambda: bus.statistics().reconnects >= 1)
        await eventually(lambda: bus.publish("pcie.lab.x.irq.aer", Interrupt(port=PORT)))
        await until(lambda: bool(heard))


async def test_nothing_is_buffered_while_the_bus_is_down(own_nats_server: NatsServer) -> None:
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


async def test_everybody_who_listens_is_heard_and_who_talks_nonsense_is_left_out(
    bus: NatsBus, person: Client, host: str
) -> None:
    subject = f"pcie.{host}.fabric.dump"

    async def talk(asked: Msg) -> None:
        await asked.respond(b"nonsense")

    for _ in range(3):
        await bus.serve(f"fabric-{host}", {subject: (fabric.Dump, Answering())})
        await person.subscribe(subject, cb=talk)
    await person.flush()
    asked = fabric.Dump(function=PORT)
    replies = await bus.request_all(subject, asked, fabric.DumpReply, timeout_s=PATIENCE_S, quiet_s=3.0)
    # The three that are served share the work: one of them answers.
    assert replies == (Refused(reason=Reason.POLICY, message="no"),)
    assert bus.statistics().malformed == 3


async def test_where_nobody_listens_nobody_is_waited_for(bus: NatsBus, host: str) -> None:
    asked = fabric.Dump(function=PORT)
    subject = f"pcie.{host}.fabric.dump"
    async with asyncio.timeout(PATIENCE_S / 2):
        replies = await bus.request_all(subject, asked, fabric.DumpReply, timeout_s=PATIENCE_S, quiet_s=0.5)
    assert replies == ()
