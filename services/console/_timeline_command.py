"""`timeline`: a recovery drawn to scale, out of the facts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from ._facts import of_host
from ._lease_facts import chosen
from ._options import DEFAULT_HOST, DEFAULT_TIMEOUT_S, DEFAULT_URL, Host, Json, Nats, Timeout
from ._output import console, print_json, write_file
from ._run import ask
from ._session import Session
from ._timeline import Timeline, build, chrome_trace, draw


def timeline(
    lease: Annotated[
        str | None, typer.Argument(help="The recovery's lease, or a part of it; the last recovery if none is named.")
    ] = None,
    trace: Annotated[Path | None, typer.Option(help="Write it in Chrome's trace event format.")] = None,
    nats: Nats = DEFAULT_URL,
    host: Host = DEFAULT_HOST,
    as_json: Json = False,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
) -> None:
    """Draw a recovery with its waits to scale."""
    ask(nats, host, timeout, lambda session: _timeline(session, lease, trace, as_json=as_json))


async def _timeline(session: Session, lease: str | None, trace: Path | None, *, as_json: bool) -> None:
    facts = [fact async for fact in session.bus.facts(of_host(session.host))]
    drawn = build(facts, chosen(facts, lease, session.host))
    assert drawn is not None  # facts name it, or it would not have been chosen
    if trace is not None:
        write_trace(drawn, trace)
    if as_json:
        print_json(drawn)
    else:
        show_timeline(console(), drawn)


def show_timeline(out: Console, drawn: Timeline) -> None:
    """Draw it as wide as the terminal is."""
    started = drawn.started.astimezone().strftime("%H:%M:%S.%f")[:-3]
    out.print(Text(f"Recovery of {drawn.port}, lease {drawn.lease}, from {started}", style="bold"), soft_wrap=True)
    for line in draw(drawn, out.width, ascii_only=out.options.ascii_only):
        out.print(Text(line), soft_wrap=True, no_wrap=True)


def write_trace(drawn: Timeline, path: Path) -> None:
    """Write it for Chrome's viewer. Raises Failure if the file cannot be written."""
    write_file(path, json.dumps(chrome_trace(drawn), indent=1))
