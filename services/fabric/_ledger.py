"""The ledger: an append-only file, one entry per line, each with its checksum; versioned by its messages.

    CRC32 (8 hex digits), a space, the entry as JSON, a line feed

What it assumes: a line is appended by one write, and `sync` returns when all lines before it are on the medium. So a
process that dies leaves at most one line without its line feed, at the end. That line was never acted upon: it is cut
off, put aside in `<ledger>.torn`, and reported. Any other damage means that the medium lies, or that somebody edited
the file. Then leases may be missing, and tokens may be given out twice: the fabric changes nothing, says where and
what to do, and does not start.

A failed sync is final: what is on the medium is then unknown (PostgreSQL's fsync lesson). The process ends.
"""

from __future__ import annotations

import fcntl
import os
import zlib
from pathlib import Path
from typing import Final

import structlog

from shared.protocol import ProtocolError, decode, encode

from ._book import Began, Book, Entry

EXIT_CORRUPT: Final = 65  # sysexits EX_DATAERR: repair or remove the ledger by hand
EXIT_UNWRITABLE: Final = 74  # sysexits EX_IOERR: disk full, read-only, or failing
EXIT_IN_USE: Final = 75  # sysexits EX_TEMPFAIL: another fabric of this host is alive
_COMPACT_BYTES: Final = 16 << 20  # beyond this, worth the rewriting
_CRC_DIGITS: Final = 8
_MODE: Final = 0o600  # the ledger holds tokens

_log = structlog.get_logger()


class LedgerError(Exception):
    """The ledger cannot be used. `exit_code` says why, the text where and what to do."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Ledger:
    """An open ledger, locked for this process. `book` is the fold of all that it holds."""

    def __init__(self, path: Path) -> None:
        """Replay, put a torn tail aside, compact. Raises LedgerError and changes nothing if it is damaged."""
        self._path = path
        self.book = Book()
        self._unsynced = False
        self._size = 0
        self._file: int | None = None  # None only until the first compaction
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(path.with_name(path.name + ".lock"))
        except OSError as error:
            raise LedgerError(f"ledger {path}: {error.strerror}", EXIT_UNWRITABLE) from error
        try:
            for entry in _replay(path, path.read_bytes() if path.exists() else b""):
                self.book = entry.applied_to(self.book)
            self.compact()
        except LedgerError:
            os.close(self._lock)
            raise
        except OSError as error:
            os.close(self._lock)
            raise LedgerError(f"ledger {path}: {error.strerror}", EXIT_UNWRITABLE) from error

    def append(self, entry: Entry) -> None:
        """Write an entry and apply it to the book. Not durable before `sync`."""
        assert self._file is not None
        line = _line(entry)
        try:
            size = os.write(self._file, line)
        except OSError as error:
            raise LedgerError(f"ledger {self._path}: {error.strerror}", EXIT_UNWRITABLE) from error
        if size != len(line):
            raise LedgerError(f"ledger {self._path}: only {size} of {len(line)} bytes written", EXIT_UNWRITABLE)
        self._size += size
        self._unsynced = True
        self.book = entry.applied_to(self.book)

    def sync(self) -> None:
        """Return when all entries are on the medium."""
        if not self._unsynced:
            return
        assert self._file is not None
        try:
            os.fsync(self._file)
        except OSError as error:
            raise LedgerError(f"ledger {self._path}: {error.strerror}", EXIT_UNWRITABLE) from error
        self._unsynced = False

    @property
    def worth_compacting(self) -> bool:
        """Tell whether the file has grown far beyond what the book needs."""
        return self._size > _COMPACT_BYTES

    def compact(self) -> None:
        """Replace the file by one entry that holds the book. The old file stands until the new one is durable."""
        fresh = self._path.with_name(self._path.name + ".new")
        line = _line(Began(book=self.book))
        try:
            descriptor = _write_whole(fresh, line)
            fresh.replace(self._path)
            _sync_directory(self._path.parent)
        except OSError as error:
            raise LedgerError(f"ledger {self._path}: {error.strerror}", EXIT_UNWRITABLE) from error
        if self._file is not None:
            os.close(self._file)
        self._file = descriptor
        self._size = len(line)
        self._unsynced = False

    def close(self) -> None:
        """Give up file and lock."""
        assert self._file is not None
        os.close(self._file)
        os.close(self._lock)


def _lock(path: Path) -> int:
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, _MODE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise LedgerError(f"{path} is locked: another fabric of this host is running", EXIT_IN_USE) from error
    return descriptor


def _write_whole(path: Path, data: bytes) -> int:
    """Write a new file, durably; return it open for appending."""
    descriptor = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, _MODE)
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    os.fsync(descriptor)
    return descriptor


def _sync_directory(path: Path) -> None:
    """Make a rename in this directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(descriptor)
    os.close(descriptor)


def _line(entry: Entry) -> bytes:
    body = encode(entry, as_json=True)
    return b"%08x %s\n" % (zlib.crc32(body), body)


def _replay(path: Path, data: bytes) -> list[Entry]:
    """Return all entries. A last line without a line feed is put aside; anything else that is wrong raises."""
    *lines, tail = data.split(b"\n")
    entries: list[Entry] = []
    offset = 0
    for line in lines:
        entries.append(_entry(path, offset, line))
        offset += len(line) + 1
    if data and not (entries and isinstance(entries[0], Began)):
        raise _damage(path, 0, "the first entry is not a whole book: the beginning of the file is missing")
    if tail:
        aside = path.with_name(path.name + ".torn")
        aside.write_bytes(tail)
        _log.warning("ledger ends in the middle of an entry; cut off", path=str(path), offset=offset, aside=str(aside))
    return entries


def _entry(path: Path, offset: int, line: bytes) -> Entry:
    head, _, body = line.partition(b" ")
    if len(head) != _CRC_DIGITS or head != b"%08x" % zlib.crc32(body):
        raise _damage(path, offset, "checksum does not agree")
    try:
        entry: Entry = decode(body, Entry)
    except ProtocolError as error:
        raise _damage(path, offset, str(error)) from error
    return entry


def _damage(path: Path, offset: int, what: str) -> LedgerError:
    return LedgerError(
        f"ledger {path} is damaged at byte {offset}: {what}. Nothing was changed. Leases may be open that only this"
        f" file knows of: stop the coordinator of this host, move the file away, start the fabric again, and look for"
        f" ports that were left masked (`holdfast doctor`).",
        EXIT_CORRUPT,
    )
