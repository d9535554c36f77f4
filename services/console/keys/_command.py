"""`keys init` makes the keys of everybody on the bus, `keys show` says whose they are: a Typer application of its own."""

from __future__ import annotations

import datetime as dt
import re
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from services.console._exit import ExitCode, Failure
from services.console._output import print_json, print_table, tell
from shared.protocol import subjects

from . import _store as store
from ._users import allowed

DEFAULT_HOSTS: Final = ("lab",)
DEFAULT_NAMES: Final = ("nats", "nats-1", "nats-2", "nats-3")
DEFAULT_DAYS: Final = 825
_HOSTS: Final = f"Hosts, separated by commas; without it those that have keys, else {','.join(DEFAULT_HOSTS)}."
_NAMES: Final = (
    f"Names and addresses of the NATS servers; without it those of the certificate, else {','.join(DEFAULT_NAMES)}."
)
_SERVER_NAME: Final = re.compile(r"[A-Za-z0-9:][A-Za-z0-9.:_-]*")

app = typer.Typer(
    help="Make the keys of everybody on the bus, or show whose they are.", no_args_is_help=True, add_completion=False
)
Directory = Annotated[Path, typer.Argument(help="Directory of the keys.")]
Json = Annotated[bool, typer.Option("--json", help="JSON for programs; one document per line.")]


@app.command()
def init(
    directory: Directory,
    hosts: Annotated[str | None, typer.Option(help=_HOSTS)] = None,
    names: Annotated[str | None, typer.Option(help=_NAMES)] = None,
    days: Annotated[int, typer.Option(min=1, max=3650, help="How long a server's certificate is good.")] = DEFAULT_DAYS,
    if_missing: Annotated[bool, typer.Option("--if-missing", help="Complete what is there, and keep it.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there: all keys become invalid.")] = False,
    as_json: Json = False,
) -> None:
    """Make nkeys, a certificate, and the server's table of who may do what."""
    wanted, served = _listed(hosts, "--hosts"), _listed(names, "--names")
    for host in wanted:
        try:
            subjects.host_name(host)
        except ValueError as error:
            raise Failure(ExitCode.USAGE, f"--hosts: {error}") from error
    if strange := [name for name in served if not _SERVER_NAME.fullmatch(name)]:
        raise Failure(ExitCode.USAGE, f"--names: {strange[0]!r} is neither a name in the DNS nor an address")
    there = store.present(directory)
    if if_missing and force:
        raise Failure(ExitCode.USAGE, "--if-missing keeps what is there, --force replaces it: choose one")
    if not there and (others := store.strangers(directory)):
        told = f"{directory} is no directory of keys: {others[0]} is there; name one that is empty, or does not exist"
        raise Failure(ExitCode.USAGE, told)
    if there and not (if_missing or force):
        told = f"{directory} has keys already ({', '.join(there[:3])} …); --if-missing completes, --force replaces them"
        raise Failure(ExitCode.USAGE, told)
    now = dt.datetime.now(dt.UTC)
    found = store.read(directory) if there and if_missing else store.Keys((), {})
    _require_authority(directory, found)
    named = found.server.names if found.server is not None else ()
    completed = store.complete(
        found, wanted or found.hosts or DEFAULT_HOSTS, served or named or DEFAULT_NAMES, days, now
    )
    made = store.write(directory, completed)
    if as_json:
        print_json({"directory": str(directory), "written": made})
    else:
        tell(f"{directory}: {', '.join(made)}" if made else f"{directory}: nothing was missing")


@app.command()
def show(directory: Directory, as_json: Json = False) -> None:
    """Show whose keys these are, and until when the certificates are good. No secret is shown."""
    if not store.present(directory):
        raise Failure(ExitCode.USAGE, f"{directory} has no keys; make them: holdfast keys init {directory}")
    keys = store.read(directory)
    if problems := store.problems(directory, keys, dt.datetime.now(dt.UTC)):
        fix = f"holdfast keys init {directory} --if-missing"
        raise Failure(ExitCode.USAGE, f"{directory}: {'; '.join(problems)}. To complete it: {fix}")
    rows = [_row(name, key) for name, key in keys.public_keys().items()]
    assert keys.server is not None
    ends = keys.server.certificate.not_valid_after_utc.date().isoformat()
    if as_json:
        for row in rows:
            print_json({**row, "may": allowed(row["user"], keys.hosts, keys.public_keys())})
        print_json({"server": keys.server.names, "until": ends})
        return
    print_table(("USER", "PUBLIC KEY"), [tuple(row.values()) for row in rows], empty="")
    tell(f"server certificate until {ends}: {', '.join(keys.server.names)}")


def _row(name: str, key: str) -> dict[str, Any]:
    return {"user": name, "public_key": key}


def _listed(text: str | None, option: str) -> tuple[str, ...]:
    """Return what is listed, nothing where nothing was given. Raises Failure for an empty list."""
    if text is None:
        return ()
    found = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not found:
        raise Failure(ExitCode.USAGE, f"{option} names nothing")
    return found


def _require_authority(directory: Path, found: store.Keys) -> None:
    """Refuse to make a new authority where there was one: every client would have to learn it."""
    if found.seeds and found.authority is None:
        missing = " and ".join(store.AUTHORITY)
        told = f"{directory}: {missing} are not both there, or do not belong together; put them back, or --force"
        raise Failure(ExitCode.USAGE, told)
