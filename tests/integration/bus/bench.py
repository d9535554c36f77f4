"""What the tests of the bus share: connections, patience, and a proxy that stalls."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from shared.pcie import Address
from shared.protocol.facts import Fact
from shared.protocol.records import Owner
from shared.runtime import (
    BusUnreachable,
    NatsBus,
    Settings,
    Unanswered,
    connect,
)
from tests.conftest import NatsServer

PORT = Address.parse("0000:3b:00.0")
PATIENCE_S = 60.0  # for what happens sooner or later


@asynccontextmanager
async def bus_to(server: NatsServer, instance: str = "test-1") -> AsyncIterator[NatsBus]:
    bus = await connect(Settings(nats_url=server.url, instance=instance), "test", timeout_s=PATIENCE_S)
    try:
        yield bus
    finally:
        await bus.close()


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
