"""HTTP for whoever looks after a service: `/healthz` (it turns), `/readyz` (rely on it), `/metrics` (Prometheus).

It listens before anything else is begun, and until everything has ended: a service that cannot have its port does
not start half, and one that waits for its bus can say so.

The protocol is h11's; here are three answers, one to a connection. A web framework would do the same, and cost each of
the six processes a third of its start and a quarter of its memory (measured with aiohttp 3.14).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

import h11
import msgspec
import structlog

from ._exit_codes import EXIT_PORT, Fatal
from ._health import Readiness

_REQUEST_S: Final = 5.0  # for a request to arrive and its answer to be taken
_CHUNK: Final = 4096
_OK: Final = 200
_NOT_FOUND: Final = 404
_NOT_ALLOWED: Final = 405
_UNAVAILABLE: Final = 503
_TEXT: Final = "text/plain; charset=utf-8"

Answer = tuple[int, str, bytes]  # status, content type, body
_log = structlog.get_logger()


class HealthServer:
    """Serves at `address` (host, port; port 0 takes a free one, which is logged); None: serves nothing.

    `readiness` and `metrics` (body, content type) are called for each request and must not block.
    """

    def __init__(
        self,
        address: tuple[str, int] | None,
        readiness: Callable[[], Readiness],
        metrics: Callable[[], tuple[bytes, str]],
    ) -> None:
        self._address = address
        self._readiness = readiness
        self._metrics = metrics
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        """Listen. Raises Fatal where that cannot be."""
        if self._address is None:
            return self
        host, port = self._address
        try:
            self._server = await asyncio.start_server(self._converse, host, port)
        except OSError as error:
            raise Fatal(
                f"health and metrics cannot be served at {host}:{port} ({error.strerror or error}): "
                "set HOLDFAST_HEALTH to another host:port, or to off",
                EXIT_PORT,
            ) from error
        _log.info("health served", url=_url(*self._server.sockets[0].getsockname()[:2]))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request. Who is slow, or breaks off, is left."""
        connection = h11.Connection(h11.SERVER)
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_REQUEST_S):
                try:
                    request = await _request(connection, reader)
                    answer = self._answer(request)
                except h11.RemoteProtocolError as error:
                    answer = (error.error_status_hint, _TEXT, b"not a request\n")
                writer.write(_sent(connection, answer))
                await writer.drain()
        writer.close()

    def _answer(self, request: h11.Request) -> Answer:
        if request.method != b"GET":
            return _NOT_ALLOWED, _TEXT, b"only GET\n"
        match request.target.partition(b"?")[0]:
            case b"/healthz":  # answering is the proof: the one loop of this process turns
                return _OK, _TEXT, b"ok\n"
            case b"/readyz":
                readiness = self._readiness()
                body = msgspec.json.encode(readiness) + b"\n"
                return _OK if readiness.ready else _UNAVAILABLE, "application/json", body
            case b"/metrics":
                body, content_type = self._metrics()
                return _OK, content_type, body
            case _:
                return _NOT_FOUND, _TEXT, b"/healthz, /readyz or /metrics\n"


async def _request(connection: h11.Connection, reader: asyncio.StreamReader) -> h11.Request:
    """Read the head of a request; a body is left unread. Raises h11.RemoteProtocolError for what is none."""
    while (event := connection.next_event()) is h11.NEED_DATA:
        connection.receive_data(await reader.read(_CHUNK))
    if not isinstance(event, h11.Request):
        raise ConnectionResetError("closed before it asked")
    return event


def _sent(connection: h11.Connection, answer: Answer) -> bytes:
    """Return the answer as it goes over the line."""
    status, content_type, body = answer
    headers = [("Content-Type", content_type), ("Content-Length", str(len(body))), ("Connection", "close")]
    head = connection.send(h11.Response(status_code=status, headers=headers))
    return (head or b"") + body


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
