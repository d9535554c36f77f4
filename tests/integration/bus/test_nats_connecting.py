"""Connections to a real nats-server, with the traps of prior-art/nats.md 1.2."""

from __future__ import annotations

import asyncio
import contextlib

import nats
import pytest

from shared.protocol.facts import Interrupt, What
from shared.runtime import (
    BusUnreachable,
    Facts,
    Incoming,
    Settings,
    connect,
)
from shared.runtime._nats_client import HoldfastClient
from tests.conftest import NatsServer
from tests.integration.bus.bench import PATIENCE_S, PORT, bus_to, eventually, stalling_proxy, until


async def refused(settings: Settings, why: str, *, creates: bool = True) -> None:
    """Connect with more and more patience until the bus has had the time to say why it cannot be used."""
    said = ""
    for patience_s in (1.0, 5.0, PATIENCE_S):
        with pytest.raises(BusUnreachable) as caught:
            await connect(settings, "test", timeout_s=patience_s, creates=creates)
        said = str(caught.value)
        if why in said:
            return
    pytest.fail(said)


async def test_a_bus_that_is_not_there_is_named_with_what_to_do() -> None:
    settings = Settings(nats_url="nats://user:secret@127.0.0.1:9", instance="console-1")
    with pytest.raises(BusUnreachable) as caught:
        await connect(settings, "console", timeout_s=0.5)
    said = str(caught.value)
    assert "127.0.0.1:9" in said
    assert "HOLDFAST_NATS_URL" in said
    assert "secret" not in said


async def test_a_cancellation_that_the_client_loses_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.11: `asyncio.wait_for` swallows one that meets the failure of what it waits for."""

    async def deaf(*_: object, **__: object) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await asyncio.Event().wait()

    monkeypatch.setattr(HoldfastClient, "connect", deaf)
    with pytest.raises(BusUnreachable):
        await asyncio.wait_for(connect(Settings(instance="console-1"), "console", timeout_s=0.1), PATIENCE_S)


async def test_all_services_may_create_the_streams_at_the_same_time(own_nats_server: NatsServer) -> None:
    settings = [Settings(nats_url=own_nats_server.url, instance=f"s-{number}") for number in range(6)]
    buses = await asyncio.gather(*(connect(each, "test", timeout_s=PATIENCE_S) for each in settings))
    for bus in buses:
        assert await bus.get("owner.lab.aer") is None
        await bus.close()


async def test_streams_with_a_configuration_of_their_own_are_left_alone(own_nats_server: NatsServer) -> None:
    client = await nats.connect(own_nats_server.url)
    await client.jetstream().add_stream(name="PCIE_FACTS", subjects=["pcie.*.*.link.>"], allow_direct=True)
    await client.close()
    async with bus_to(own_nats_server) as bus:
        Facts(bus, "aer", "lab").say(What.LINK_UP, PORT)
        await until(lambda: bus.statistics().facts_pending == 0)


async def test_replicas_that_a_single_server_cannot_keep_are_refused_with_what_to_set(
    own_nats_server: NatsServer,
) -> None:
    settings = Settings(nats_url=own_nats_server.url, instance="s-1", replicas=3)
    await refused(settings, "HOLDFAST_REPLICAS=1")


async def test_a_command_makes_no_streams_and_says_that_they_are_missing(own_nats_server: NatsServer) -> None:
    settings = Settings(nats_url=own_nats_server.url, instance="console-1")
    await refused(settings, "no service of Holdfast has met this bus yet", creates=False)
    client = await nats.connect(own_nats_server.url)
    assert not await client.jetstream().streams_info()
    await client.close()


async def test_a_service_comes_up_after_its_server(own_nats_server: NatsServer) -> None:
    own_nats_server.stop()
    settings = Settings(nats_url=own_nats_server.url, instance="early")
    connecting = asyncio.create_task(connect(settings, "test"))
    await asyncio.sleep(0.3)
    assert not connecting.done()
    own_nats_server.start()
    bus = await asyncio.wait_for(connecting, PATIENCE_S)
    await bus.close()


async def test_a_connection_stuck_with_unsent_bytes_is_given_up_for_a_new_one(
    nats_server: NatsServer, host: str
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
        await until(lambda: bus.statistics().reconnects >= 1)
        await eventually(lambda: bus.publish(f"pcie.{host}.x.irq.after", Interrupt(port=PORT)))
        await until(lambda: bool(heard))
        assert heard[0].subject.endswith("after")
        await bus.close()
