"""Reads a kernel log (dmesg, journalctl -k; old wording and new) into typed events.

Timestamps may be missing or run backward: the order of the lines is the order of events. A line that is cut is
reported and skipped. What no shape knows (`_lines`) is other people's business.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Final

import msgspec

from shared.pcie import Address
from shared.pcie.errors import Severity, correctable_names, uncorrectable_names

from ._events import Broken, ErrorHeader, ErrorHeading, ErrorName, ErrorStatus, LogEvent, Report
from ._lines import event_of
from ._said import CutLineError, said, stamped

STDIN: Final = Path("-")
EXPECTED: Final = (
    "expected the output of `dmesg` or `journalctl -k` with lines such as "
    "'pcieport 0000:00:01.0: DPC: containment event, status:0x1f01 source:0x0000' or "
    "'pcieport 0000:00:01.0: AER: PCIe Bus Error: severity=Uncorrectable (Fatal), type=Transaction Layer, (Receiver ID)'"
)


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
    lines: tuple[str, ...] = ()  # as they stand in the file: to quote from

    @property
    def speaks(self) -> bool:
        """Whether any line speaks of PCIe."""
        return bool(self.events or self.mentions)

    def drivers(self, function: Address) -> tuple[Mention, ...]:
        """Return who speaks of the function, in order."""
        return tuple(mention for mention in self.mentions if mention.function == function)


def load(path: Path) -> KernelLog:
    """Read a file, or stdin for `-`. Raises LogError, naming the file, where it cannot be read or is no text."""
    name = "standard input" if path == STDIN else str(path)
    try:
        content = sys.stdin.buffer.read() if path == STDIN else path.read_bytes()
    except OSError as error:
        raise LogError(f"{name}: cannot be read ({error.strerror}); {EXPECTED}") from error
    text = content.decode("utf-8", errors="replace")
    if not text.strip():
        raise LogError(f"{name}: empty; {EXPECTED}")
    log = parse(text, name)
    if not log.speaks and "\0" in text:
        raise LogError(f"{name}: no text, and no PCIe line in it; {EXPECTED}")
    return log


def parse(text: str, name: str) -> KernelLog:
    """Read a log's text."""
    lines = tuple(text.splitlines())
    reader = _Reader()
    for number, raw in enumerate(lines, start=1):
        reader.take(number, raw)
    return reader.done(name, lines)


class _Draft:
    """A report whose lines are still coming."""

    def __init__(self, heading: ErrorHeading) -> None:
        self.heading = heading
        self.status: ErrorStatus | None = None
        self.names: list[ErrorName] = []
        self.header: tuple[int, ...] = ()
        self.lines = [heading.line]

    def add(self, event: ErrorStatus | ErrorName | ErrorHeader) -> None:
        """Take one more line."""
        self.lines.append(event.line)
        match event:
            case ErrorStatus():
                self.status = event
            case ErrorName():
                self.names.append(event)
            case ErrorHeader():
                self.header = event.header[:4]

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
            lines=tuple(self.lines),
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
        if not raw.strip():
            return
        try:
            self._read(number, raw)
        except CutLineError as cut:
            self._broken.append(Broken(number, raw.strip(), str(cut)))

    def done(self, name: str, lines: tuple[str, ...]) -> KernelLog:
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
            lines=lines,
        )

    def _read(self, number: int, raw: str) -> None:
        at, body = stamped(raw)
        self._count_time(at)
        spoken = said(number, at, body)
        event = event_of(spoken) if spoken is not None else None
        if spoken is not None and spoken.function is not None:
            self._mentions.setdefault((spoken.function, spoken.driver), Mention(number, spoken.function, spoken.driver))
        if event is not None:
            self._join(event)
        elif at is None and spoken is None and body.strip():
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
                else:
                    draft.add(event)
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
