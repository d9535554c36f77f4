"""The stream of facts over a real nats-server: in order, once, through crashes and loss of memory."""

from __future__ import annotations

import asyncio

from nats.aio.client import Client

from shared.protocol.facts import Fact, What
from shared.runtime import (
    Facts,
    Incoming,
    NatsBus,
)
from tests.conftest import NatsServer
from tests.integration.bus.bench import PATIENCE_S, PORT, bus_to, eventually, hear, owner, until


async def stored(bus: NatsBus, count: int, *filters: str) -> list[Fact]:
    await until(lambda: bus.statistics().facts_pending == 0)
    found = [fact async for fact in bus.facts(filters)]
    assert len(found) == count
    return found


async def test_facts_are_stored_and_filtered_by_subject(bus: NatsBus, host: str) -> None:
    facts = Facts(bus, "hotplug", host)
    facts.say(What.LINK_DOWN, PORT, lease="l1")
    facts.say(What.DEVICE_REMOVED, PORT)
    facts.say(What.LINK_UP, PORT)
    assert len(await stored(bus, 3, f"pcie.{host}.>")) == 3
    (removed,) = await stored(bus, 1, f"pcie.{host}.*.device.>")
    assert removed.what is What.DEVICE_REMOVED
    both = await stored(bus, 2, f"pcie.{host}.*.link.up", f"pcie.{host}.{PORT.token}.link.down")
    assert [fact.what for fact in both] == [What.LINK_DOWN, What.LINK_UP]


async def test_p10_facts_are_kept_in_order_and_once_across_a_crash_of_the_server(own_nats_server: NatsServer) -> None:
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
        found = await stored(bus, count)
        assert [fact.data["number"] for fact in found] == list(range(count))


async def test_facts_stated_before_a_restart_of_their_publisher_do_not_hide_those_after(
    nats_server: NatsServer, host: str
) -> None:
    """In a container every life of a service has the same process id, so the same name and numbers."""
    for _ in range(2):
        async with bus_to(nats_server, "aer-1") as bus:
            Facts(bus, "aer", host).say(What.ERROR_FATAL, PORT)
    async with bus_to(nats_server) as bus:
        assert len(await stored(bus, 2, f"pcie.{host}.>")) == 2


async def test_closing_the_bus_stores_what_was_stated_last(nats_server: NatsServer, host: str) -> None:
    async with bus_to(nats_server) as bus:
        facts = Facts(bus, "aer", host)
        for _ in range(50):
            facts.say(What.ERROR_FATAL, PORT)
    async with bus_to(nats_server) as bus:
        await stored(bus, 50, f"pcie.{host}.>")


async def test_a_fact_too_large_to_store_does_not_hold_up_those_after_it(bus: NatsBus, host: str) -> None:
    facts = Facts(bus, "aer", host)
    facts.say(What.ERROR_FATAL, PORT, blob="x" * 2_000_000)
    facts.say(What.LINK_UP, PORT)
    large, after = await stored(bus, 2, f"pcie.{host}.>")
    assert large.data["left_out_bytes"] > 2_000_000
    assert after.what is What.LINK_UP


async def test_a_follower_hears_what_is_stored_and_what_comes_through_a_crash_of_the_server(
    own_nats_server: NatsServer,
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


async def test_a_follower_can_begin_with_what_comes(bus: NatsBus, host: str) -> None:
    facts = Facts(bus, "aer", host)
    facts.say(What.ERROR_FATAL, PORT, number=1)
    await stored(bus, 1, f"pcie.{host}.>")
    following = bus.facts((f"pcie.{host}.>",), since_sequence=0, follow=True)
    first = asyncio.ensure_future(anext(following))
    async with asyncio.timeout(PATIENCE_S):
        while not first.done():  # nothing tells from outside when it has begun to follow
            facts.say(What.ERROR_FATAL, PORT, number=2)
            await asyncio.wait({first}, timeout=0.2)
    assert first.result().data["number"] == 2
    await following.aclose()  # type: ignore[attr-defined]  # an async generator behind the interface


async def test_a_server_that_forgot_everything_is_furnished_again(own_nats_server: NatsServer) -> None:
    """prior-art/nats.md 1.4: NATS may forget."""
    async with bus_to(own_nats_server) as bus:
        facts = Facts(bus, "aer", "lab")
        for number in range(3):
            facts.say(What.ERROR_FATAL, PORT, number=number)
        await stored(bus, 3)
        heard: list[int] = []

        following = asyncio.create_task(hear(bus.facts(follow=True), heard))
        await until(lambda: heard == [0, 1, 2])
        own_nats_server.kill()
        own_nats_server.forget()
        own_nats_server.start()
        facts.say(What.ERROR_FATAL, PORT, number=9)
        (fact,) = await stored_again(bus)
        assert fact.data["number"] == 9
        await until(lambda: heard == [0, 1, 2, 9])
        await eventually(lambda: bus.put("device.lab.x", owner("a"), revision=0))
        following.cancel()


async def stored_again(bus: NatsBus) -> list[Fact]:
    await until(lambda: bus.statistics().facts_pending == 0)
    return [fact async for fact in bus.facts()]


async def test_a_forged_fact_that_is_malformed_is_skipped_and_counted(bus: NatsBus, person: Client, host: str) -> None:
    await person.jetstream().publish(f"pcie.{host}.x.link.up", b"forged")
    Facts(bus, "aer", host).say(What.LINK_UP, PORT)
    await stored(bus, 1, f"pcie.{host}.>")
    assert bus.statistics().malformed == 1


async def test_facts_can_be_watched_as_hints(bus: NatsBus, host: str) -> None:
    heard: list[Incoming] = []
    await bus.watch_facts(f"pcie.{host}.*.lease.>", heard.append)
    facts = Facts(bus, "fabric", host)
    said = facts.say(What.LEASE_CLOSED, PORT, lease="l1")
    facts.say(What.LINK_UP, PORT)
    await until(lambda: bool(heard))
    assert [incoming.message for incoming in heard] == [said]
