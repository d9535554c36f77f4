"""One service as a process of its own, its log read line by line; and any program run to its end."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec

PATIENCE_S = 60.0

# A service that states a fact at its start and one at its end. What it is to do wrong stands in its environment.
PROGRAM = """
import asyncio, os
from shared.pcie import Address
from shared.protocol.facts import What
from shared.runtime import Fatal, run

PORT = Address.parse("0000:3b:00.0")
lives = 0

async def tick(context):
    while True:
        context.log.debug("tick")
        await asyncio.sleep(0.05)

async def host(context):
    global lives
    lives += 1
    wrong = os.environ.get("WRONG", "")
    if wrong == "fatal":
        raise Fatal("the ledger is torn", 9)
    if wrong == "crash once" and lives == 1:
        raise RuntimeError("a bug")
    context.facts.say(What.LINK_UP, PORT, instance=context.settings.instance)
    ticking = asyncio.create_task(tick(context))
    if wrong != "blind":
        context.ready()
    await (asyncio.Event() if wrong == "deaf" else context.stopping).wait()
    ticking.cancel()
    context.facts.say(What.LINK_DOWN, PORT, instance=context.settings.instance)

run("aer", host, owned=os.environ.get("OWNED", "1") == "1")
"""


class Service:
    """A process of PROGRAM."""

    def __init__(self, process: asyncio.subprocess.Process, settings: Mapping[str, str]) -> None:
        self.process = process
        self.settings = settings
        self.lines: list[dict[str, Any]] = []

    async def said(self, event: str) -> dict[str, Any]:
        """Read its log until it has said `event`."""
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            while True:
                line = await self.process.stdout.readline()
                assert line, f"ended without saying {event!r}: {self.lines}"
                self.lines.append(msgspec.json.decode(line, type=dict[str, Any]))
                if self.lines[-1]["event"] == event:
                    return self.lines[-1]

    async def ended(self) -> int:
        """Wait for its end; what it said until then is in `lines`."""
        async with asyncio.timeout(PATIENCE_S):
            out, _ = await self.process.communicate()
        self.lines += [msgspec.json.decode(line, type=dict[str, Any]) for line in out.splitlines()]
        assert self.process.returncode is not None
        return self.process.returncode


Start = Callable[..., Awaitable[Service]]


@asynccontextmanager
async def starter(nats_url: str, test: str) -> AsyncIterator[Start]:
    """Give a function that starts services, each test's on a host of its own; what still runs at the end is killed."""
    host = "".join(filter(str.isalnum, test))
    started: list[Service] = []

    async def start_one(instance: str = "aer-1", **environ: str) -> Service:
        settings = {
            "HOLDFAST_NATS_URL": nats_url,
            "HOLDFAST_HOSTS": host,
            "HOLDFAST_INSTANCE": instance,
            "HOLDFAST_OWNER_S": "3",
            "HOLDFAST_HEALTH": "127.0.0.1:0",
            **environ,
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PROGRAM, env=_clean() | settings, stdout=asyncio.subprocess.PIPE
        )
        started.append(Service(process, settings))
        return started[-1]

    try:
        yield start_one
    finally:
        for service in started:
            if service.process.returncode is None:
                service.process.kill()
                await service.process.communicate()


def _clean() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")}


async def run_to_end(*arguments: str, environ: Mapping[str, str], under: tuple[str, ...] = ()) -> tuple[int, str, str]:
    """Run Python with these arguments, `under` another program if one is given; return exit code, stdout and stderr."""
    process = await asyncio.create_subprocess_exec(
        *under,
        sys.executable,
        *arguments,
        env={**_clean(), **environ},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(PATIENCE_S):
        out, error = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), error.decode()
