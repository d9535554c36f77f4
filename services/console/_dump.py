"""`dump`: config spaces in the format of `lspci -xxxx`, so that `lspci -F` decodes them.

What does not answer is told on stderr and left out: all ones is no content (P9), and lspci would stumble over it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Final

from shared.pcie import Address, Function
from shared.protocol import subjects
from shared.protocol.fabric import Dump, Dumped, DumpReply

from ._exit import ExitCode, Failure
from ._names import resolve
from ._output import tell
from ._session import Session

_ROW: Final = 16  # bytes per line
_AT_ONCE: Final = 8  # questions: the fabric answers one after the other, and each answer is waited for a while only
_UNANSWERED: Final = b"\xff"


async def dump(session: Session, names: Sequence[str]) -> str:
    """Return the dump of the named functions, or of all. Raises Failure if not one of them answers."""
    topology = await session.topology()
    devices = await session.devices() if names else ()
    chosen = [resolve(name, topology, devices) for name in names] or [function.address for function in topology]
    texts = []
    for address, config in zip(chosen, await read_configs(session, chosen), strict=True):
        if not config.strip(_UNANSWERED):
            tell(f"{address} does not answer, and is left out")
            continue
        texts.append(text(address, topology.find(address), config))
    if chosen and not texts:
        raise Failure(ExitCode.ABSENT, "nothing to dump: gone, or in reset; `holdfast status` shows which")
    return "\n".join(texts)


async def read_configs(session: Session, addresses: Sequence[Address]) -> tuple[bytes, ...]:
    """Ask the fabric for all 4096 bytes of each function: all ones where nothing answers. Several are asked at once."""
    turns = asyncio.Semaphore(_AT_ONCE)

    async def in_turn(address: Address) -> bytes:
        async with turns:
            return await _read_config(session, address)

    return tuple(await asyncio.gather(*map(in_turn, addresses)))


async def _read_config(session: Session, address: Address) -> bytes:
    subject, asked = subjects.fabric(session.host, "dump"), Dump(function=address)
    reply: Dumped = await session.ask(subject, asked, DumpReply, whom="fabric", what=f"dump {address}")
    return reply.config


def text(address: Address, function: Function | None, config: bytes) -> str:
    """Write one config space as lspci does: a header line, then offsets and bytes in hexadecimal."""
    name = "no function" if function is None else str(function.identity)
    return "\n".join((f"{address} {name}", *_rows(config), ""))


def _rows(config: bytes) -> Iterator[str]:
    for offset in range(0, len(config), _ROW):
        yield f"{offset:02x}: {config[offset : offset + _ROW].hex(' ')}"
