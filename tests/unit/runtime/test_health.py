"""When a service may be relied on, and how it says so over HTTP."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import structlog

from shared.runtime import Fatal
from shared.runtime._exit_codes import EXIT_PORT
from shared.runtime._health import Health, HostHealth, Readiness, Role, Seat, reasons_against
from shared.runtime._health_server import HealthServer
from tests.http_client import get
from tests.port_bench import Bench

ANY: tuple[str, int] = ("127.0.0.1", 0)


def reasons(bus: bool = True, stopping: bool = False, **hosts: HostHealth) -> tuple[str, ...]:
    return reasons_against(hosts, bus=bus, stopping=stopping)


def context(waiting: str | None = None, *, proved: bool = False) -> Any:
    return SimpleNamespace(waiting=waiting, proved=proved)


def ownership(*, held: bool = False, seen: str | None = None) -> Any:
    return SimpleNamespace(held=held, owner="aer-1:00", seen_owner=seen)


# --- What counts ---


@pytest.mark.parametrize(
    "host",
    [
        HostHealth(role=Role.OWNER, owner="aer-1:00"),
        HostHealth(role=Role.STANDBY, owner="aer-2:00"),
        HostHealth(role=Role.SERVING),
    ],
)
def test_connected_with_every_owner_known_and_every_register_read_is_ready(host: HostHealth) -> None:
    assert reasons(lab=host) == ()


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (reasons(bus=False, lab=HostHealth(role=Role.SERVING)), ("the bus is not connected",)),
        (reasons(stopping=True, lab=HostHealth(role=Role.SERVING)), ("the service is stopping",)),
        (reasons(lab=HostHealth(role=Role.UNKNOWN)), ("lab: it is not known who owns the host",)),
        (
            reasons(a=HostHealth(role=Role.OWNER, waiting="not read yet"), b=HostHealth(role=Role.STANDBY, owner="x")),
            ("a: not read yet",),
        ),
    ],
)
def test_each_thing_that_is_missing_is_said(found: tuple[str, ...], said: tuple[str, ...]) -> None:
    assert found == said


# --- Who is what to a host ---


def seat(*, owned: bool = True, of: Any = None, running: Any = None) -> HostHealth:
    one = Seat(owned=owned)
    one.ownership, one.context = of, running
    return one.health()


def test_an_owner_waits_for_its_registers() -> None:
    assert seat(of=ownership(held=True), running=context("not read")).waiting == "not read"
    assert seat(of=ownership(held=True), running=context()) == HostHealth(role=Role.OWNER, owner="aer-1:00")


def test_an_owner_whose_runner_has_ended_is_not_to_be_relied_on() -> None:
    assert seat(of=ownership(held=True)).waiting is not None


def test_a_standby_names_the_owner_and_waits_for_nothing() -> None:
    assert seat(of=ownership(seen="aer-2:00")) == HostHealth(role=Role.STANDBY, owner="aer-2:00")


def test_who_has_lost_its_host_or_has_not_looked_yet_does_not_know() -> None:
    assert seat().role is Role.UNKNOWN
    assert seat(of=ownership(), running=context()).role is Role.UNKNOWN


def test_a_service_that_owns_nothing_serves() -> None:
    assert seat(owned=False, running=context()) == HostHealth(role=Role.SERVING)
    assert seat(owned=False).waiting is not None


def test_a_process_without_its_bus_is_not_ready_and_neither_is_one_that_stops() -> None:
    health = Health("aer", "aer-1")
    assert health.readiness().reasons == ("the bus is not connected",)
    connected = True
    bus: Any = SimpleNamespace(statistics=lambda: SimpleNamespace(connected=connected))
    health.bus = bus
    assert health.readiness().ready
    connected = False
    assert not health.readiness().ready
    connected = True
    health.stopping = True
    assert health.readiness().reasons == ("the service is stopping",)


def test_ready_and_not_ready_are_said_where_they_change_and_only_there() -> None:
    one = Bench().context
    with structlog.testing.capture_logs() as lines:
        one.wait("no hardware yet")
        for _ in range(2):
            one.ready()
        for why in ("the fabric does not answer", "still not"):
            one.wait(why)
        waiting = [one.waiting]
        one.ready()
        waiting.append(one.waiting)
    assert waiting == ["still not", None]
    assert [line["event"] for line in lines] == ["ready", "not ready", "ready"]
    assert lines[1]["why"] == "the fabric does not answer"


def test_who_was_ready_once_has_proved_its_credential_for_good() -> None:
    seat = Seat(owned=False)
    for proved in (False, True, False):
        seat.context = context("the hardware does not answer", proved=proved)
        seat.leave()
        assert seat.context is None
    assert seat.proved


# --- Over HTTP ---


class Served:
    """A server under test, and what it answers."""

    def __init__(self, url: str) -> None:
        self.ready = True
        self._url = url

    def readiness(self) -> Readiness:
        why = () if self.ready else ("lab: not read yet",)
        return Readiness(ready=self.ready, service="aer", instance="aer-1", bus=True, hosts={}, reasons=why)

    async def get(self, path: str) -> tuple[int, str, str]:
        return await get(self._url + path)

    async def says(self, sent: bytes) -> bytes:
        """Return what is answered to these bytes, until the server closes the connection."""
        host, _, port = self._url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(sent)
        writer.write_eof()
        answer = await reader.read()
        writer.close()
        return answer


@asynccontextmanager
async def served() -> AsyncIterator[Served]:
    story = Served("")
    with structlog.testing.capture_logs() as lines:
        async with HealthServer(ANY, story.readiness, lambda: (b"x 1\n", "text/plain; version=1")):
            story._url = lines[0]["url"]
            yield story


async def test_a_process_whose_loop_turns_is_healthy_ready_or_not() -> None:
    async with served() as story:
        story.ready = False
        assert (await story.get("/healthz"))[0] == 200


async def test_ready_is_200_and_not_ready_is_503_with_the_reasons() -> None:
    async with served() as story:
        status, kind, _ = await story.get("/readyz")
        assert (status, kind.partition(";")[0]) == (200, "application/json")
        story.ready = False
        status, _, body = await story.get("/readyz")
        assert status == 503
        assert msgspec.json.decode(body)["reasons"] == ["lab: not read yet"]


async def test_metrics_are_served_as_they_are_rendered() -> None:
    async with served() as story:
        assert await story.get("/metrics") == (200, "text/plain; version=1", "x 1\n")


async def test_there_is_nothing_else_to_be_had() -> None:
    async with served() as story:
        assert (await story.get("/"))[0] == 404


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"HEAD /readyz HTTP/1.1\r\nHost: x\r\n\r\n", b"405"),
        (b"POST /readyz HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n", b"405"),
        (b"GET / HTTP/1.1\r\n\r\n", b"400"),
        (b"\x16\x03\x01 hello\r\n\r\n", b"400"),
        (b"GET /metrics HT", b"400"),
    ],
)
async def test_what_is_no_request_for_it_is_told_so(sent: bytes, status: bytes) -> None:
    async with served() as story:
        assert (await story.says(sent)).startswith(b"HTTP/1.1 " + status)


async def test_who_connects_and_says_nothing_is_left() -> None:
    async with served() as story:
        assert await story.says(b"") == b""
        assert (await story.get("/healthz"))[0] == 200


async def test_a_port_in_use_is_named_with_the_setting_and_an_exit_code_of_its_own() -> None:
    with socket.socket() as other:
        other.bind(ANY)
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(Fatal, match=rf"127\.0\.0\.1:{port}.*HOLDFAST_HEALTH") as caught:
            await HealthServer(("127.0.0.1", port), Served("").readiness, lambda: (b"", "")).__aenter__()
    assert caught.value.code == EXIT_PORT == 71


async def test_it_can_be_switched_off() -> None:
    with structlog.testing.capture_logs() as lines:
        async with HealthServer(None, Served("").readiness, lambda: (b"", "")):
            assert lines == []
