"""What a user runs who outgrows one machine: a bus of several nats-servers, several hosts, and two coordinators.

Each host has its machine and its fabric; hotplug, AER and DPC serve all hosts. The first coordinator names the hosts
in their order, the second in the reverse, so that they share them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import nats
from nats.js.api import StreamInfo

from services.console import _nats_server
from services.console._fleet import Fleet
from services.console._process import Process
from shared.protocol import decode, subjects
from shared.protocol.facts import What
from shared.protocol.records import Owner
from shared.runtime import BusError
from tests.integration.fleet import Bench
from tests.integration.promises import verdicts

HOSTS: Final = ("east", "west")
COORDINATORS: Final = ("coordinator-1", "coordinator-2")
BUCKET: Final = "KV_PCIE"
PATIENCE_S: Final = 60.0
_STOP_S: Final = 10.0
_POLL_S: Final = 0.05
_ADDRESS: Final = "127.0.0.1"
_FINDERS: Final = ("hotplug", "aer", "dpc")

_CONF: Final = """
server_name: {name}
listen: "{address}:{port}"
jetstream {{ store_dir: "{store}", sync_interval: always }}
"""
_ROUTES: Final = """
cluster {{ name: holdfast, listen: "{address}:{port}", routes: [{routes}] }}
"""

_PORT: Final = """
[[function]]
address = "0000:00:{number:02x}.0"
kind = "root_port"
bus = [{number}, {number}]
vendor = 0x8086
device = 0x6f04
dpc = true
slot = {{number = {number}}}

[[function]]
address = "0000:{number:02x}:00.0"
kind = "endpoint"
vendor = 0x144d
device = 0xa824
class = 0x010802
serial = "00-11-22-33-44-55-{number:02x}-00"
bars = [0x4000]
driver = {{name = "nvme"}}
"""
PORTS: Final = "".join(_PORT.format(number=number) for number in range(1, 5))  # so that tests need not share one


class Bus:
    """One or three nats-servers. They keep their ports and their disks over `kill` and `restart`."""

    def __init__(self, directory: Path, size: int) -> None:
        self.names = tuple(f"nats-{number}" for number in range(1, size + 1))
        clients, routes = _free_ports(size), _free_ports(size)
        self.url = ",".join(f"nats://{_ADDRESS}:{port}" for port in clients)
        self.processes: dict[str, Process] = {}
        self._confs: dict[str, Path] = {}
        between = ", ".join(f'"nats://{_ADDRESS}:{port}"' for port in routes)
        for name, client, route in zip(self.names, clients, routes, strict=True):
            text = _CONF.format(name=name, address=_ADDRESS, port=client, store=directory / name)
            if size > 1:
                text += _ROUTES.format(address=_ADDRESS, port=route, routes=between)
            self._confs[name] = directory / f"{name}.conf"
            self._confs[name].write_text(text)

    async def restart(self, name: str) -> None:
        """Start a server that does not run, and wait until it accepts connections."""
        command = (_nats_server.find_binary(), "--config", str(self._confs[name]))
        process = await Process.start(name, command, os.environ, on_line=_ignore, is_ready=_nats_server.is_ready)
        self.processes[name] = process
        await process.ready(PATIENCE_S)

    async def kill(self, name: str) -> None:
        """Let a server end as in a crash: no leader is handed over, no connection closed."""
        await self.processes[name].stop(0.0)

    async def stream(self, name: str) -> StreamInfo:
        """Ask JetStream about a stream."""
        client = await nats.connect(self.url.split(","))
        try:
            return await client.jetstream().stream_info(name)
        finally:
            await client.close()

    async def leader(self, stream: str) -> str:
        """Return the name of the server that leads a stream."""
        cluster = (await self.stream(stream)).cluster
        assert cluster is not None
        assert cluster.leader
        return cluster.leader

    async def whole(self) -> None:
        """Wait until every replica of every stream is there and up to date."""

        async def look() -> bool:
            infos = [await self.stream(name) for name in (BUCKET, subjects.FACT_STREAM)]
            followers = [peer for info in infos if info.cluster for peer in info.cluster.replicas or ()]
            return len(followers) == len(infos) * (len(self._confs) - 1) and all(peer.current for peer in followers)

        await _until(look)

    async def stop(self) -> None:
        await asyncio.gather(*(process.stop(_STOP_S) for process in self.processes.values()))


class Part(Fleet):
    """Some processes on a bus that is there already: process name -> service. Started, not waited for."""

    def __init__(self, url: str, topology: Path, services: Mapping[str, str], **options: Any) -> None:
        super().__init__(topology, on_line=self._line, **options)
        self.lines: list[tuple[str, str]] = []  # name of the process, and what it said
        self.url = url
        self._services = services

    async def start(self) -> None:
        self.state_dir.mkdir(parents=True, exist_ok=True)
        for name, service in self._services.items():
            await self.spawn(service, name)

    def _line(self, name: str, line: str) -> None:
        """Keep the line, and leave it to pytest, which shows it when the test fails."""
        self.lines.append((name, line))
        print(f"{name}: {line}")  # noqa: T201 - captured by pytest

    async def said(self, name: str, event: str, since: int, times: int = 1) -> None:
        """Wait until a process has said something so many times after the first `since` lines."""

        async def look() -> bool:
            said = sum(who == name and f'"event":"{event}"' in line for who, line in self.lines[since:])
            return said >= times

        await _until(look)

    async def restart(self, name: str) -> None:
        """Stop a process if it still runs, and start it again."""
        await self.processes[name].stop(_STOP_S)
        await self.spawn(self._services[name], name)


class Cluster:
    """An async context manager: inside, all is ready and both hosts are calm. `benches` are by host.

    The services that are shared start when only the first server is there, and must wait for the rest of the bus.
    """

    def __init__(self, directory: Path, *, servers: int, environment: Mapping[str, str]) -> None:
        self.bus = Bus(directory, servers)
        self.benches: dict[str, Bench] = {}
        self._topology = directory / "topology.toml"
        self._topology.write_text(PORTS)
        self._directory = directory
        self._environment = {"HOLDFAST_HEALTH": f"{_ADDRESS}:0", **environment}
        self._stack = AsyncExitStack()
        self.shared = Part(
            self.bus.url,
            self._topology,
            {name: name for name in _FINDERS} | dict.fromkeys(COORDINATORS, "coordinator"),
            state_dir=directory / "shared",
            environment=self._environment | {"HOLDFAST_HOSTS": ",".join(HOSTS)},
            extra={
                COORDINATORS[0]: {"HOLDFAST_INSTANCE": COORDINATORS[0]},
                COORDINATORS[1]: {"HOLDFAST_INSTANCE": COORDINATORS[1], "HOLDFAST_HOSTS": ",".join(reversed(HOSTS))},
            },
        )

    async def __aenter__(self) -> Self:
        try:
            self._stack.push_async_callback(self.bus.stop)
            first, *others = self.bus.names
            await self.bus.restart(first)
            await self._stack.enter_async_context(self.shared)
            if others:
                for name in self.shared.processes:
                    await self.shared.said(name, "streams not ready, trying on", since=0)
            await asyncio.gather(*map(self.bus.restart, others))
            await self.bus.whole()
            for host in HOSTS:
                self.benches[host] = await self._stack.enter_async_context(Bench(self._part(host)))
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def _part(self, host: str) -> Part:
        services = {"machine": "machine", "fabric": "fabric"}
        state = self._directory / host
        return Part(self.bus.url, self._topology, services, host=host, state_dir=state, environment=self._environment)

    async def owner(self, host: str) -> str | None:
        """Return the name of the coordinator that owns a host, None while nobody does."""
        entry = await self.benches[host].bus.get(subjects.owner_key(host, "coordinator"))
        if entry is None:
            return None
        record: Owner = decode(entry.value, Owner)
        return None if record.released else record.owner.rpartition(":")[0]

    async def owned(self, host: str, name: str) -> None:
        """Wait until a coordinator owns a host."""

        async def look() -> bool:
            return await self.owner(host) == name

        await _until(look)


def other(coordinator: str) -> str:
    """Return the name of the other coordinator."""
    return next(name for name in COORDINATORS if name != coordinator)


async def contained(bench: Bench, port: int) -> str:
    """Have DPC contain a port whose driver hangs, wait until its recovery calls the driver; return the lease."""
    since = bench.mark()
    address = f"00:{port:02x}.0"
    await bench.hang(f"{port:02x}:00.0", "error_detected")
    await bench.inject("dpc", address, reason="uncorrectable")
    started = await bench.wait_fact(What.RECOVERY_STARTED, address, since=since)

    async def entered() -> bool | None:
        steps = {fact.data["step"] for fact in bench.facts(What.RECOVERY_STEP, address, since)}
        return "error_detected" in steps or None

    await bench.eventually(entered, "the driver is called")
    assert started.lease is not None
    return started.lease


async def kept(bench: Bench, port: int, lease: str) -> None:
    """Let the driver answer, as soon as there is a bus; wait until the recovery is over, and has kept the device."""

    async def answered() -> bool:
        await bench.answer(f"{port:02x}:00.0")
        return True

    await bench.eventually(answered, "the driver answers")
    record = await bench.closed(f"00:{port:02x}.0", lease, timeout_s=PATIENCE_S)
    assert verdicts(record) == {f"0000:{port:02x}:00.0": "kept"}


async def _until(look: Callable[[], Awaitable[bool]]) -> None:
    """Look until it is so. A bus that is without a leader for the moment has nothing to show."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with contextlib.suppress(BusError, nats.errors.Error, OSError):
                if await look():
                    return
            await asyncio.sleep(_POLL_S)


def _free_ports(count: int) -> list[int]:
    """Reserve ports by binding them all before any is let go."""
    probes = [socket.create_server((_ADDRESS, 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def _ignore(_name: str, _line: str) -> None:
    pass
