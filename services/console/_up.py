"""`up`: the whole fleet on this machine, its logs merged, until a signal ends it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
from rich.text import Text

from ._exit import ExitCode, Failure
from ._fleet import BUS, Fleet
from ._output import console, plain, print_json, tell
from ._process import ProcessError

_RESTART_PAUSE_S: Final = 1.0
# How a service says that what it was given is wrong: settings, a topology, or (fabric) a ledger damaged, not writable,
# or another fabric's.
_OF_INPUT: Final = frozenset({ExitCode.USAGE, os.EX_DATAERR, os.EX_IOERR, os.EX_TEMPFAIL})
_FIRST_KEYS: Final = frozenset({"at", "timestamp", "level", "service", "event"})
_WORTH_A_LINE: Final = ("[WRN]", "[ERR]", "[FTL]")  # of nats-server; the rest of what it says is routine
_STYLES: Final = {
    "machine": "magenta",
    "fabric": "cyan",
    "hotplug": "blue",
    "aer": "yellow",
    "dpc": "green",
    "coordinator": "bold",
    BUS: "dim",
}
_LEVEL_STYLES: Final = {"warning": "yellow", "error": "red", "critical": "bold red"}

_clock = time.monotonic
OnLine = Callable[[str, str], None]


async def up(
    topology: Path, *, port: int | None, state: Path | None, log_dir: Path | None, host: str, as_json: bool
) -> ExitCode:
    """Run until SIGTERM or SIGINT. Raises Failure if something does not start, OSError if nobody takes its lines."""
    stopping = _on_signal()
    unread: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    show = _json_line if as_json else _line

    def on_line(name: str, line: str) -> None:
        if unread.done():  # read on, or the service would block
            return
        try:
            show(name, line)
        except OSError as error:
            unread.set_exception(error)

    fleet = Fleet(
        topology,
        state_dir=state,
        port=port,
        host=host,
        environment={} if log_dir is None else {"HOLDFAST_LOG_DIR": str(log_dir)},
        on_line=on_line,
    )
    running = asyncio.create_task(_run(fleet))
    signalled = asyncio.create_task(stopping.wait())
    until: set[asyncio.Future[Any]] = {running, signalled, unread}
    await asyncio.wait(until, return_when=asyncio.FIRST_COMPLETED)
    if not running.done():
        running.cancel()
    signalled.cancel()
    try:
        await running
    except asyncio.CancelledError:
        if unread.done():
            unread.result()
        return ExitCode.OK
    except ProcessError as error:
        raise Failure(ExitCode.USAGE if error.code in _OF_INPUT else ExitCode.INTERNAL, str(error)) from error
    raise AssertionError("a fleet runs until it is told to stop")


async def _run(fleet: Fleet) -> None:
    """Run the fleet until cancelled; then everything is stopped in order."""
    since = _clock()
    async with fleet, asyncio.TaskGroup() as keepers:
        tell(f"ready after {_clock() - since:.1f} s: NATS at {fleet.url}, host {fleet.host}; Ctrl-C ends it")
        for name in tuple(fleet.processes):
            keepers.create_task(_keep(fleet, name))


async def _keep(fleet: Fleet, name: str) -> None:
    """Start a process again whenever it ends, as a supervisor would."""
    while True:
        code = await fleet.ended(name)
        tell(f"{name} ended with code {code}; starting it again in {_RESTART_PAUSE_S:g} s")
        await asyncio.sleep(_RESTART_PAUSE_S)
        try:
            await fleet.restart(name)
        except (ProcessError, Failure) as error:
            tell(str(error))


def _on_signal() -> asyncio.Event:
    """Return the event that the first SIGTERM or SIGINT sets; a second one ends the command the hard way."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop(number: int) -> None:
        stopping.set()
        loop.remove_signal_handler(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    return stopping


def _json_line(name: str, line: str) -> None:
    """Pass a JSON line on; wrap anything else, so that the stream stays NDJSON."""
    fields = _fields(line)
    print_json({"service": name, "event": line} if fields is None else fields)


def _line(name: str, line: str) -> None:
    fields = _fields(line)
    if fields is None:
        if name != BUS or any(mark in line for mark in _WORTH_A_LINE):
            _print(name, Text(line))
        return
    at = str(fields.get("at", ""))[11:23]
    level = str(fields.get("level", ""))
    rest = "  ".join(f"{key}={plain(value)}" for key, value in fields.items() if key not in _FIRST_KEYS)
    event = Text(str(fields.get("event", "")), style=_LEVEL_STYLES.get(level, ""))
    _print(name, Text.assemble((f"{at} ", "dim"), event, (f"  {rest}", "dim")))


def _print(name: str, text: Text) -> None:
    console().print(Text.assemble((f"{name:<12}", _STYLES.get(name, "")), text), soft_wrap=True)


def _fields(line: str) -> dict[str, Any] | None:
    try:
        return msgspec.json.decode(line, type=dict[str, Any])
    except msgspec.MsgspecError:
        return None
