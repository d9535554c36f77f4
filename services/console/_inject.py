"""`inject`: what a lab would do to a real slot, from the command line or from a file."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from shared.protocol import ProtocolError, from_builtins, subjects
from shared.protocol.requests import Inject, Injected, InjectReply

from ._exit import ExitCode, Failure
from ._output import print_json, tell
from ._session import Session

_HEADER_WORDS: Final = 4
_WORD_MAX: Final = 0xFFFF_FFFF


async def inject(session: Session, wanted: Sequence[Inject], *, as_json: bool) -> None:
    """Send the injections in order."""
    for each in wanted:
        done: Injected = await session.ask(
            subjects.inject(session.host), each, InjectReply, whom="machine", what=f"inject {each.what} {each.target}"
        )
        if as_json:
            print_json(done)
        else:
            when = f" in {each.after_s:g} s" if each.after_s else ""
            tell(f"{done.what} at {done.target}{when}")


def from_file(path: Path) -> tuple[Inject, ...]:
    """Read `[[inject]]` tables: the fields of an injection. Raises Failure, naming the table and the field."""
    try:
        document = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise Failure(ExitCode.USAGE, f"{path}: {error}") from error
    tables = document.get("inject")
    if not isinstance(tables, list) or not tables or set(document) != {"inject"}:
        raise Failure(ExitCode.USAGE, f"{path} must hold [[inject]] tables and nothing else")
    return tuple(from_fields(table, f"{path}, table {number}") for number, table in enumerate(tables, start=1))


def from_fields(fields: dict[str, Any], where: str) -> Inject:
    """Build one injection. Raises Failure, naming `where` and the field."""
    try:
        return from_builtins(fields, Inject)
    except ProtocolError as error:
        raise Failure(ExitCode.USAGE, f"{where}: {error}") from error


async def from_options(session: Session, what: str, target: str, source: str | None, options: dict[str, Any]) -> Inject:
    """Build one injection from the command line; `target` and `source` may be named in any way."""
    address, _ = await session.resolve(target)
    check_times(options)
    fields = {"what": what, "target": str(address), **options}
    if source is not None:
        fields["source"] = str((await session.resolve(source))[0])
    return from_fields(fields, f"inject {what} {target}")


def check_times(options: dict[str, Any]) -> None:
    """Refuse a time that is no number. Raises Failure, naming the option."""
    for option, seconds in (("--after", options["after_s"]), ("--for", options["for_s"])):
        if seconds is not None and not math.isfinite(seconds):
            raise Failure(ExitCode.USAGE, f"{option} {seconds:g}: give a number of seconds")


def header_words(text: str | None) -> tuple[int, ...]:
    """Read a TLP header as the kernel prints it: four doublewords in hexadecimal."""
    if text is None:
        return ()
    try:
        words = tuple(int(word, 16) for word in text.replace(",", " ").split())
    except ValueError:
        words = ()
    if len(words) != _HEADER_WORDS or any(word > _WORD_MAX for word in words):
        raise Failure(
            ExitCode.USAGE, f"--header {text!r}: write four doublewords, as '04000001 0000000f 01000000 00000000'"
        )
    return words


def card_fields(settings: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Read `0.serial="00-11-…"`, `1.device=0x1234`: function number, field of the topology file, value."""
    card: dict[str, dict[str, Any]] = {}
    for setting in settings:
        number, dot, rest = setting.partition(".")
        if not dot or not number.isdigit():
            raise Failure(
                ExitCode.USAGE, f"--card {setting!r}: write FUNCTION.FIELD=VALUE, for example 0.device=0x1234"
            )
        card.setdefault(number, {}).update(driver_fields((rest,), option="--card"))
    return card


def driver_fields(settings: Iterable[str], option: str = "--driver") -> dict[str, Any]:
    """Read `slot_reset=disconnect`, `delay_s=2.5`: field of the topology file, and a TOML value or a bare word."""
    fields: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise Failure(ExitCode.USAGE, f"{option} {setting!r}: write FIELD=VALUE")
        fields[name] = _toml_value(value)
    return fields


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
