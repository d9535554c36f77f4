"""The skeleton of every service: settings, logs, the bus, one tenure per host after another, and an orderly end.

On SIGTERM or SIGINT each host's runner is told to stop and given time to finish what must not be left half done; then
ownership is released, facts are flushed, the connection is drained, and the process exits with 0. A second signal
exits at once. A host whose ownership is lost has its runner cancelled and stands by; a runner that fails is started
again, and reads the registers again. A process that cannot go on exits with a code, for its supervisor to restart it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, NoReturn

import msgspec
import structlog

from shared.protocol import subjects

from ._context import Context
from ._logs import configure_logging
from ._nats import NatsBus, connect
from ._ownership import Ownership
from ._settings import Settings, SettingsError
from .bus import BusError

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_BUS_UNREACHABLE: Final = 8
STOP_S: Final = 6.0  # for a runner to finish; longer than a slot command (1 s) and a close with its verification
_CANCEL_S: Final = 2.0  # for a cancelled runner to end
_RESTART_FIRST_S: Final = 0.1
_RESTART_MAX_S: Final = 5.0
_STEADY_S: Final = 60.0  # a runner that lived as long is restarted without a pause

HostRunner = Callable[[Context], Coroutine[Any, Any, None]]
_log = structlog.get_logger()


class Fatal(Exception):  # noqa: N818 - named for what it does
    """The process cannot go on, and starting the runner again would not help. Logged; exits with `code`."""

    def __init__(self, message: str, code: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.code = code


def run(service: str, host_runner: HostRunner, *, owned: bool = True, argv: Sequence[str] | None = None) -> NoReturn:
    """Run a service until it is told to stop, and exit.

    `host_runner` is called for each host of HOLDFAST_HOSTS; with `owned`, only while this instance owns the host. It
    calls `context.ready()` when it answers, and returns soon after `context.stopping` is set.
    """
    if not __debug__:
        _exit_usage(f"{service} does not start with assertions off (python -O): they guard the hardware")
    parser = argparse.ArgumentParser(prog=f"python -m services.{service}", description=f"Holdfast's {service} service.")
    parser.add_argument("--print-config", action="store_true", help="print the settings as JSON and exit")
    arguments = parser.parse_args(argv)
    try:
        settings = Settings.from_env(service)
    except SettingsError as error:
        _exit_usage(f"{service}: bad settings\n{error}")
    if arguments.print_config:
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(settings.shown())) + b"\n")
        sys.exit(EXIT_OK)
    configure_logging(service, settings.log_level)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        code = runner.run(_Process(service, host_runner, settings, owned=owned).run())
    sys.exit(code)


def _exit_usage(text: str) -> NoReturn:
    sys.stderr.write(text + "\n")
    sys.exit(EXIT_USAGE)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415 - optional
    except ImportError:
        return None
    return uvloop.new_event_loop


class _Process:
    """One service process."""

    def __init__(self, service: str, host_runner: HostRunner, settings: Settings, *, owned: bool) -> None:
        self._service = service
        self._host_runner = host_runner
        self._settings = settings
        self._owned = owned
        self._stopping = asyncio.Event()
        self._contexts: set[Context] = set()

    async def run(self) -> int:
        """Run until told to stop; return the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        _log.info("starting", instance=self._settings.instance, hosts=self._settings.hosts)
        bus = await self._connected()
        if bus is None:
            return EXIT_OK
        code = await self._serve(bus)
        await bus.close()
        _log.info("stopped", code=code)
        return code

    def _on_signal(self, number: signal.Signals) -> None:
        if self._stopping.is_set():
            os._exit(128 + number)  # as a shell counts deaths by signal
        _log.info("stopping", signal=number.name)
        self._stopping.set()
        for context in self._contexts:
            context.stopping.set()

    async def _connected(self) -> NatsBus | None:
        """Connect, trying for ever; None if told to stop before."""
        connecting = asyncio.create_task(connect(self._settings, self._service))
        await _first(connecting, asyncio.create_task(self._stopping.wait()))
        if connecting.done():
            return connecting.result()
        connecting.cancel()
        await asyncio.wait({connecting})
        return None

    async def _serve(self, bus: NatsBus) -> int:
        """Serve all hosts until told to stop, or until the process cannot go on."""
        hosts = [asyncio.create_task(self._host(bus, host), name=host) for host in self._settings.hosts]
        gone = asyncio.create_task(bus.gone.wait())
        everybody = asyncio.gather(*hosts)
        await _first(everybody, gone, keep=True)
        try:
            if everybody.done():
                everybody.result()
                return EXIT_OK
        except Fatal as fatal:
            _log.critical("cannot go on", error=str(fatal), code=fatal.code)
            return fatal.code
        finally:
            gone.cancel()
            for task in hosts:
                task.cancel()
            await asyncio.wait(hosts, timeout=_CANCEL_S)
        _log.critical("the connection to the bus was closed for good", url=self._settings.nats_url_shown)
        return EXIT_BUS_UNREACHABLE

    async def _host(self, bus: NatsBus, host: str) -> None:
        """Serve one host, tenure after tenure, until told to stop."""
        loop = asyncio.get_running_loop()
        pause = _RESTART_FIRST_S
        while not self._stopping.is_set():
            started = loop.time()
            try:
                await self._tenure(bus, host)
            except Fatal:
                raise
            except BusError as trouble:
                _log.warning("service interrupted, starting over", host=host, error=str(trouble))
            except Exception as crash:  # noqa: BLE001 - the supervisor's job: log every crash, start over
                _log.error("service crashed, starting over", host=host, exc_info=crash)
            if loop.time() - started > _STEADY_S:
                pause = _RESTART_FIRST_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stopping.wait()
            pause = min(2 * pause, _RESTART_MAX_S)

    async def _tenure(self, bus: NatsBus, host: str) -> None:
        """Own the host (if it is to be owned) and run its runner, until stopping or deposed."""
        if not self._owned:
            await self._run_runner(Context(self._service, host, bus, self._settings, None))
            return
        key = subjects.owner_key(host, self._service)
        ownership = Ownership(bus, key, self._settings.instance, self._settings.owner_s)
        acquiring = asyncio.create_task(ownership.acquire())
        await _first(acquiring, asyncio.create_task(self._stopping.wait()))
        if not acquiring.done():
            acquiring.cancel()
            await asyncio.wait({acquiring})
            return
        acquiring.result()
        keeping = asyncio.create_task(ownership.keep(), name=f"keep {key}")
        try:
            await self._run_runner(Context(self._service, host, bus, self._settings, ownership))
        finally:
            await ownership.release()
            keeping.cancel()
            await asyncio.wait({keeping})

    async def _run_runner(self, context: Context) -> None:
        """Run the runner until it ends; told to stop it has STOP_S, deposed it has none."""
        self._contexts.add(context)
        if self._stopping.is_set():
            context.stopping.set()
        running = asyncio.create_task(self._host_runner(context), name=context.host)
        watching = [asyncio.create_task(context.stopping.wait())]
        if context.ownership is not None:
            watching.append(asyncio.create_task(context.ownership.lost.wait()))
        try:
            await _first(running, *watching, keep=True)
            if context.stopping.is_set():
                await asyncio.wait({running, *watching[1:]}, timeout=STOP_S, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                running.result()
                return
            context.log.warning("cancelling", why="stopping took too long" if self._stopping.is_set() else "deposed")
        finally:
            self._contexts.discard(context)
            for task in (running, *watching):
                task.cancel()
            await self._ended(running)

    async def _ended(self, running: asyncio.Future[None]) -> None:
        """Wait until a cancelled runner has ended: no second one beside it; but once stopping, in bounded time."""
        if not running.done():
            stopping = asyncio.create_task(self._stopping.wait())
            await _first(running, stopping)
        await asyncio.wait({running}, timeout=_CANCEL_S)


async def _first(*awaited: asyncio.Future[Any], keep: bool = False) -> None:
    """Wait until one of these is done; cancel all but the first, unless told to `keep` them."""
    await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
    if not keep:
        for other in awaited[1:]:
            other.cancel()
