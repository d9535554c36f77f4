"""One line of a kernel log, taken apart: when it was said, by whom, of whom, and what.

Accepted before the message: the stamps of `dmesg` (uptime, `-T`, `-d`, ISO), of `journalctl -k` and of syslog, and the
priority of `/dev/kmsg` or `dmesg -x`; or nothing.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

import msgspec

from shared.pcie import Address

ADDRESS: Final = r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]"
UNBOUND: Final = ("pci", "pcieport", "pciehp", "aer", "dpc")  # prefixes that are no endpoint's driver

_SYSLOG: Final = re.compile(
    r"^(?:(?P<day>\w{3} [ \d]\d \d\d:\d\d:\d\d(?:\.\d+)?) |(?P<iso>\d{4}-\d\d-\d\dT\S+) )?(?:.*?\bkernel: )"
)
_PRIORITY: Final = re.compile(r"^(?:<\d+>|\w+ *:\w+ *: )")
_UPTIME: Final = re.compile(r"^\[ *(?P<uptime>\d+\.\d+)(?: *<[ +.\d]*>)?\] ")
_CLOCK: Final = re.compile(r"^\[(?P<clock>\w{3} \w{3} [ \d]\d \d\d:\d\d:\d\d \d{4})\] ")
_ISO: Final = re.compile(r"^(?P<iso>\d{4}-\d\d-\d\dT\S+) ")
_CUT_TIME: Final = re.compile(r"^\[ *[\d.]*$")
_ADDRESSED: Final = re.compile(rf"^(?P<driver>[A-Za-z][\w-]*) (?P<address>{ADDRESS})(?::pcie\d+)?:(?P<message>.*)$")
_CUT_ADDRESS: Final = re.compile(r"^\w+ [0-9a-f]{4}:[0-9a-f:.]*$")
_BUS: Final = re.compile(r"^pci_bus (?P<bus>[0-9a-f]{4}:[0-9a-f]{2}): (?P<message>.*)$")
_INSTANCE: Final = re.compile(r"^(?:(?P<driver>[a-z]\w*) )?(?P<instance>[a-z]\w*?\d+): (?P<message>.*)$")
_PLATFORM: Final = re.compile(r"^(?P<driver>[a-z][\w-]*) (?P<instance>[0-9a-f]+\.[\w-]+): (?P<message>.*)$")
_MODULE: Final = re.compile(r"^(?P<driver>NVRM|INFO): (?P<message>.*)$")
_NO_YEAR: Final = 2000  # syslog names none; this one has a 29th of February


class CutLineError(ValueError):
    """A line that begins like a known one and does not go on like it."""


class Said(msgspec.Struct, frozen=True):
    """A line without its prefix: who is named, and what is said of him. `instance`: a driver's own name for one."""

    line: int
    at: float | None
    driver: str
    function: Address | None
    instance: str | None
    message: str

    @property
    def address(self) -> Address:
        """The function named. Raises CutLineError where there is none."""
        if self.function is None:
            raise CutLineError("no function is named")
        return self.function


def stamped(raw: str) -> tuple[float | None, str]:
    """Return when a line was said, in seconds of whatever clock, and the line without stamps. Raises CutLineError."""
    body = raw.rstrip("\r\n ")
    at = None
    if match := _SYSLOG.match(body):
        at = _of_day(match["day"]) if match["day"] else _of_iso(match["iso"])
        body = body[match.end() :]
    elif match := _PRIORITY.match(body):
        body = body[match.end() :]
    if _CUT_TIME.match(body) and body.strip():
        raise CutLineError("it ends within its timestamp")
    for pattern, read in ((_UPTIME, float), (_CLOCK, _of_clock), (_ISO, _of_iso)):
        if match := pattern.match(body):
            exact = read(match[1])
            return (at if exact is None else exact), body[match.end() :]
    return at, body


def said(number: int, at: float | None, body: str) -> Said | None:
    """Return who speaks of whom; None for a line of a form that nobody speaks in whom we know. Raises CutLineError."""
    if match := _ADDRESSED.match(body):
        try:
            function = Address.parse(match["address"])
        except ValueError as error:
            raise CutLineError(str(error)) from error
        return Said(number, at, match["driver"], function, None, match["message"].removeprefix(" "))
    if _CUT_ADDRESS.match(body):
        raise CutLineError("it ends within an address")
    if match := _BUS.match(body):
        return Said(number, at, "pci_bus", None, match["bus"], match["message"])
    if match := _INSTANCE.match(body):
        driver = match["driver"] or re.sub(r"(?:_?[a-z]+)?\d+$", "", match["instance"]) or match["instance"]
        return Said(number, at, driver, None, match["instance"], match["message"])
    if match := _PLATFORM.match(body):
        return Said(number, at, match["driver"], None, match["instance"], match["message"])
    if match := _MODULE.match(body):
        return Said(number, at, match["driver"], None, None, match["message"])
    return None


def _of_clock(text: str) -> float | None:
    return _seconds(text, "%a %b %d %H:%M:%S %Y")


def _of_day(text: str) -> float | None:
    form = "%Y %b %d %H:%M:%S.%f" if "." in text else "%Y %b %d %H:%M:%S"
    return _seconds(f"{_NO_YEAR} {text}", form)


def _of_iso(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text.replace(",", ".")).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None


def _seconds(text: str, form: str) -> float | None:
    try:
        return datetime.strptime(text, form).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None
