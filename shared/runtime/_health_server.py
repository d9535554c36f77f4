"""HTTP for whoever looks after a service: `/healthz` (it turns), `/readyz` (rely on it), `/metrics` (Prometheus).

It listens before anything else is begun, and until everything has ended: a service that cannot have its port does
not start half, and one that waits for its bus can say so.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

import msgspec
import structlog
from aiohttp import web

from ._exit_codes import EXIT_PORT, Fatal
from ._health import Readiness

_CLOSE_S: Final = 0.5  # for requests under way at the end
_OK: Final = 200
_UNAVAILABLE: Final = 503

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
        application = web.Application()
        application.router.add_get("/healthz", self._healthz)
        application.router.add_get("/readyz", self._readyz)
        application.router.add_get("/metrics", self._scrape)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=_CLOSE_S)

    async def __aenter__(self) -> Self:
        """Listen. Raises Fatal where that cannot be."""
        if self._address is None:
            return self
        await self._runner.setup()
        host, port = self._address
        try:
            await web.TCPSite(self._runner, host, port).start()
        except OSError as error:
            await self._runner.cleanup()
            raise Fatal(
                f"health and metrics cannot be served at {host}:{port} ({error.strerror or error}): "
                "set HOLDFAST_HEALTH to another host:port, or to off",
                EXIT_PORT,
            ) from error
        _log.info("health served", url=_url(*self._runner.addresses[0][:2]))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()

    async def _healthz(self, _: web.Request) -> web.Response:
        """Answering is the proof: the one loop of this process turns."""
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        readiness = self._readiness()
        return web.Response(
            body=msgspec.json.encode(readiness) + b"\n",
            status=_OK if readiness.ready else _UNAVAILABLE,
            content_type="application/json",
        )

    async def _scrape(self, _: web.Request) -> web.Response:
        body, content_type = self._metrics()
        return web.Response(body=body, headers={"Content-Type": content_type})


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
