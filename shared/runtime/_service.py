"""The skeleton of every service on the bus: one tenure per host after another, and an orderly end.

When the process is to stop, each host's runner is told so and given time to finish what must not be left half done;
then ownership is released, facts are flushed, the connection is drained, and the process exits with 0. A host whose
ownership is lost has its runner cancelled and stands by; a runner that fails is started again, and reads the
registers again. A process that cannot go on exits with a code, for its supervisor to restart it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, NoReturn

import structlog

from shared.protocol import subjects

from ._context import Context
from ._exit_codes import EXIT_BUS_UNREACHABLE, EXIT_OK, Fatal
from ._health import Seat
from ._nats import NatsBus
from ._ownership import Ownership
from ._program import Check, Program, first, launch
from .bus import BusError, NotPermitted

STOP_S: Final = 6.0  # for a runner to finish; longer than a slot command (1 s) and a close with its verification
_CANCEL_S: Final = 2.0  # for a cancelled runner to end
_RESTART_FIRST_S: Final = 0.1
_RESTART_MAX_S: Final = 5.0
_STEADY_S: Final = 60.0  # a runner that lived as long is restarted without a pause

HostRunner = Callable[[Context], Coroutine[Any, Any, None]]
_log = structlog.get_logger()


def run(
    service: str,
    host_runner: HostRunner,
    *,
    owned: bool = True,
    check: Check | None = None,
    argv: Sequence[str] | None = None,
) -> NoReturn:
    """Run a service until it is told to stop, and exit.

    `host_runner` is called for each host of HOLDFAST_HOSTS; with `owned`, only while this instance owns the host. It
    calls `context.ready()` when it has read the registers and answers, and returns soon after `context.stopping` is
    set. `check` looks, before anything is begun, for what the service cannot do without, and raises Fatal.
    """

    async def serve(program: Program) -> int:
        async with program.joined() as bus:
            return EXIT_OK if bus is None else await _Hosts(program, bus, host_runner, owned=owned).serve()

    launch(service, serve, check=check, argv=argv)


class _Hosts:
    """The hosts that one process serves over one connection."""

    def __init__(self, program: Program, bus: NatsBus, host_runner: HostRunner, *, owned: bool) -> None:
        self._program = program
        self._bus = bus
        self._settings = program.settings
        self._stopping = program.stopping
        self._host_runner = host_runner
        self._owned = owned
        self._seats = program.health.seats = {host: Seat(owned=owned) for host in program.settings.hosts}

    async def serve(self) -> int:
        """Serve all hosts until told to stop, or until the process cannot go on. Raises Fatal."""
        hosts = [asyncio.create_task(self._host(host), name=host) for host in self._settings.hosts]
        gone = asyncio.create_task(self._bus.gone.wait())
        everybody = asyncio.gather(*hosts)
        await first(everybody, gone, keep=True)
        try:
            if everybody.done():
                everybody.result()
                return EXIT_OK
        finally:
            gone.cancel()
            for task in hosts:
                task.cancel()
            await asyncio.wait(hosts, timeout=_CANCEL_S)
        _log.critical("the connection to the bus was closed for good", url=self._settings.nats_url_shown)
        return EXIT_BUS_UNREACHABLE

    async def _host(self, host: str) -> None:
        """Serve one host, tenure after tenure, until told to stop."""
        loop = asyncio.get_running_loop()
        pause = _RESTART_FIRST_S
        while not self._stopping.is_set():
            started = loop.time()
            try:
                await self._tenure(host)
            except Fatal:
                raise
            except NotPermitted as denied:
                if not self._seats[host].proved:
                    raise self._program.not_ours(denied) from denied
                _log.error("not permitted any more, starting over", host=host, error=str(denied))
            except BusError as trouble:
                _log.warning("service interrupted, starting over", host=host, error=str(trouble))
            except Exception as crash:  # noqa: BLE001 - the supervisor's job: log every crash, start over
                _log.error("service crashed, starting over", host=host, exc_info=crash)
            if loop.time() - started > _STEADY_S:
                pause = _RESTART_FIRST_S
            await self._program.pause(pause)
            pause = min(2 * pause, _RESTART_MAX_S)

    async def _tenure(self, host: str) -> None:
        """Own the host (if it is to be owned) and run its runner, until stopping or deposed."""
        if not self._owned:
            await self._run_runner(host, None)
            return
        key = subjects.owner_key(host, self._program.service)
        ownership = Ownership(
            self._bus,
            key,
            self._settings.instance,
            self._settings.owner_s,
            preferred=host == self._settings.hosts[0],
        )
        self._seats[host].ownership = ownership
        acquiring = asyncio.create_task(ownership.acquire())
        await first(acquiring, asyncio.create_task(self._stopping.wait()))
        if not acquiring.done():
            acquiring.cancel()
            await asyncio.wait({acquiring})
            return
        acquiring.result()
        keeping = asyncio.create_task(ownership.keep(), name=f"keep {key}")
        try:
            await self._run_runner(host, ownership)
        finally:
            await ownership.release()
            keeping.cancel()
            await asyncio.wait({keeping})

    async def _run_runner(self, host: str, ownership: Ownership | None) -> None:
        """Run the runner until it ends; told to stop it has STOP_S, deposed it has none."""
        context = Context(
            self._program.service, host, self._bus, self._settings, ownership, self._stopping, self._program.metrics
        )
        self._seats[host].context = context
        running = asyncio.create_task(self._host_runner(context), name=host)
        watching = [asyncio.create_task(self._stopping.wait())]
        if ownership is not None:
            watching.append(asyncio.create_task(ownership.lost.wait()))
        try:
            await first(running, *watching, keep=True)
            if self._stopping.is_set():
                await asyncio.wait({running, *watching[1:]}, timeout=STOP_S, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                running.result()
                return
            context.log.warning("cancelling", why="stopping took too long" if self._stopping.is_set() else "deposed")
        finally:
            self._seats[host].leave()
            for task in (running, *watching):
                task.cancel()
            await self._ended(running)

    async def _ended(self, running: asyncio.Future[None]) -> None:
        """Wait until a cancelled runner has ended: no second one beside it; but once stopping, in bounded time."""
        if not running.done():
            stopping = asyncio.create_task(self._stopping.wait())
            await first(running, stopping)
        await asyncio.wait({running}, timeout=_CANCEL_S)
