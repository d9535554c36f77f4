"""What a command prints: tables and lines for people, JSON for programs; colour only on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from shared.protocol import to_builtins

from ._exit import ExitCode, Failure

_PIPE_WIDTH: Final = 200  # columns where there is no terminal: a table that is wrapped cannot be searched
_VALUE_MAX: Final = 160  # characters; `--json` has all of them


def console(*, stderr: bool = False) -> Console:
    """Return a console that takes text literally: `[8086:0a54]` is no markup."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _PIPE_WIDTH
    return Console(stderr=stderr, width=width, markup=False, highlight=False, emoji=False)


def print_json(value: Any) -> None:
    """Print one JSON document on one line, at once: a stream of them is NDJSON."""
    text = msgspec.json.encode(to_builtins(value)).decode()
    print(text, flush=True)  # noqa: T201 - stdout is this command's interface


def write_file(path: Path, text: str) -> None:
    """Write a file that the user named. Raises Failure where that cannot be."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise Failure(ExitCode.USAGE, f"{path} cannot be written: {error.strerror}") from error


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str | Text]], *, empty: str) -> None:
    """Print a table, or the sentence `empty` if it has no rows."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console().print(table if table.row_count else empty)


def plain(value: Any) -> str:
    """Write a value of a fact or a log line for people, on one line of bearable length."""
    value = to_builtins(value)
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return text if len(text) <= _VALUE_MAX else f"{text[: _VALUE_MAX - 1]}…"


def complain(message: str) -> None:
    """Print an error line on stderr."""
    console(stderr=True).print(Text.assemble(("holdfast: ", "bold red"), message), soft_wrap=True)


def tell(message: str) -> None:
    """Print what goes on, on stderr: stdout stays the result's."""
    console(stderr=True).print(Text(message, style="dim"), soft_wrap=True)
