"""What a tool that knows nothing of Holdfast does to registers: as `setpci` on a real host, behind the fabric's back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgpack

from shared.pcie.registers import Register
from tests.integration.fleet import ANSWER_S, Bench


async def ask(bench: Bench, *request: Any) -> Any:
    """Ask the machine over its own socket."""
    reader, writer = await asyncio.open_unix_connection(bench.fleet._scratch / "machine.sock")
    unpacker = msgpack.Unpacker(raw=False)
    try:
        writer.write(msgpack.packb([1, *request]))
        async with asyncio.timeout(ANSWER_S):
            while True:
                unpacker.feed(await reader.read(1 << 16))
                for answer in unpacker:
                    if answer[0] == 1:  # interrupts are pushed in between
                        assert answer[1] is not None, answer
                        return answer[1]
    finally:
        writer.close()
        await writer.wait_closed()


async def peek(bench: Bench, function: str, register: Register, base: int = 0) -> int:
    """Read a register."""
    data: bytes = await ask(bench, "read", function, base + register.offset, register.width)
    return int.from_bytes(data, "little")


async def poke(bench: Bench, function: str, register: Register, value: int, base: int = 0) -> None:
    """Write a register."""
    await ask(bench, "write", function, base + register.offset, value.to_bytes(register.width, "little"))


@asynccontextmanager
async def poked(bench: Bench, function: str, register: Register, value: int, base: int = 0) -> AsyncIterator[None]:
    """Write a register, and put it back afterwards."""
    before = await peek(bench, function, register, base)
    await poke(bench, function, register, value, base)
    try:
        yield
    finally:
        await poke(bench, function, register, before, base)
