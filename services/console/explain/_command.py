"""`explain`: which known failure a kernel log shows, which release solved it, and what to do. Needs no bus."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from services.console._exit import ExitCode, Failure
from services.console._output import console, print_json
from services.console.kernel_log import KernelLog, LogError, load

from ._failures import Evidence, Fit
from ._signatures import SIGNATURES, Kind, Signature

_QUOTED_MAX: Final = 12  # lines; `--json` has all of them
_FITS: Final = tuple(Fit)
_KIND_WORDS: Final = {Kind.OPEN: "something still open", Kind.HARDWARE: "weak hardware"}


class Match(msgspec.Struct, frozen=True):
    """A known failure that the log shows."""

    signature: Signature
    evidence: Evidence


def explain(
    log: Annotated[Path, typer.Argument(help="A kernel log: the output of dmesg or journalctl -k; - for stdin.")],
    as_json: Annotated[bool, typer.Option("--json", help="JSON for programs; one document per line.")] = False,
) -> None:
    """Say which known failure a kernel log shows, which kernel solved it, and what to do."""
    try:
        read = load(log)
    except LogError as error:
        raise Failure(ExitCode.USAGE, str(error)) from error
    found = matches(read)
    if as_json:
        print_json(as_document(read, found))
    else:
        _show(console(), read, found)


def matches(log: KernelLog) -> tuple[Match, ...]:
    """Return what the log shows, the surest first; what is as sure, in the order of the table."""
    found = [Match(signature, evidence) for signature in SIGNATURES if (evidence := signature.find(log)) is not None]
    return tuple(sorted(found, key=lambda match: _FITS.index(match.evidence.fit)))


def as_document(log: KernelLog, found: tuple[Match, ...]) -> dict[str, Any]:
    """Return the answer for programs."""
    return {
        "log": log.name,
        "known": bool(found),
        "summary": summary(log, found),
        "matches": [
            {
                "kind": match.signature.kind,
                "scenario": match.signature.scenario,
                "title": match.signature.title,
                "fit": match.evidence.fit,
                "wrong": match.signature.wrong,
                "fixed": match.signature.fixed,
                "fixed_checked": match.signature.checked,
                "commit": match.signature.commit,
                "evidence": [{"line": line, "text": log.lines[line - 1].strip()} for line in match.evidence.lines],
                "advice": match.signature.advice,
                "holdfast": match.signature.holdfast,
            }
            for match in found
        ],
        "skipped": [{"line": broken.line, "why": broken.why} for broken in log.broken],
    }


def summary(log: KernelLog, found: tuple[Match, ...]) -> str:
    """Say in one sentence what was found, or how much was looked at in vain."""
    size = f"{len(log.lines)} {'line' if len(log.lines) == 1 else 'lines'}"
    if found:
        return f"{size}: " + ", ".join(f"{_name(one.signature)} ({one.evidence.fit})" for one in found)
    if not log.speaks:
        return f"nothing known: {size}, and nothing said of PCIe"
    if not log.events:
        return f"nothing known: {size}, with PCIe devices named, but nothing said of errors, links or slots"
    events = f"{len(log.events)} {'event' if len(log.events) == 1 else 'events'}"
    return f"nothing known: {size}, {events} of PCIe in them, and no failure that is known here"


def _name(signature: Signature) -> str:
    return _KIND_WORDS[signature.kind] if signature.scenario is None else f"scenario {signature.scenario}"


def _solved(signature: Signature) -> str:
    if signature.kind is Kind.HARDWARE:
        return "by no kernel: it is no fault of the kernel"
    if signature.fixed is None:
        return "in no release so far"
    notes = [note for note in (signature.commit, None if signature.checked else "from memory, not checked") if note]
    return signature.fixed + (f" ({'; '.join(notes)})" if notes else "")


def _show(out: Console, log: KernelLog, found: tuple[Match, ...]) -> None:
    out.print(Text(f"{log.name}: {summary(log, found)}"), soft_wrap=True)
    for match in found:
        signature, lines = match.signature, match.evidence.lines
        out.print()
        heading = f"{_name(signature)}: {signature.title}"
        out.print(
            Text.assemble((heading[0].upper() + heading[1:], "bold"), f"  ({match.evidence.fit})"), soft_wrap=True
        )
        for label, text in (
            ("what went wrong", signature.wrong),
            ("solved in", _solved(signature)),
            ("what to do", signature.advice),
            ("Holdfast", signature.holdfast),
        ):
            out.print(Padding(Text.assemble((f"{label}: ", "cyan"), text), (0, 0, 0, 2), expand=False))
        out.print(Padding(Text("it shows in:", style="cyan"), (0, 0, 0, 2), expand=False))
        for line in lines[:_QUOTED_MAX]:
            out.print(Text(f"    {line:5d}  {log.lines[line - 1].strip()}"), soft_wrap=True)
        if len(lines) > _QUOTED_MAX:
            out.print(Text(f"           and {len(lines) - _QUOTED_MAX} more lines; --json has them all", style="dim"))
