"""Records and ownership over a real nats-server, with the traps of prior-art/nats.md 1.1."""

from __future__ import annotations

import asyncio

import pytest
from nats.aio.client import Client

from shared.protocol import decode
from shared.protocol.records import Owner
from shared.runtime import (
    BusUnreachable,
    NatsBus,
    Ownership,
    Unanswered,
    WrongRevision,
)
from tests.conftest import NatsServer
from tests.integration.bus.bench import PATIENCE_S, bus_to, owner


async def test_a_write_needs_the_revision_that_it_read(bus: NatsBus, host: str) -> None:
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


async def test_p7_a_deposed_owner_is_refused_by_the_bucket(bus: NatsBus, host: str) -> None:
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


async def test_a_deleted_record_is_absent_and_can_be_made_anew(bus: NatsBus, person: Client, host: str) -> None:
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


async def test_records_are_listed_by_whole_tokens_in_order(bus: NatsBus, host: str) -> None:
    for key in (f"device.{host}.b", f"device.{host}.a", f"device.{host}2.c", f"owner.{host}.aer"):
        await bus.put(key, owner(key), revision=0)
    assert [entry.key for entry in await bus.keys(f"device.{host}.")] == [f"device.{host}.a", f"device.{host}.b"]


async def test_a_write_whose_answer_was_lost_is_read_back(
    bus: NatsBus, host: str, monkeypatch: pytest.MonkeyPatch
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
    bus: NatsBus, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    revision = await bus.put(f"device.{host}.x", owner("a"), revision=0)

    async def not_sent(subject: str, *_: object) -> int:
        raise Unanswered(subject)

    monkeypatch.setattr(bus._records, "_publish", not_sent)
    with pytest.raises(Unanswered):
        await bus.put(f"device.{host}.x", owner("a"), revision=revision)


async def test_writes_through_a_frozen_server_are_unknown_and_ownership_lapses(own_nats_server: NatsServer) -> None:
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


async def test_a_second_instance_takes_over_from_one_that_fell_silent(nats_server: NatsServer, host: str) -> None:
    key = f"owner.{host}.aer"
    async with bus_to(nats_server, "a") as first_bus, bus_to(nats_server, "b") as second_bus:
        first, second = Ownership(first_bus, key, "a", 0.5), Ownership(second_bus, key, "b", 0.5)
        await first.acquire()  # and never beats
        async with asyncio.timeout(PATIENCE_S):
            await second.acquire()
        with pytest.raises(WrongRevision):
            await first.put_owned(f"device.{host}.x", owner("zombie"))
        assert await second_bus.get(f"device.{host}.x") is None
