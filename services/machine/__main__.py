"""`python -m services.machine`: simulated hardware for one host.

The hardware is there before the bus and without it: it serves its socket at once, and joins the bus when there is
one. So it has a main of its own instead of a runner per host.
"""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from shared.runtime import (
    EXIT_FAILED,
    EXIT_OK,
    EXIT_UNWRITABLE,
    EXIT_USAGE,
    BusError,
    BusRefused,
    Context,
    Fatal,
    NatsBus,
    NotPermitted,
    Program,
    Seat,
    Settings,
    launch,
)

from . import Lab, Machine, MachineError, MachineSocket, TopologyFile, load
from ._lab import SERVICE

_AGAIN_S: Final = 0.5  # before the next try to serve

_log = structlog.get_logger()


def bench(settings: Settings) -> TopologyFile:
    """Read what is on the bench. Raises Fatal where it cannot stand."""
    if len(settings.hosts) != 1:
        raise Fatal(f"a machine is one host; HOLDFAST_HOSTS names {len(settings.hosts)}", EXIT_USAGE)
    try:
        return load(settings.topology)
    except MachineError as error:
        raise Fatal(str(error), EXIT_USAGE) from error


async def power_on(program: Program) -> int:
    """Run the machine until it is told to stop."""
    settings = program.settings
    machine = Machine(bench(settings))
    program.health.seats = {settings.hosts[0]: Seat(owned=False)}
    socket = MachineSocket(machine, settings.machine_socket)
    try:
        await socket.start()
    except MachineError as error:
        raise Fatal(str(error), EXIT_FAILED) from error
    except OSError as error:
        raise Fatal(
            f"the socket {settings.machine_socket} cannot be made ({error.strerror or error}): set "
            "HOLDFAST_MACHINE_SOCKET to a path in a directory that can be written",
            EXIT_UNWRITABLE,
        ) from error
    functions = len(machine.enumerate())
    _log.info("powered on", host=settings.hosts[0], socket=str(settings.machine_socket), functions=functions)
    try:
        await _on_the_bus(program, machine)
    finally:
        await socket.close()
    return EXIT_OK


async def _on_the_bus(program: Program, machine: Machine) -> None:
    """Serve the lab on the bus until told to stop, connecting again if the connection is closed for good."""
    (seat,) = program.health.seats.values()
    while not program.stopping.is_set():
        try:
            async with program.joined() as bus:
                if bus is not None:
                    await _serve(program, machine, bus)
        except BusError as error:
            if not seat.proved and isinstance(error, BusRefused):
                raise
            if not seat.proved and isinstance(error, NotPermitted):
                raise program.not_ours(error) from error
            _log.warning("the bus is away; the hardware goes on", host=program.settings.hosts[0], error=str(error))
        await program.pause(_AGAIN_S)


async def _serve(program: Program, machine: Machine, bus: NatsBus) -> None:
    """Serve over one connection, for as long as it lasts."""
    (host,) = program.settings.hosts
    seat = program.health.seats[host]
    seat.context = Context(SERVICE, host, bus, program.settings, None, program.stopping, program.metrics)
    lab = Lab(machine, host)
    ends = [asyncio.create_task(bus.gone.wait()), asyncio.create_task(program.stopping.wait())]
    try:
        serving = await lab.serve(bus)
        seat.context.ready()
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        await serving.close()
    finally:
        seat.leave()
        for end in ends:
            end.cancel()
        await lab.close()


if __name__ == "__main__":
    launch(SERVICE, power_on, check=bench)
