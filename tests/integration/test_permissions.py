"""Who may do what on the bus: every user tried against a real nats-server, subject by subject, and the ways around it.

What is expected is read from the table of messages; what the server does follows from the file that `keys init` made.
"""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from shared.pcie import Address
from shared.protocol import permissions
from shared.protocol.fabric import OpenReply, Read, ReadReply
from shared.protocol.facts import Fact, What
from shared.protocol.records import Owner
from shared.protocol.requests import InjectReply
from shared.protocol.routes import PEOPLE, ROUTES, Route, User
from shared.runtime import BusRefused, NatsBus, NotPermitted, Settings, connect, new_seed
from tests.integration.secured import Guest, SecuredServer, arrived, guest, heard, make_keys

pytestmark = pytest.mark.asyncio(loop_scope="module")

PORT = "0000-3b-00-0"
JOURNAL = f"$KV.PCIE.recovery.lab.{PORT}"
FACT = f"pcie.lab.{PORT}.recovery.started"
DEVICE = f"$KV.PCIE.device.lab.{PORT}"
STREAMS = ("PCIE_FACTS", "KV_PCIE")
OF_HOST = frozenset({User.MACHINE, User.FABRIC})
CREATORS = frozenset(User) - PEOPLE - {User.MACHINE}
OWNERS = (User.HOTPLUG, User.AER, User.DPC, User.COORDINATOR)
# Which services wait for answers of which: written by hand.
ANSWERS = {
    User.MACHINE: (User.COORDINATOR, User.HOTPLUG),
    User.FABRIC: (User.COORDINATOR, User.HOTPLUG, User.AER, User.DPC),
    User.COORDINATOR: (User.AER, User.DPC, User.HOTPLUG),
}
NAMES = [f"{user}-{host}" if user in OF_HOST else user for user in User for host in ("lab", "other")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SecuredServer]:
    """A server for two hosts; the streams are there, made by one who may."""
    directory = tmp_path_factory.mktemp("secured")
    async with SecuredServer(directory / "bus", make_keys(directory / "keys", "lab", "other")) as running:
        bus = await joined(running, "coordinator")
        await bus.close()
        yield running


async def joined(server: SecuredServer, user: str, **environment: str) -> NatsBus:
    service = user.partition("-")[0]
    creates = service not in PEOPLE
    settings = Settings.from_env(service, {**server.settings(user), **environment})
    return await connect(settings, service, timeout_s=10.0, creates=creates)


def who(name: str) -> tuple[User, tuple[str, ...]]:
    """Return the user and its hosts."""
    user, _, host = name.partition("-")
    return User(user), (host,) if host else ("lab", "other")


def example(route: Route, host: str, service: str) -> str:
    known = {"host": host, "service": service, "instance": "one"}
    return re.sub(r"\{(\w+)\}", lambda found: known.get(found[1], PORT), route.subject)


def examples(name: str) -> dict[str, tuple[bool, bool]]:
    """Return every subject of the table for both hosts: may it be published, may it be subscribed."""
    user, hosts = who(name)
    service = user if user in OF_HOST | set(OWNERS) else "aer"
    return {
        example(route, host, service): (
            user in route.senders and (host in hosts or "{host}" not in route.subject),
            user in route.takers and (host in hosts or "{host}" not in route.subject),
        )
        for route in ROUTES
        for host in ("lab", "other")
    }


def of_jetstream(name: str) -> dict[str, bool]:
    """Return the subjects of records, streams and discovery: may they be published."""
    user, _ = who(name)
    people = user in PEOPLE
    keys = {f"owner.{host}.{owner}": owner is user for host in ("lab", "other") for owner in User if owner in OWNERS}
    keys |= {f"recovery.{host}.{PORT}": user is User.COORDINATOR for host in ("lab", "other")}
    keys |= {f"device.{host}.{PORT}": user is User.HOTPLUG for host in ("lab", "other")}
    table = {f"$KV.PCIE.{key}": may for key, may in keys.items()}
    for stream in STREAMS:
        table[f"$JS.API.STREAM.INFO.{stream}"] = True
        table[f"$JS.API.STREAM.CREATE.{stream}"] = user in CREATORS
        for verb in ("STREAM.UPDATE", "STREAM.DELETE", "STREAM.PURGE", "STREAM.MSG.DELETE", "CONSUMER.CREATE"):
            table[f"$JS.API.{verb}.{stream}"] = False
    table["$JS.API.STREAM.CREATE.MINE"] = False
    table["$JS.API.STREAM.MSG.GET.KV_PCIE"] = True
    table["$JS.API.DIRECT.GET.PCIE_FACTS"] = people
    table["$SRV.PING"] = people
    table["$SYS.REQ.SERVER.PING"] = False
    return table


@pytest.mark.parametrize("name", dict.fromkeys(NAMES))
async def test_each_user_may_publish_what_the_table_says_and_nothing_else(server: SecuredServer, name: str) -> None:
    wanted = {subject: may for subject, (may, _) in examples(name).items()} | of_jetstream(name)
    wanted |= {f"{server.inbox(other)}.x": who(other)[0] in ANSWERS.get(who(name)[0], ()) for other in set(NAMES)}
    async with guest(server, name) as user:
        assert await user.may_publish(wanted) == {subject for subject, may in wanted.items() if may}


@pytest.mark.parametrize("name", dict.fromkeys(NAMES))
async def test_each_user_may_hear_what_the_table_says_and_nothing_else(server: SecuredServer, name: str) -> None:
    wanted = {subject: may for subject, (_, may) in examples(name).items()}
    async with guest(server, name) as user:
        wanted |= {f"{user.inbox}.x": True, f"{permissions.INBOXES}.UANOTHER.x": False}
        wanted |= dict.fromkeys((">", "*.>", "pcie.>", "_INBOX.>", "_R_.>", "$JS.>", "$KV.>", "$SYS.>"), False)
        wanted |= {"$SRV.PING": who(name)[0] not in PEOPLE}
        assert await user.may_subscribe(wanted) == {subject for subject, may in wanted.items() if may}


# --- Strangers ---


@pytest.mark.parametrize("credential", ["none", "another"])
async def test_a_stranger_cannot_connect(server: SecuredServer, tmp_path: Path, credential: str) -> None:
    environment = server.settings("viewer")
    if credential == "none":
        del environment["HOLDFAST_NATS_CREDENTIAL"]
    else:
        (tmp_path / "stranger.nk").write_bytes(new_seed())
        environment["HOLDFAST_NATS_CREDENTIAL"] = str(tmp_path / "stranger.nk")
    with pytest.raises(BusRefused) as refused:
        await connect(Settings.from_env("aer", environment), "aer", timeout_s=10.0)
    assert refused.value.exit_code == 77
    named = "stranger.nk" if credential == "another" else "HOLDFAST_NATS_CREDENTIAL"
    assert named in str(refused.value)


# --- The ways around it ---


async def stored(asker: Guest, subject: str) -> bytes:
    """Read what the bucket keeps at a subject, as the server has it."""
    asked = json.dumps({"last_by_subj": subject}).encode()
    answer = json.loads((await asker.ask("$JS.API.STREAM.MSG.GET.KV_PCIE", asked)).data)
    return base64.b64decode(answer["message"]["data"])


@pytest.mark.parametrize("name", ["viewer", "operator"])
async def test_a_person_cannot_have_a_service_answer_over_a_record(server: SecuredServer, name: str) -> None:
    async with guest(server, "coordinator") as coordinator, guest(server, "fabric-lab") as fabric:
        await coordinator.ask(JOURNAL, b"the journal")
        questions = await heard(fabric, "pcie.lab.fabric.read")
        async with guest(server, name) as person:
            await person.send("pcie.lab.fabric.read", b"{}", reply=JOURNAL)
        question = await arrived(questions)
        await fabric.send(question.reply, b"an answer")
        assert await stored(coordinator, JOURNAL) == b"the journal"


@pytest.mark.parametrize("asked", ["$JS.API.STREAM.INFO.KV_PCIE", "$JS.API.DIRECT.GET.PCIE_FACTS"])
@pytest.mark.parametrize("over", [JOURNAL, "pcie.lab.fabric.coordinator.open"])
async def test_a_person_cannot_have_jetstream_answer_over_a_record_or_to_a_service(
    server: SecuredServer, asked: str, over: str
) -> None:
    async with (
        guest(server, "coordinator") as coordinator,
        guest(server, "fabric-lab") as fabric,
        guest(server, "viewer") as viewer,
    ):
        await coordinator.ask(JOURNAL, b"the journal")
        await coordinator.ask(FACT, b"a fact")
        commands = await heard(fabric, "pcie.lab.fabric.coordinator.open")
        question = json.dumps({"last_by_subj": FACT}).encode() if "DIRECT" in asked else b""
        assert (await viewer.ask(asked, question)).data
        await viewer.send(asked, question, reply=over)
        await coordinator.send("pcie.lab.fabric.coordinator.open", b"the end")
        assert (await arrived(commands)).data == b"the end"
        assert await stored(coordinator, JOURNAL) == b"the journal"


async def test_a_stolen_service_key_cannot_have_another_service_answer_over_a_record(server: SecuredServer) -> None:
    async with (
        guest(server, "coordinator") as coordinator,
        guest(server, "fabric-lab") as fabric,
        guest(server, "hotplug") as thief,
    ):
        await coordinator.ask(JOURNAL, b"the journal")
        commands = await heard(fabric, "pcie.lab.fabric.hotplug.open")
        await thief.send("pcie.lab.fabric.hotplug.open", b"{}", reply=JOURNAL)
        await fabric.send((await arrived(commands)).reply, b"an answer")
        assert fabric.violations
        assert await stored(coordinator, JOURNAL) == b"the journal"


async def test_a_stolen_service_key_cannot_erase_the_records_of_others_by_a_header(server: SecuredServer) -> None:
    async with guest(server, "coordinator") as coordinator, guest(server, "hotplug") as thief:
        await coordinator.ask(JOURNAL, b"the journal")
        answer = json.loads((await thief.ask(DEVICE, b"mine", headers={"Nats-Rollup": "all"})).data)
        assert "error" in answer
        assert await stored(coordinator, JOURNAL) == b"the journal"


async def test_nobody_hears_the_answers_for_another(server: SecuredServer) -> None:
    async with guest(server, "aer") as one, guest(server, "dpc") as other:
        assert not await other.may_subscribe([f"{one.inbox}.>"])


async def test_a_stolen_service_key_cannot_answer_for_another_service(server: SecuredServer) -> None:
    async with (
        guest(server, "coordinator") as coordinator,
        guest(server, "fabric-lab") as fabric,
        guest(server, "hotplug") as thief,
    ):
        questions = await heard(fabric, "pcie.lab.fabric.coordinator.open")
        asking = asyncio.create_task(coordinator.ask("pcie.lab.fabric.coordinator.open", b"{}"))
        question = await arrived(questions)
        await thief.send(question.reply, b"forged")
        assert thief.violations
        await fabric.send(question.reply, b"an answer")
        assert (await asking).data == b"an answer"


async def test_who_has_seen_where_one_answer_was_waited_for_does_not_know_the_next(server: SecuredServer) -> None:
    """A thief may have a service, or JetStream, answer him at any address that he knows."""
    bus = await joined(server, "coordinator")
    try:
        async with guest(server, "fabric-lab") as fabric:
            questions = await heard(fabric, "pcie.lab.fabric.read")
            tokens = []
            for _ in range(2):
                asking = asyncio.create_task(
                    bus.request("pcie.lab.fabric.read", Read(operations=()), ReadReply, timeout_s=3600.0)
                )
                tokens.append((await arrived(questions)).reply.rpartition(".")[2])
                asking.cancel()
        assert [len(token) >= 22 for token in tokens] == [True, True]
        assert tokens[0][:6] != tokens[1][:6]  # nats-py's own begin with the same 12
    finally:
        await bus.close()


# --- What our own side makes of it ---


async def test_what_is_not_permitted_fails_at_once_and_says_so(server: SecuredServer) -> None:
    bus = await joined(server, "viewer")
    try:
        with pytest.raises(NotPermitted, match=r"pcie\.lab\.inject"):
            await bus.request("pcie.lab.inject", Read(operations=()), InjectReply, timeout_s=3600.0)
        with pytest.raises(NotPermitted, match=r"irq\.dpc"):
            await bus.subscribe("pcie.lab.*.irq.dpc", Read, lambda _: None)
        with pytest.raises(NotPermitted, match=r"owner\.lab\.dpc"):
            await bus.put("owner.lab.dpc", Owner(owner="me", beat=1), revision=0)
    finally:
        await bus.close()


async def test_one_service_cannot_stand_in_for_another(server: SecuredServer) -> None:
    bus = await joined(server, "aer")
    try:
        with pytest.raises(NotPermitted, match=r"hotplug\.open"):
            await bus.request("pcie.lab.fabric.hotplug.open", Read(operations=()), OpenReply, timeout_s=3600.0)
        with pytest.raises(NotPermitted, match="recover"):
            await bus.serve("coordinator", {"pcie.lab.recover": (Read, lambda _: None)})
    finally:
        await bus.close()


async def test_p10_a_fact_that_may_not_be_stated_is_not_lost_but_kept_waiting(server: SecuredServer) -> None:
    bus = await joined(server, "aer")
    port = Address.parse("0000:3b:00.0")
    now = dt.datetime.now(dt.UTC)
    try:
        bus.record(Fact(what=What.RECOVERY_CLOSED, host="lab", port=port, seq=1, at=now, service="aer"))
        async with guest(server, "viewer") as viewer:
            facts = await heard(viewer, f"pcie.lab.*.{What.RECOVERY_CLOSED}")
            assert facts.empty()
        assert bus.statistics().facts_pending == 1
    finally:
        await bus.close()


async def test_people_wait_for_streams_that_they_may_not_make(tmp_path: Path) -> None:
    async with SecuredServer(tmp_path / "bus", make_keys(tmp_path / "keys")) as empty:
        waiting = asyncio.create_task(joined(empty, "viewer"))
        service = await joined(empty, "fabric-lab")
        person = await waiting
        assert await person.get("owner.lab.dpc") is None
        await person.close()
        await service.close()


async def test_the_machine_needs_no_streams(tmp_path: Path) -> None:
    async with SecuredServer(tmp_path / "bus", make_keys(tmp_path / "keys")) as empty:
        bus = await joined(empty, "machine-lab")
        assert bus.statistics().connected
        await bus.close()
