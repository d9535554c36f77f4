"""What every process of Holdfast goes through, in this order, so that none ever stands half started.

Settings, log file, what the service itself must have (`check`), HTTP port, and only then the bus and the work. What
is missing ends the process with one line that names it, and with a code of its own. SIGTERM and SIGINT set `stopping`;
a second signal exits at once.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final, NoReturn

import msgspec
import structlog

from ._exit_codes import EXIT_CREDENTIAL, EXIT_FAILED, EXIT_OK, EXIT_USAGE, Fatal
from ._health import Health
from ._health_server import HealthServer
from ._log_file import log_file
from ._log_level import serve_log_level
from ._logs import configure_logging
from ._metrics import Metrics
from ._nats import NatsBus, connect
from ._process_gauges import process_gauges
from ._settings import Settings, SettingsError
from .bus import BusError, BusRefused, NotPermitted

_AGAIN_S: Final = 1.0  # before what the bus did not do is tried again
_SIGNALLED: Final = 128  # a shell counts deaths by signal from here

Check = Callable[[Settings], object]  # what it returns is not used
_log = structlog.get_logger()


class Program:
    """One process: its settings, whether it is to stop, and what it says of itself."""

    def __init__(self, service: str, settings: Settings) -> None:
        self.service = service
        self.settings = settings
        self.stopping = asyncio.Event()
        self.health = Health(service, settings.instance)
        self.metrics = Metrics(service, partial(process_gauges, self.health))

    @contextlib.asynccontextmanager
    async def joined(self) -> AsyncIterator[NatsBus | None]:
        """Connect, trying for ever, and close the connection at the end; None if told to stop before.

        Raises BusRefused where the bus is there and will not have us, or is not who it should be.
        """
        bus = await self._connected()
        if bus is None:
            yield None
            return
        try:
            await self._named(bus)
            self.health.bus = bus
            yield bus
        finally:
            self.health.bus = None
            await bus.close()

    def not_ours(self, denied: NotPermitted) -> BusRefused:
        """Return what it means where a service that starts may not do its own work: the key is somebody else's."""
        hosts = ", ".join(self.settings.hosts)
        told = f"the credential {self.settings.nats_credential} is not that of {self.service} for {hosts} ({denied})"
        return BusRefused(f"{told}; `holdfast keys init` makes one for each service, and each host", EXIT_CREDENTIAL)

    async def _named(self, bus: NatsBus) -> None:
        """Answer to our name from now on, for as long as the connection lasts. Raises BusRefused where we may not."""
        while not self.stopping.is_set():
            try:
                await serve_log_level(bus, self.service, self.settings.instance)
            except NotPermitted as denied:
                raise self.not_ours(denied) from denied
            except BusError as error:
                _log.debug("our name is not known yet", error=str(error))
                await self.pause(_AGAIN_S)
            else:
                return

    async def pause(self, seconds: float) -> None:
        """Wait, but no longer than until the process is to stop."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.stopping.wait()

    async def _connected(self) -> NatsBus | None:
        connecting = asyncio.create_task(connect(self.settings, self.service))
        await first(connecting, asyncio.create_task(self.stopping.wait()))
        if not connecting.done():
            connecting.cancel()
            await asyncio.wait({connecting})
            return None
        return connecting.result()

    def signalled(self, number: signal.Signals) -> None:
        """Take a signal to stop."""
        if self.stopping.is_set():
            os._exit(_SIGNALLED + number)
        _log.info("stopping", signal=number.name)
        self.health.stopping = True
        self.stopping.set()


Main = Callable[[Program], Coroutine[Any, Any, int]]


def launch(service: str, main: Main, *, check: Check | None = None, argv: Sequence[str] | None = None) -> NoReturn:
    """Start, run `main` to its end, and exit with the code that it returns.

    `check` raises Fatal where something is missing that the service cannot do without; it must leave nothing behind.
    """
    if not __debug__:
        _refuse(service, Fatal("does not start with assertions off (python -O): they guard the hardware", EXIT_USAGE))
    parser = argparse.ArgumentParser(prog=f"python -m services.{service}", description=f"Holdfast's {service} service.")
    parser.add_argument("--print-config", action="store_true", help="print the settings as JSON and exit")
    arguments = parser.parse_args(argv)
    try:
        settings = Settings.from_env(service)
        if arguments.print_config:
            sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(settings.shown())) + b"\n")
            sys.exit(EXIT_OK)
        configure_logging(service, settings.log_level, log_file(service, settings))
    except SettingsError as error:
        _refuse(service, Fatal(f"bad settings\n{error}", EXIT_USAGE))
    except Fatal as fatal:
        _refuse(service, fatal)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        code = runner.run(_run(Program(service, settings), main, check))
    sys.exit(code)


def _refuse(service: str, fatal: Fatal) -> NoReturn:
    """End before there are logs."""
    sys.stderr.write(f"{service}: {fatal}\n")
    sys.exit(fatal.code)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415 - optional
    except ImportError:
        return None
    return uvloop.new_event_loop


async def _run(program: Program, main: Main, check: Check | None) -> int:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, program.signalled, number)
    settings, health = program.settings, program.health
    address = settings.health_address(program.service)
    try:
        if check is not None:
            check(settings)
        _log.info("starting", instance=settings.instance, hosts=settings.hosts)
        async with HealthServer(address, health.readiness, program.metrics.render):
            code = await main(program)
    except BusRefused as refused:
        return _cannot_go_on(refused, refused.exit_code)
    except Fatal as fatal:
        return _cannot_go_on(fatal, fatal.code)
    except Exception as crash:  # noqa: BLE001 - the last place to say so in the log; the supervisor starts it again
        _log.critical("crashed", code=EXIT_FAILED, exc_info=crash)
        return EXIT_FAILED
    _log.info("stopped", code=code)
    return code


def _cannot_go_on(error: Exception, code: int) -> int:
    _log.critical("cannot go on", error=str(error), code=code)
    return code


async def first(*awaited: asyncio.Future[Any], keep: bool = False) -> None:
    """Wait until one of these is done; cancel all but the first, unless told to `keep` them."""
    await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
    if not keep:
        for other in awaited[1:]:
            other.cancel()
