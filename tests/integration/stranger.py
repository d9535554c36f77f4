"""Somebody on the bus who is none of us: a plain TCP client that speaks the NATS text protocol, and no client library.

https://docs.nats.io/reference/reference-protocols/nats-protocol
"""

from __future__ import annotations

import asyncio
import json
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit

ANSWER_S: Final = 10.0
_INBOX: Final = "_INBOX.stranger"
_NO_RESPONDERS: Final = b"503"


class Stranger:
    """One TCP connection. What it says is what stands on the wire."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._server = (parts.hostname, parts.port)
        self._asked = 0
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection(*self._server)
        greeting = await self._line()
        assert greeting.startswith(b"INFO "), greeting
        await self._say(b'CONNECT {"verbose":false,"headers":true,"no_responders":true}')
        await self._say(f"SUB {_INBOX}.* 1".encode())
        await self.arrived()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()
        await self._writer.wait_closed()

    async def publish(self, subject: str, payload: bytes | dict[str, Any], reply: str = "") -> None:
        """Publish bytes as they are, or a dict as JSON."""
        data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        head = " ".join(part for part in ("PUB", subject, reply, str(len(data))) if part)
        await self._say(head.encode() + b"\r\n" + data)

    async def ask(self, subject: str, payload: bytes | dict[str, Any]) -> bytes | None:
        """Publish with an inbox, and return the first answer; None where nobody listens."""
        self._asked += 1
        inbox = f"{_INBOX}.{self._asked}"
        await self.publish(subject, payload, inbox)
        async with asyncio.timeout(ANSWER_S):
            while True:
                heard, headers, data = await self._message()
                if heard == inbox:
                    return None if _NO_RESPONDERS in headers.partition(b"\r\n")[0] else data

    async def arrived(self) -> None:
        """Return when the server has dealt with all that was said."""
        await self._say(b"PING")
        while await self._line() != b"PONG":
            pass

    async def _say(self, line: bytes) -> None:
        self._writer.write(line + b"\r\n")
        await self._writer.drain()

    async def _line(self) -> bytes:
        async with asyncio.timeout(ANSWER_S):
            line = (await self._reader.readuntil(b"\r\n"))[:-2]
        assert not line.startswith(b"-ERR"), line
        if line == b"PING":
            await self._say(b"PONG")
        return line

    async def _message(self) -> tuple[str, bytes, bytes]:
        """Return the next message: subject, headers, payload."""
        while True:
            verb, *words = (await self._line()).split(b" ")
            if verb == b"MSG":
                data = await self._reader.readexactly(int(words[-1]) + 2)
                return words[0].decode(), b"", data[:-2]
            if verb == b"HMSG":
                size, total = int(words[-2]), int(words[-1])
                data = await self._reader.readexactly(total + 2)
                return words[0].decode(), data[:size], data[size:-2]
