"""`python -m services.machine`: simulated hardware for one host.

The hardware is there before the bus and without it: it serves its socket at once, and joins the bus when there is
one. So it does not use the skeleton of the services, which begins with the bus.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence
from typing import Final

import msgspec
import structlog

from shared.runtime import (
    EXIT_FAILED,
    EXIT_OK,
    EXIT_USAGE,
    BusError,
    Settings,
    SettingsError,
    configure_logging,
    connect,
)

from . import Lab, Machine, MachineError, MachineSocket, TopologyFile, load
from ._lab import SERVICE

_LEAVE_S: Final = 2.0  # for the bus connection to close
_AGAIN_S: Final = 0.5  # before the next try to serve

_log = structlog.get_logger()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the machine until it is told to stop; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m services.machine", description="Holdfast's simulated hardware.")
    parser.add_argument("--print-config", action="store_true", help="print the settings as JSON and exit")
    arguments = parser.parse_args(argv)
    try:
        settings = Settings.from_env(SERVICE)
        if arguments.print_config:
            sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(settings.shown())) + b"\n")
            return EXIT_OK
        bench = _bench(settings)
    except (SettingsError, MachineError) as error:
        sys.stderr.write(f"{SERVICE}: {error}\n")
        return EXIT_USAGE
    configure_logging(SERVICE, settings.log_level)
    return asyncio.run(_run(settings, bench))


def _bench(settings: Settings) -> TopologyFile:
    if len(settings.hosts) != 1:
        raise MachineError(f"a machine is one host; HOLDFAST_HOSTS names {len(settings.hosts)}")
    return load(settings.topology)


async def _run(settings: Settings, bench: TopologyFile) -> int:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    try:
        machine = Machine(bench)
        socket = MachineSocket(machine, settings.machine_socket)
        await socket.start()
    except (MachineError, OSError) as error:
        _log.critical("cannot start", socket=str(settings.machine_socket), error=str(error))
        return EXIT_FAILED
    host = settings.hosts[0]
    _log.info("powered on", host=host, socket=str(settings.machine_socket), functions=len(machine.enumerate()))
    stop = asyncio.create_task(stopping.wait())
    joined = asyncio.create_task(_on_the_bus(settings, machine, host), name="bus")
    await asyncio.wait({stop, joined}, return_when=asyncio.FIRST_COMPLETED)
    failed = joined.exception() if joined.done() else None  # a bug: the bus being away ends nothing
    stop.cancel()
    joined.cancel()
    await asyncio.wait({stop, joined}, timeout=_LEAVE_S)
    await socket.close()
    if failed is not None:
        _log.critical("crashed", host=host, exc_info=failed)
        return EXIT_FAILED
    _log.info("stopped", host=host)
    return EXIT_OK


async def _on_the_bus(settings: Settings, machine: Machine, host: str) -> None:
    """Serve the lab on the bus, connecting again if the connection is closed for good."""
    while True:
        bus = await connect(settings, SERVICE)
        lab = Lab(machine, host)
        try:
            serving = await lab.serve(bus)
            _log.info("ready", host=host, instance=settings.instance)
            await bus.gone.wait()
            _log.warning("the bus is gone; the hardware goes on", host=host)
            await serving.close()
        except BusError as error:
            _log.warning("the bus is away again", host=host, error=str(error))
            await asyncio.sleep(_AGAIN_S)
        finally:
            await lab.close()
            await bus.close()


if __name__ == "__main__":
    sys.exit(main())
