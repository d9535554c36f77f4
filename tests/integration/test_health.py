"""Health, log level and log files of real processes; and what a process that cannot start says, and with which code."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio

from services.console._exit import ExitCode
from services.console._fleet import SERVICES
from tests.conftest import NatsServer
from tests.http_client import get
from tests.integration.cli import Cli, ended
from tests.integration.conftest import TOPOLOGIES
from tests.integration.fleet import Bench
from tests.integration.fleet import start as start_fleet
from tests.integration.one_service import PATIENCE_S, Service, Start, run_to_end, starter

ABSENT: Final = "nats://127.0.0.1:9"
FOR_LONG_S: Final = "60"  # an owner that is slow keeps its host
EXIT_PORT: Final = 71
EXIT_UNWRITABLE: Final = 74


@pytest.fixture
async def start(nats_server: NatsServer, request: pytest.FixtureRequest) -> AsyncIterator[Start]:
    async with starter(nats_server.url, request.node.name) as start_one:
        yield start_one


class Watcher:
    """Whoever looks after a service: a load balancer, compose, Prometheus."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def get(self, path: str) -> tuple[int, str]:
        status, _, text = await get(self._url + path)
        return status, text

    async def readiness(self) -> tuple[int, dict[str, Any]]:
        status, body = await self.get("/readyz")
        return status, json.loads(body)

    async def sees(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Look until the readiness is as wanted, and return it."""
        seen: dict[str, Any] = {}
        try:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    status, seen = await self.readiness()
                    assert (status == 200) == seen["ready"] == (not seen["reasons"])
                    if wanted(seen):
                        return seen
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"not seen; the last was {seen}") from None

    async def sees_why_not(self, *reasons: str) -> dict[str, Any]:
        """Look until it is not ready for these reasons, and no others; return it."""
        return await self.sees(lambda seen: seen["reasons"] == list(reasons))


async def watcher_of(service: Service) -> Watcher:
    return Watcher((await service.said("health served"))["url"])


def is_ready(seen: dict[str, Any]) -> bool:
    return bool(seen["ready"])


# --- Health ---


async def test_a_service_without_its_bus_is_healthy_and_not_ready_and_says_why(start: Start) -> None:
    service = await start(HOLDFAST_NATS_URL=ABSENT)
    watcher = await watcher_of(service)
    assert await watcher.get("/healthz") == (200, "ok\n")
    status, seen = await watcher.readiness()
    assert (status, seen["ready"], seen["bus"]) == (503, False, False)
    assert "the bus is not connected" in seen["reasons"]


async def test_an_owner_and_its_standby_are_both_ready_and_name_the_owner(start: Start) -> None:
    first = await start("aer-1")
    one = await watcher_of(first)
    seen = await one.sees(is_ready)
    (host,) = seen["hosts"]
    owner = seen["hosts"][host]["owner"]
    assert seen["hosts"][host]["role"] == "owner"
    assert owner.startswith("aer-1:")
    two = await watcher_of(await start("aer-2"))
    seen = await two.sees(is_ready)
    assert (seen["hosts"][host]["role"], seen["hosts"][host]["owner"]) == ("standby", owner)
    first.process.kill()
    await two.sees(lambda seen: bool(seen["hosts"][host]["role"] == "owner"))
    await two.sees(is_ready)


async def test_a_service_that_has_not_read_its_registers_is_not_ready(start: Start) -> None:
    watcher = await watcher_of(await start(WRONG="blind"))
    seen = await watcher.sees(lambda seen: bool(seen["bus"] and seen["hosts"]))
    (host,) = seen["hosts"]
    seen = await watcher.sees_why_not(f"{host}: its registers have not been read yet")
    assert seen["hosts"][host]["role"] == "owner"


async def test_a_service_that_has_lost_its_bus_is_not_ready_until_it_is_back(
    start: Start, own_nats_server: NatsServer
) -> None:
    service = await start(HOLDFAST_NATS_URL=own_nats_server.url, HOLDFAST_OWNER_S=FOR_LONG_S)
    watcher = await watcher_of(service)
    await watcher.sees(is_ready)
    own_nats_server.kill()
    await watcher.sees_why_not("the bus is not connected")
    assert (await watcher.get("/healthz"))[0] == 200
    own_nats_server.start()
    await watcher.sees(is_ready)


async def test_p7_an_owner_that_hears_nothing_from_a_frozen_bus_does_not_claim_to_know_who_owns(
    start: Start, own_nats_server: NatsServer
) -> None:
    watcher = await watcher_of(await start(HOLDFAST_NATS_URL=own_nats_server.url))
    seen = await watcher.sees(is_ready)
    (host,) = seen["hosts"]
    own_nats_server.freeze()
    await watcher.sees(lambda seen: bool(seen["hosts"][host]["role"] == "unknown"))
    own_nats_server.thaw()
    await watcher.sees(is_ready)


async def test_a_service_that_is_told_to_stop_is_not_ready_any_more(start: Start) -> None:
    service = await start(WRONG="deaf")
    watcher = await watcher_of(service)
    await watcher.sees(is_ready)
    service.process.terminate()
    await watcher.sees_why_not("the service is stopping")
    assert await service.ended() == 0


@pytest.fixture(scope="module")
def urls() -> dict[str, str]:
    """Where each service of the fleet serves its health, as its log says."""
    return {}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory, urls: dict[str, str]) -> AsyncIterator[Bench]:
    """One for all tests here, which start again whoever they kill."""

    def hear(name: str, line: str) -> None:
        if '"health served"' in line:
            urls[name] = json.loads(line)["url"]

    text = (TOPOLOGIES / "bench.toml").read_text()
    quick = {"HOLDFAST_RECONCILE_S": "2", "HOLDFAST_REMOVAL_GRACE_S": "1"}
    async with start_fleet(text, tmp_path_factory.mktemp("health"), on_line=hear, environment=quick) as running:
        yield running


@pytest.mark.asyncio(loop_scope="module")
async def test_every_service_of_a_fleet_is_ready_once_its_log_says_so(bench: Bench, urls: dict[str, str]) -> None:
    assert len(urls) == 6
    for url in urls.values():
        await Watcher(url).sees(is_ready)  # a fabric that is slow to answer makes who asks it unready for a moment
        assert (await Watcher(url).get("/metrics"))[0] == 200
    bench.kill("machine")
    await bench.fleet.ended("machine")
    await bench.fleet.processes["fabric"].stop(PATIENCE_S)
    del urls["fabric"]
    await bench.fleet.spawn("fabric")

    async def listening() -> bool | None:
        return "fabric" in urls or None

    await bench.eventually(listening, "the fabric serves its health", PATIENCE_S)
    await Watcher(urls["fabric"]).sees_why_not("lab: no hardware has answered yet")
    await bench.restart("machine")
    await Watcher(urls["fabric"]).sees(is_ready)


@pytest.mark.asyncio(loop_scope="module")
async def test_who_cannot_reach_the_registers_any_more_is_not_ready_until_he_can(
    bench: Bench, urls: dict[str, str]
) -> None:
    watchers = {name: Watcher(url) for name, url in urls.items()}
    for watcher in watchers.values():
        await watcher.sees(is_ready)
    bench.kill("machine")
    await bench.fleet.ended("machine")
    await watchers["fabric"].sees_why_not("lab: the hardware does not answer")
    await bench.restart("machine")
    await watchers["fabric"].sees(is_ready)
    reasons = dict.fromkeys(("hotplug", "aer", "dpc"), "lab: the fabric does not answer")
    reasons["coordinator"] = "lab: its leases and journals cannot be read"
    bench.kill("fabric", signal.SIGSTOP)
    for name, reason in reasons.items():
        await watchers[name].sees_why_not(reason)
    bench.kill("fabric", signal.SIGCONT)
    for name in reasons:
        await watchers[name].sees(is_ready)


# --- What cannot start does not start half ---


async def test_a_health_port_in_use_ends_the_service_before_it_joins_the_bus(start: Start) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        place = f"127.0.0.1:{other.getsockname()[1]}"
        service = await start(HOLDFAST_HEALTH=place)
        said = await service.said("cannot go on")
        assert await service.ended() == EXIT_PORT
    assert place in said["error"]
    assert "HOLDFAST_HEALTH" in said["error"]
    assert [line["event"] for line in service.lines] == ["starting", "cannot go on"]


@pytest.mark.parametrize(
    ("service", "variable"),
    [("machine", "HOLDFAST_MACHINE_SOCKET"), ("fabric", "HOLDFAST_LEDGER"), ("dpc", "HOLDFAST_LOG_DIR")],
)
async def test_a_place_that_cannot_be_written_is_named_before_the_bus_is_joined(
    tmp_path: Path, service: str, variable: str
) -> None:
    (tmp_path / "file").touch()
    place = str(tmp_path / "file" / "below")
    environ = {
        "HOLDFAST_NATS_URL": ABSENT,
        "HOLDFAST_HEALTH": "127.0.0.1:0",
        "HOLDFAST_TOPOLOGY": str(TOPOLOGIES / "bench.toml"),
        variable: place,
    }
    code, out, err = await run_to_end("-m", f"services.{service}", environ=environ)
    assert code == EXIT_UNWRITABLE
    assert place in out + err
    assert "Traceback" not in out + err


@pytest.mark.parametrize("service", ["machine", "fabric"])
async def test_a_path_that_is_too_long_for_a_socket_is_refused_at_both_its_ends(tmp_path: Path, service: str) -> None:
    place = str(tmp_path / "s")
    place += "s" * (108 - len(place))  # as many as sun_path has room for, without the NUL
    environ = {
        "HOLDFAST_NATS_URL": ABSENT,
        "HOLDFAST_HEALTH": "off",
        "HOLDFAST_TOPOLOGY": str(TOPOLOGIES / "bench.toml"),
        "HOLDFAST_LEDGER": str(tmp_path / "ledger"),
        "HOLDFAST_MACHINE_SOCKET": place,
    }
    code, out, err = await run_to_end("-m", f"services.{service}", environ=environ)
    assert code == EXIT_UNWRITABLE, out + err
    assert place in out + err
    assert "HOLDFAST_MACHINE_SOCKET" in out + err


async def test_a_directory_without_write_permission_is_named(tmp_path: Path) -> None:
    # Root may write everywhere, unless it has given up its capabilities.
    under = ("setpriv", "--inh-caps=-all", "--bounding-set=-all") if os.geteuid() == 0 else ()
    if under and shutil.which(under[0]) is None:
        pytest.skip("root without setpriv (util-linux): nothing is forbidden")
    tmp_path.chmod(0o500)  # noqa: ASYNC240 - a test may touch the disk
    environ = {"HOLDFAST_NATS_URL": ABSENT, "HOLDFAST_HEALTH": "off", "HOLDFAST_LEDGER": str(tmp_path / "ledger")}
    code, out, err = await run_to_end("-m", "services.fabric", environ=environ, under=under)
    assert code == EXIT_UNWRITABLE, out + err
    assert f"{tmp_path / 'ledger'}: Permission denied" in out + err


async def test_all_that_is_wrong_with_the_settings_is_said_at_once() -> None:
    environ = {"HOLDFAST_HEALTH": "here", "HOLDFAST_COLOUR": "red", "HOLDFAST_OWNER_S": "soon"}
    code, out, err = await run_to_end("-m", "services.machine", environ=environ)
    assert (code, out) == (ExitCode.USAGE, "")
    for variable in environ:
        assert variable in err


# --- Logs ---


async def test_the_level_is_changed_while_the_services_run_in_owner_and_standby(start: Start) -> None:
    services = [await start("aer-1", HOLDFAST_OWNER_S=FOR_LONG_S)]
    await services[0].said("ready")
    services.append(await start("aer-2", HOLDFAST_OWNER_S=FOR_LONG_S))
    await services[1].said("standby")
    cli = of(services[0])
    changed = [json.loads(line) for line in (await told(cli, "log-level", "aer", "debug", "--json")).splitlines()]
    assert changed == [
        {"service": "aer", "instance": name, "level": "debug", "was": "info"} for name in ("aer-1", "aer-2")
    ]
    for service in services:
        assert (await service.said("log level changed"))["now"] == "debug"
    await services[0].said("tick")
    out = await told(cli, "log-level", "aer", "error", "--instance", "aer-2")
    assert out.split()[-4:] == ["aer", "aer-2", "error", "debug"]
    services[1].process.send_signal(signal.SIGTERM)
    assert await services[1].ended() == 0
    assert services[1].lines[-1]["event"] == "log level changed", "nothing but errors after it"


@pytest.mark.campaign
async def test_a_level_or_a_service_or_an_instance_that_is_none_is_named(start: Start) -> None:
    service = await start()
    await service.said("ready")
    cli = of(service)
    for arguments, code, named in (
        (("log-level", "aer", "loud"), ExitCode.USAGE, "loud"),
        (("log-level", "ear", "debug"), ExitCode.USAGE, "'ear'"),
        (("log-level", "aer", "debug", "--instance", "a.b"), ExitCode.USAGE, "'a.b'"),
        (("log-level", "aer", "debug", "--instance", "aer-9"), ExitCode.UNREACHABLE, "aer-9"),
        (("log-level", "dpc", "debug"), ExitCode.UNREACHABLE, "dpc"),
    ):
        ended, _, err = await cli.run(*arguments)
        assert (ended, named in err, "Traceback" in err) == (code, True, False), err


@pytest.mark.campaign
async def test_up_keeps_a_log_of_each_service_where_it_is_told_to(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    for _ in range(2):
        process = await Cli().start("up", "--port", "0", "--log-dir", str(logs))
        assert process.stderr is not None
        async with asyncio.timeout(PATIENCE_S):
            line = await process.stderr.readline()
        assert line.startswith(b"ready after"), line
        process.terminate()
        assert (await ended(process))[0] == 0
    assert sorted(path.name for path in logs.iterdir()) == [f"{service}.log" for service in sorted(SERVICES)]
    for service in SERVICES:
        lines = [json.loads(line) for line in (logs / f"{service}.log").read_text().splitlines()]
        assert {line["service"] for line in lines} == {service}
        events = [line["event"] for line in lines]
        assert (events.count("ready"), events.count("stopped")) == (2, 2), "the second run goes on where the file ended"


def of(service: Service) -> Cli:
    settings = service.settings
    return Cli(
        environment={"HOLDFAST_NATS_URL": settings["HOLDFAST_NATS_URL"], "HOLDFAST_HOST": settings["HOLDFAST_HOSTS"]}
    )


async def told(cli: Cli, *arguments: str) -> str:
    code, out, err = await cli.run(*arguments)
    assert code == 0, err
    return out
