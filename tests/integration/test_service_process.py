"""The skeleton of a service as a process of its own: how it starts, stands by, loses its host, and ends."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator

import msgspec
import nats
import pytest

from shared.protocol import decode
from shared.protocol.records import Owner
from tests.conftest import NatsServer
from tests.integration.one_service import PROGRAM, Start, run_to_end, starter

ABSENT = "nats://127.0.0.1:9"


@pytest.fixture
async def start(nats_server: NatsServer, request: pytest.FixtureRequest) -> AsyncIterator[Start]:
    """Return a function that starts services of this test's own host."""
    async with starter(nats_server.url, request.node.name) as start_one:
        yield start_one


async def owner_of(server: NatsServer, host: str) -> Owner:
    client = await nats.connect(server.url)
    entry = await client.jetstream().get_last_msg("KV_PCIE", f"$KV.PCIE.owner.{host}.aer")
    await client.close()
    assert entry.data is not None
    record: Owner = decode(entry.data, Owner)
    return record


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_service_told_to_stop_finishes_releases_its_host_and_exits_with_0(
    start: Start, nats_server: NatsServer, number: signal.Signals
) -> None:
    service = await start()
    ready = await service.said("ready")
    assert (ready["service"], ready["level"]) == ("aer", "info")
    assert not (await owner_of(nats_server, ready["host"])).released
    service.process.send_signal(number)
    await service.said("link.down")
    assert await service.ended() == 0
    assert (await owner_of(nats_server, ready["host"])).released


async def test_a_standby_takes_over_at_once_when_the_owner_stops(start: Start) -> None:
    first = await start("aer-1")
    await first.said("ready")
    second = await start("aer-2")
    assert (await second.said("standby"))["owner"].startswith("aer-1:")
    first.process.terminate()
    assert await first.ended() == 0
    await second.said("ready")


async def test_a_standby_takes_over_from_an_owner_that_was_killed(start: Start) -> None:
    first = await start("aer-1")
    await first.said("ready")
    second = await start("aer-2")
    await second.said("standby")
    first.process.kill()
    await second.said("ready")


async def test_an_owner_that_slept_too_long_wakes_as_a_standby(start: Start) -> None:
    first = await start("aer-1")
    await first.said("ready")
    second = await start("aer-2")
    await second.said("standby")
    first.process.send_signal(signal.SIGSTOP)
    await second.said("ready")
    first.process.send_signal(signal.SIGCONT)
    await first.said("ownership lost")
    assert (await first.said("standby"))["owner"].startswith("aer-2:")
    first.process.terminate()
    assert await first.ended() == 0


async def test_a_service_without_ownership_is_ready_beside_its_twin(start: Start) -> None:
    first, second = await start("aer-1", OWNED="0"), await start("aer-2", OWNED="0")
    await first.said("ready")
    await second.said("ready")


async def test_a_runner_that_crashes_is_started_again(start: Start) -> None:
    service = await start(WRONG="crash once")
    crash = await service.said("service crashed, starting over")
    assert crash["exception"][0]["exc_value"] == "a bug"
    await service.said("ready")


async def test_a_process_that_cannot_go_on_says_why_and_exits_with_a_code(start: Start) -> None:
    service = await start(WRONG="fatal")
    assert (await service.said("cannot go on"))["error"] == "the ledger is torn"
    assert await service.ended() == 9


async def test_a_runner_that_does_not_stop_is_cancelled(start: Start) -> None:
    service = await start(WRONG="deaf")
    await service.said("ready")
    service.process.terminate()
    await service.said("cancelling")
    assert await service.ended() == 0


async def test_a_second_signal_ends_the_process_at_once(start: Start) -> None:
    service = await start(WRONG="deaf")
    await service.said("ready")
    service.process.terminate()
    await service.said("stopping")
    service.process.terminate()
    assert await service.ended() == 128 + signal.SIGTERM


async def test_a_service_without_a_bus_says_so_and_can_be_stopped(start: Start) -> None:
    service = await start(HOLDFAST_NATS_URL=ABSENT)
    assert (await service.said("bus unreachable, trying on"))["url"] == ABSENT
    service.process.terminate()
    assert await service.ended() == 0


async def test_a_service_that_the_bus_locks_out_exits_for_its_supervisor(
    start: Start, own_nats_server: NatsServer
) -> None:
    """prior-art/nats.md C10: there is a close after which the client does not reconnect."""
    service = await start(HOLDFAST_NATS_URL=own_nats_server.url)
    await service.said("ready")
    own_nats_server.reload('authorization { user: "somebody", password: "else" }')
    await service.said("the connection to the bus was closed for good")
    assert await service.ended() == 8


async def test_a_service_keeps_its_host_through_a_short_outage_of_the_bus(
    start: Start, own_nats_server: NatsServer
) -> None:
    service = await start(HOLDFAST_NATS_URL=own_nats_server.url, HOLDFAST_OWNER_S="20")
    await service.said("ready")
    own_nats_server.kill()
    own_nats_server.start()
    await service.said("bus reconnected")
    service.process.terminate()
    assert await service.ended() == 0
    assert (await owner_of(own_nats_server, service.lines[0]["hosts"][0])).released
    assert "ownership lost" not in {line["event"] for line in service.lines}


async def test_bad_settings_are_explained_without_a_traceback() -> None:
    code, _, error = await run_to_end("-c", PROGRAM, environ={"HOLDFAST_OWNER_S": "soon"})
    assert code == 2
    assert "HOLDFAST_OWNER_S='soon' is not a number of seconds" in error
    assert "Traceback" not in error


async def test_the_settings_can_be_printed() -> None:
    code, out, _ = await run_to_end("-c", PROGRAM, "--print-config", environ={"HOLDFAST_HOSTS": "a,b"})
    assert code == 0
    shown = msgspec.json.decode(out)
    assert shown["hosts"] == ["a", "b"]
    assert shown["allowed_s"] == 5.0


async def test_a_service_refuses_to_start_without_its_assertions() -> None:
    code, _, error = await run_to_end("-O", "-c", PROGRAM, environ={})
    assert code == 2
    assert "assertions" in error
