"""`audit`: what registers hold that nobody answers for. Of a live host, of an `lspci -xxxx` dump, or of a sysfs tree."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer
from rich.text import Text

from services.console._exit import ExitCode, Failure
from services.console._options import DEFAULT_HOST, DEFAULT_TIMEOUT_S, DEFAULT_URL, Host, Json, Nats, Timeout
from services.console._output import print_json, print_table, tell
from services.console._run import ask
from services.console._session import Session

from . import _live, _lspci, _sysfs
from ._checks import Finding, Readings, Severity, judge, only_headers, unread
from ._live import Explained

_STYLES: Final = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.NOTE: "dim"}
_STDIN: Final = Path("-")


class Report(msgspec.Struct, frozen=True):
    """What an audit found, as `--json` prints it. `explained`: what a lease, a quarantine or the firmware answers for."""

    source: str
    functions: int
    findings: tuple[Finding, ...]
    explained: tuple[Explained, ...] = ()

    @property
    def exit_code(self) -> ExitCode:
        """Notes are no findings."""
        clean = all(finding.severity is Severity.NOTE for finding in self.findings)
        return ExitCode.OK if clean else ExitCode.FAILED


def audit(
    lspci: Annotated[
        Path | None, typer.Option("--lspci", help="A dump made by `lspci -xxxx`; - for stdin. Needs no bus.")
    ] = None,
    sysfs: Annotated[
        Path | None, typer.Option("--sysfs", help="A tree like /sys/bus/pci/devices, only read. Needs no bus.")
    ] = None,
    nats: Nats = DEFAULT_URL,
    host: Host = DEFAULT_HOST,
    as_json: Json = False,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
) -> None:
    """Look for masks, resets and silenced errors that nobody answers for. Exit code 7 if there are any."""
    if lspci is not None and sysfs is not None:
        raise Failure(ExitCode.USAGE, "--lspci and --sysfs exclude each other: give one of them")
    if lspci is not None:
        name = "standard input" if lspci == _STDIN else str(lspci)
        raise typer.Exit(_offline(name, _dumped(lspci, name), as_json=as_json))
    if sysfs is not None:
        try:
            found = _sysfs.read(sysfs)
        except _sysfs.TreeError as error:
            raise Failure(ExitCode.USAGE, f"{sysfs}: {error}") from error
        raise typer.Exit(_offline(str(sysfs), found, as_json=as_json))

    async def live(session: Session) -> ExitCode:
        look = await _live.audit(session)
        report = Report(f"host {session.host}", look.functions, look.findings, look.explained)
        return _show(report, as_json=as_json)

    ask(nats, host, timeout, live)


def _dumped(path: Path, name: str) -> Readings:
    """Read a dump from a file or stdin. Raises Failure, naming it."""
    try:
        content = sys.stdin.buffer.read() if path == _STDIN else path.read_bytes()
        return _lspci.parse(content.decode("utf-8", errors="replace"))
    except OSError as error:
        raise Failure(ExitCode.USAGE, f"{name} cannot be read: {error.strerror}") from error
    except _lspci.DumpError as error:
        raise Failure(ExitCode.USAGE, f"{name}: {error}") from error


def _offline(source: str, read: Readings, *, as_json: bool) -> ExitCode:
    """Judge what was read without a bus. Raises Failure where that would find nothing whatever there is."""
    findings = [finding for image in read.images for finding in judge(image)]
    findings += [unread(function, why) for function, why in read.unread.items()]
    report = Report(source, len(read.images) + len(read.unread), tuple(findings))
    if report.exit_code is ExitCode.OK and only_headers(read.images):
        told = "only headers of 64 bytes are there, from which slots, links and errors cannot be judged"
        raise Failure(ExitCode.USAGE, f"{source}: {told}; read it as root, and all of it: lspci -xxxx")
    if not as_json and report.exit_code is not ExitCode.OK:
        tell("registers alone do not tell who holds a lease: what one masks while it is open is found here as well")
    return _show(report, as_json=as_json)


def _show(report: Report, *, as_json: bool) -> ExitCode:
    if as_json:
        print_json(report)
        return report.exit_code
    columns = ("FUNCTION", "SEVERITY", "REGISTER", "FINDING", "WHAT TO DO")
    clean = f"{report.source}: {report.functions} functions, no findings"
    print_table(columns, [_row(alike) for alike in _grouped(report.findings)], empty=clean)
    for one in report.explained:
        tell(f"{one.finding.function} {one.finding.check.replace('_', ' ')}: no finding, it is explained by {one.by}")
    return report.exit_code


def _grouped(findings: tuple[Finding, ...]) -> tuple[tuple[Finding, ...], ...]:
    """Put notes that say the same of many functions together, where the first stands; `--json` has each."""
    groups: dict[tuple[str, ...], list[Finding]] = {}
    for finding in findings:
        key = (finding.why,) if finding.severity is Severity.NOTE else (finding.why, finding.function)
        groups.setdefault(key, []).append(finding)
    return tuple(map(tuple, groups.values()))


def _row(alike: tuple[Finding, ...]) -> tuple[str | Text, ...]:
    finding, more = alike[0], len(alike) - 1
    register: Any = finding.register
    held = "-" if register is None or finding.value is None else f"{register} {finding.value:#06x}"
    severity = Text(finding.severity, style=_STYLES[finding.severity])
    function = f"{finding.function} and {more} more" if more else finding.function
    return (function, severity, held, finding.why, finding.todo or "-")
