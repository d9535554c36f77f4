"""Reads what `lspci -xxxx` writes: a line that names a function, then its bytes. Pure.

As lenient as `lspci -F`: a decoded dump (-v) may stand between, and what is no dump line is skipped. As strict, too: a
row of bytes that is not one is an error, since a typing mistake there would be judged, and so is a function that is
cut off, since a finding may be among what is lost.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import msgspec

from shared.pcie import Address, AddressError
from shared.pcie.registers import CONFIG_SPACE_SIZE

from ._checks import Image, Readings

_FUNCTION: Final = re.compile(r"((?:[0-9a-f]{4,8}:)?[0-9a-f]{2}:[01][0-9a-f]\.[0-7])(?: .*)?", re.IGNORECASE)
_ROW: Final = re.compile(r"([0-9a-f]{2,3}):\s+(.*?)\s*", re.IGNORECASE)
_SIZES: Final = (0, 64, 128, 256, 4096)  # what -x (of a CardBus bridge: 128), -xxx and -xxxx write of a function
_BYTES: Final = re.compile(r"[0-9a-f]{2}(?: [0-9a-f]{2}){0,15}", re.IGNORECASE)


class DumpError(ValueError):
    """Text that is no dump of config spaces, or a broken one; names the line."""


class _Reading(msgspec.Struct):
    """The function whose rows are being read, the line that named it, and its last line."""

    name: str
    line: int
    config: bytearray
    end: int


def parse(text: str) -> Readings:
    """Return every function with its bytes. Raises DumpError, naming the line that is wrong."""
    found: dict[str, _Reading] = {}
    current: _Reading | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        if heading := _FUNCTION.fullmatch(line):
            name = heading[1].lower()
            if name in found:
                said = f"line {number}: {name} was there already in line {found[name].line}"
                raise DumpError(f"{said}; give one dump of one host")
            _check_whole(current)
            current = found[name] = _Reading(name, number, bytearray(), number)
        elif row := _ROW.fullmatch(line):
            if current is None:
                raise DumpError(f"line {number}: bytes of no function: the line that names it is missing")
            _take(current, int(row[1], 16), row[2], number)
    _check_whole(current)
    if not found:
        raise DumpError("there is no function in it; make one with: lspci -xxxx")
    if not any(reading.config for reading in found.values()):
        raise DumpError("it names functions, but has no bytes of them; make it with: lspci -xxxx")
    return _readings(found.values())


def _readings(found: Iterable[_Reading]) -> Readings:
    images: list[Image] = []
    unread: dict[str, str] = {}
    for reading in found:
        try:
            images.append(Image(Address.parse(reading.name), bytes(reading.config)))
        except AddressError as error:  # a domain of more than 16 bits, as Intel VMD has
            unread[reading.name] = str(error)
    return Readings(tuple(images), unread)


def _check_whole(reading: _Reading | None) -> None:
    """Refuse a function that was cut off: what is lost cannot be judged, nor how many functions are lost with it."""
    if reading is not None and len(reading.config) not in _SIZES:
        told = f"line {reading.end}: {reading.name} ends after {len(reading.config)} bytes"
        raise DumpError(f"{told}: the dump is cut off; make it again, with: lspci -xxxx")


def _take(reading: _Reading, offset: int, text: str, number: int) -> None:
    """Add one row of bytes, which must follow the one before."""
    if not _BYTES.fullmatch(text):
        raise DumpError(f"line {number}: {text[:60]!r} is not up to sixteen bytes in hexadecimal")
    if offset != len(reading.config):
        lacking = f"{reading.name} goes on at {offset:#x} after {len(reading.config):#x} bytes"
        raise DumpError(f"line {number}: {lacking}: lines are missing or twice there")
    reading.config += bytes.fromhex(text)
    reading.end = number
    if len(reading.config) > CONFIG_SPACE_SIZE:
        raise DumpError(f"line {number}: {reading.name} has more than {CONFIG_SPACE_SIZE} bytes")
