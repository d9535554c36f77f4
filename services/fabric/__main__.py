"""`python -m services.fabric`: the fabric of one host.

Exit codes besides those of every service: 65 the ledger is damaged, 74 it cannot be written, 75 another fabric of
this host is running. None of them changes anything, and each says what to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path
from typing import Any, Final

from shared.protocol import Reason
from shared.protocol.fabric import Role
from shared.runtime import EXIT_UNWRITABLE, EXIT_USAGE, Context, Fatal, Request, Settings, run

from ._actor import Asked, Fabric, Lost, Returned, endpoints
from ._leases import refuse
from ._ledger import Ledger, LedgerError
from ._machine_socket import MachineSocket

_SOCKET_PATH_MAX: Final = 107  # bytes: sun_path of unix(7), less the NUL at its end
_HARDWARE_S: Final = 2.0  # for the hardware to be there; without it, leases are answered for from the ledger


def check(settings: Settings) -> None:
    """Look whether there is one host, a path that a socket may have, and a ledger to read and write. Raises Fatal."""
    if len(settings.hosts) != 1:
        raise Fatal("a fabric is one process per host: HOLDFAST_HOSTS must name one", EXIT_USAGE)
    path = settings.machine_socket
    if len(os.fsencode(path)) > _SOCKET_PATH_MAX:
        raise Fatal(
            f"the socket {path} cannot be there (AF_UNIX path too long): set HOLDFAST_MACHINE_SOCKET to a path of at "
            f"most {_SOCKET_PATH_MAX} bytes",
            EXIT_UNWRITABLE,
        )
    _open(settings.ledger).close()


async def host(context: Context) -> None:
    """Serve the host until told to stop."""
    with contextlib.closing(_open(context.settings.ledger)) as ledger:
        await _serve(context, ledger)


def _open(path: Path) -> Ledger:
    try:
        return Ledger(path)
    except LedgerError as error:
        raise Fatal(str(error), error.exit_code) from error


async def _serve(context: Context, ledger: Ledger) -> None:
    context.wait("no hardware has answered yet")
    hardware = MachineSocket(str(context.settings.machine_socket))
    fabric = Fabric(context, hardware, ledger)
    answering: set[asyncio.Task[None]] = set()

    def receive(request: Request, role: Role | None) -> None:
        if not fabric.tell(Asked(request, role)):
            task = asyncio.create_task(request.answer(refuse(Reason.STOPPING, "too many requests; ask again")))
            answering.add(task)
            task.add_done_callback(answering.discard)

    def returned() -> None:
        fabric.tell(Returned())

    def lost() -> None:
        fabric.tell(Lost())

    stopping = asyncio.create_task(context.stopping.wait())
    running = {
        asyncio.create_task(hardware.run(returned, lost), name="machine"),
        asyncio.create_task(fabric.run(), name="fabric"),
    }
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_HARDWARE_S):
            await fabric.enumerated.wait()
    service = await context.bus.serve("fabric", endpoints(context.host, receive))
    telling = asyncio.create_task(_tell_ready(context, fabric))
    try:
        ends: list[asyncio.Future[Any]] = [stopping, fabric.broken, *running]
        with context.metrics.reading(fabric.gauges):
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if fabric.broken.done():
            error = fabric.broken.result()
            raise Fatal(str(error), error.exit_code)
        for task in running:
            if task.done():
                task.result()
    finally:
        await service.close()
        tasks: list[asyncio.Task[Any]] = [stopping, telling, *running]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _tell_ready(context: Context, fabric: Fabric) -> None:
    """Be ready while the hardware is there, and has been seen: without it, the ledger is all that is known."""
    while True:
        await fabric.enumerated.wait()
        context.ready()
        await fabric.lost.wait()
        context.wait("the hardware does not answer")


if __name__ == "__main__":
    run("fabric", host, owned=False, check=check)
