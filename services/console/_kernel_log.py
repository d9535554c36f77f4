"""Reads a kernel log (dmesg, journalctl -k; old wording and new) into typed events.

Timestamps may be missing or run backward: the order of the lines is the order of events. A line that is cut is
reported and skipped. What no shape knows (`_log_lines`) is other people's business.
"""

from __future__ import annotations

import re
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from shared.pcie import Address
from shared.pcie.errors import Severity, correctable_names, uncorrectable_names

from ._log_events import Broken, ErrorHeader, ErrorHeading, ErrorName, ErrorStatus, LogEvent, Report
from ._log_lines import ADDRESS, CutLineError, Said, event_of

EXPECTED: Final = (
    "expected the output of `dmesg` or `journalctl -k` with lines such as "
    "'pcieport 0000:00:01.0: DPC: containment event, status:0x1f01 source:0x0000' or "
    "'pcieport 0000:00:01.0: AER: PCIe Bus Error: severity=Uncorrectable (Fatal), type=Transaction Layer, (Receiver ID)'"
)

_SYSLOG: Final = re.compile(r"^(?:.*?\bkernel: |<\d+>|\w+ *:\w+ *: )")
_UPTIME: Final = re.compile(r"^\[ *(?P<uptime>\d+\.\d+)\] ")
_CLOCK: Final = re.compile(r"^\[(?P<clock>\w{3} \w{3} [ \d]\d \d\d:\d\d:\d\d \d{4})\] ")
_CUT_TIME: Final = re.compile(r"^\[ *[\d.]*$")
_ADDRESSED: Final = re.compile(rf"^(?P<driver>[A-Za-z][\w-]*) (?P<address>{ADDRESS})(?::pcie\d+)?:(?P<message>.*)$")
_CUT_ADDRESS: Final = re.compile(r"^\w+ [0-9a-f]{4}:[0-9a-f:.]*$")
_INSTANCE: Final = re.compile(r"^(?:(?P<driver>[a-z]\w*) )?(?P<instance>[a-z]\w*?\d+): (?P<message>.*)$")


class LogError(ValueError):
    """A file that is not a kernel log, or says nothing that can be replayed. The text names it and what is expected."""


class Mention(msgspec.Struct, frozen=True):
    """A function that the log names, and the driver that speaks of it (`pci`: nobody's)."""

    line: int
    function: Address
    driver: str


class KernelLog(msgspec.Struct, frozen=True):
    """A log, read."""

    name: str
    events: tuple[LogEvent, ...]
    mentions: tuple[Mention, ...] = ()  # one per function and driver, first mention
    broken: tuple[Broken, ...] = ()
    backward: int = 0  # how often the clock ran back from one line to the next
    untimed: int = 0  # lines without a timestamp

    def drivers(self, function: Address) -> tuple[Mention, ...]:
        """Return who speaks of the function, in order."""
        return tuple(mention for mention in self.mentions if mention.function == function)


def load(path: Path) -> KernelLog:
    """Read a file. Raises LogError, naming the file, where it cannot be read or holds no PCIe line."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise LogError(f"{path}: cannot be read ({error.strerror}); {EXPECTED}") from error
    return parse(text, str(path))


def parse(text: str, name: str) -> KernelLog:
    """Read a log's text. Raises LogError where no line speaks of PCIe."""
    reader = _Reader()
    for number, raw in enumerate(text.splitlines(), start=1):
        reader.take(number, raw)
    log = reader.done(name)
    if not log.events and not log.mentions:
        raise LogError(f"{name}: no PCIe line found; {EXPECTED}")
    return log


def _time_of(body: str) -> tuple[float | None, str]:
    if match := _UPTIME.match(body):
        return float(match["uptime"]), body[match.end() :]
    if match := _CLOCK.match(body):
        try:
            clock = datetime.strptime(match["clock"], "%a %b %d %H:%M:%S %Y").replace(tzinfo=UTC)
        except ValueError:
            return None, body[match.end() :]
        return clock.timestamp(), body[match.end() :]
    return None, body


def _said(number: int, at: float | None, body: str) -> Said | None:
    if match := _ADDRESSED.match(body):
        try:
            function = Address.parse(match["address"])
        except ValueError as error:
            raise CutLineError(str(error)) from error
        return Said(number, at, match["driver"], function, None, match["message"].removeprefix(" "))
    if _CUT_ADDRESS.match(body):
        raise CutLineError("it ends within an address")
    if match := _INSTANCE.match(body):
        driver = match["driver"] or re.sub(r"(?:_?[a-z]+)?\d+$", "", match["instance"]) or match["instance"]
        return Said(number, at, driver, None, match["instance"], match["message"])
    return None


class _Draft:
    """A report whose lines are still coming."""

    def __init__(self, heading: ErrorHeading) -> None:
        self.heading = heading
        self.status: ErrorStatus | None = None
        self.names: list[ErrorName] = []
        self.header: tuple[int, ...] = ()

    def finish(self) -> Report | Broken:
        """Put the report together; the registers decide what the error was, not the text."""
        heading, status = self.heading, self.status
        bits = sum({1 << name.bit for name in self.names})
        if status is None and not bits:
            return Broken(heading.line, "", "its line with the error status is missing")
        value = bits if status is None else status.status
        mask = 0 if status is None else status.mask
        decode = correctable_names if heading.severity is Severity.CORRECTABLE else uncorrectable_names
        return Report(
            line=heading.line,
            at=heading.at,
            function=heading.function,
            severity=heading.severity,
            layer=heading.layer,
            vendor=0 if status is None else status.vendor,
            device=0 if status is None else status.device,
            status=value,
            mask=mask,
            names=decode(value & ~mask),
            printed=tuple(f"[{name.bit:2d}] {name.name}" for name in self.names),
            header=self.header,
        )


class _Reader:
    """Takes lines in order; joins the lines of a report, which other lines may interrupt."""

    def __init__(self) -> None:
        self._events: list[LogEvent] = []
        self._drafts: dict[Address, _Draft] = {}
        self._mentions: dict[tuple[Address, str], Mention] = {}
        self._broken: list[Broken] = []
        self._headless: list[Broken] = []  # untimed and unknown: cut only if the others are timed
        self._counts: Counter[str] = Counter()
        self._last_at: float | None = None

    def take(self, number: int, raw: str) -> None:
        """Read one line."""
        body = _SYSLOG.sub("", raw.rstrip("\r\n "), count=1)
        if not body.strip():
            return
        try:
            self._read(number, body)
        except CutLineError as cut:
            self._broken.append(Broken(number, raw.strip(), str(cut)))

    def done(self, name: str) -> KernelLog:
        """Finish what is open and return the log."""
        for function in tuple(self._drafts):
            self._finish(function)
        if self._counts["timed"] > self._counts["untimed"]:
            self._broken.extend(self._headless)
        return KernelLog(
            name=name,
            events=tuple(sorted(self._events, key=lambda event: event.line)),
            mentions=tuple(self._mentions.values()),
            broken=tuple(sorted(self._broken, key=lambda broken: broken.line)),
            backward=self._counts["backward"],
            untimed=self._counts["untimed"],
        )

    def _read(self, number: int, body: str) -> None:
        if _CUT_TIME.match(body):
            raise CutLineError("it ends within its timestamp")
        at, body = _time_of(body)
        self._count_time(at)
        said = _said(number, at, body)
        event = event_of(said) if said is not None else None
        if said is not None and said.function is not None:
            self._mentions.setdefault((said.function, said.driver), Mention(number, said.function, said.driver))
        if event is not None:
            self._join(event)
        elif at is None and said is None:
            self._headless.append(Broken(number, body, "its beginning is missing"))

    def _count_time(self, at: float | None) -> None:
        self._counts["untimed" if at is None else "timed"] += 1
        if at is not None:
            if self._last_at is not None and at < self._last_at:
                self._counts["backward"] += 1
            self._last_at = at

    def _join(self, event: LogEvent) -> None:
        match event:
            case ErrorHeading():
                self._finish(event.function)
                self._drafts[event.function] = _Draft(event)
            case ErrorStatus() | ErrorName() | ErrorHeader():
                draft = self._drafts.get(event.function)
                if draft is None:
                    self._broken.append(Broken(event.line, "", "it belongs to a report whose first line is missing"))
                elif isinstance(event, ErrorStatus):
                    draft.status = event
                elif isinstance(event, ErrorName):
                    draft.names.append(event)
                else:
                    draft.header = event.header[:4]
            case _:
                self._events.append(event)

    def _finish(self, function: Address) -> None:
        draft = self._drafts.pop(function, None)
        if draft is None:
            return
        report = draft.finish()
        if isinstance(report, Report):
            self._events.append(report)
        else:
            self._broken.append(report)
