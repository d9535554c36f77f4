"""Who acts for a host in one role: one instance, until it falls silent.

What it guarantees: of all writes made through `put_owned`, none is accepted from an instance that another has
deposed; the bucket refuses them. What it does **not** guarantee: that at most one instance believes that it owns the
host. Each counts its own silence from before it sent its last accepted beat, on its own monotonic clock, and stops a
little early; so two believe it at once only if their clocks run at rates more than `_DRIFT` apart. The fabric needs
neither: it fences by token.

A standby takes over when the record has not changed for `silence_s` by the standby's own clock, or at once when it
was released. No wall clock and no server-side expiry takes part.

Instances share several hosts by one rule: a host that nobody has is taken at once by who names it first, and by the
others at their second look, so who names it first, if alive, has looked in between. With HOLDFAST_HOSTS=a,b here and
b,a there each takes one; one that is alone has all a look later, and who takes over from the dead waits no longer than
before. A host is never handed back: a move costs an interruption, and buys nothing but symmetry.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import structlog

from shared.protocol import Message, ProtocolError, decode
from shared.protocol.records import Owner

from .bus import Bus, BusError, BusUnreachable, Entry, WrongRevision

_BEATS_PER_SILENCE: Final = 3
_RETRIES_PER_SILENCE: Final = 20
_DRIFT: Final = 0.05  # the difference in rate between two monotonic clocks that is allowed for

_log = structlog.get_logger()


class Ownership:
    """The ownership record of one host and service, as one instance sees it."""

    def __init__(self, bus: Bus, key: str, instance: str, silence_s: float, *, preferred: bool = True) -> None:
        """`silence_s` must be the same for all instances that share the key. `preferred`: it is ours to take first."""
        self.key = key
        self.lost = asyncio.Event()  # set while the host is not, or no longer, ours
        self.lost.set()
        self.seen_owner: str | None = None  # while standing by: who owned the host at the last look; None: not known
        # A second life under the same name is somebody else, also when a write is read back and compared. Unlike a
        # revision, this is not used again when NATS forgets its bucket (K7): good for ids that must never repeat.
        self.tenure = secrets.token_hex(4)
        self.owner = f"{instance}:{self.tenure}"
        self._bus = bus
        self._silence_s = silence_s
        self._preferred = preferred
        self._revision = 0
        self._beat = 0
        self._deadline = 0.0
        self._unanswered = False  # a write that was not answered may yet be executed
        self._writing = asyncio.Lock()

    @property
    def held(self) -> bool:
        """Whether the host is ours at this moment."""
        return not self.lost.is_set() and asyncio.get_running_loop().time() < self._deadline

    @property
    def revision(self) -> int:
        """The revision of the record at the last accepted beat."""
        return self._revision

    async def acquire(self) -> None:
        """Wait until the host is ours. Standing by is logged once."""
        loop = asyncio.get_running_loop()
        seen: int | None = None
        since = loop.time()
        told = False
        while True:
            asked = loop.time()
            try:
                entry = await self._bus.get(self.key)
                record = _owner(entry)
                self.seen_owner = record.owner if record and not record.released else None
                revision = entry.revision if entry else 0
                if revision != seen:
                    seen, since = revision, loop.time()
                free = entry is None or (record is not None and record.released)
                if self._may_claim(record, asked - since, free=free):
                    await self._claim(revision, record.beat if record else 0)
                    self.seen_owner = None
                    return
            except BusError as error:  # WrongRevision among them: somebody was faster
                self.seen_owner = None
                _log.debug("ownership not acquired", key=self.key, error=str(error))
                await asyncio.sleep(self._silence_s / _RETRIES_PER_SILENCE)
            else:
                if not told and not free:
                    _log.info("standby", key=self.key, owner=record.owner if record else None)
                    told = True
                await asyncio.sleep(self._silence_s / _BEATS_PER_SILENCE)

    async def keep(self) -> None:
        """Beat until the host is lost; then set `lost` and return."""
        try:
            pause = self._silence_s / _BEATS_PER_SILENCE
            while True:
                async with asyncio.timeout_at(self._deadline):
                    await asyncio.sleep(pause)
                    known = await self._try_beat()
                pause = self._silence_s / (_BEATS_PER_SILENCE if known else _RETRIES_PER_SILENCE)
        except TimeoutError:
            _log.warning("ownership lost", key=self.key, why="no beat was accepted in time")
        except WrongRevision as deposed:
            _log.warning("ownership lost", key=self.key, why=str(deposed))
        finally:
            self.lost.set()

    async def put_owned(self, key: str, message: Message) -> int:
        """Write a record that only the owner may write. Raises WrongRevision where this instance is not the owner.

        A write without an answer may still be on its way, and would overwrite what is written after it. So our own
        revision is moved on before anything else is written: it is conditional on the one before, and dies.
        """
        async with self._writing:
            if not self.held:
                raise WrongRevision(f"{self.key}: not held by this instance")
            if self._unanswered:
                await self._write_caught_up(self._write_beat)
            self._unanswered = True  # also if we are cancelled meanwhile
            try:
                revision = await self._write_caught_up(partial(self._put_owned, key, message))
            except (BusUnreachable, WrongRevision):
                self._unanswered = False
                raise
            self._unanswered = False
            return revision

    async def release(self) -> None:
        """Give the host away, so that a standby need not wait out the silence. Never raises."""
        if not self.held:
            return
        self.lost.set()
        try:
            async with asyncio.timeout_at(self._deadline), self._writing:
                await self._write_caught_up(self._write_release)
        except (BusError, TimeoutError) as error:
            _log.info("ownership not released, it will lapse", key=self.key, error=str(error))

    def _may_claim(self, record: Owner | None, unchanged_s: float, *, free: bool) -> bool:
        """Tell whether the host may be taken. `unchanged_s` is not above 0 at the first look at a record."""
        if free:
            return self._preferred or unchanged_s > 0
        ours = record is not None and record.owner == self.owner
        return ours or unchanged_s >= self._silence_s

    async def _claim(self, revision: int, beat: int) -> None:
        self._revision, self._beat = revision, beat
        await self._write_beat()
        self.lost.clear()

    async def _try_beat(self) -> bool:
        """Beat once; False if it is not known whether that succeeded. Raises WrongRevision when deposed."""
        async with self._writing:
            try:
                await self._write_caught_up(self._write_beat)
            except WrongRevision:
                raise
            except BusError as error:
                _log.debug("beat not accepted", key=self.key, error=str(error))
                return False
            return True

    async def _write_beat(self) -> int:
        sent = asyncio.get_running_loop().time()
        self._beat += 1
        self._revision = await self._bus.put(self.key, self._record(), revision=self._revision)
        self._deadline = sent + self._silence_s * (1 - _DRIFT)
        self._unanswered = False
        return self._revision

    async def _write_release(self) -> int:
        return await self._bus.put(self.key, self._record(released=True), revision=self._revision)

    async def _put_owned(self, key: str, message: Message) -> int:
        return await self._bus.put_owned(key, message, owner_key=self.key, owner_revision=self._revision)

    async def _write_caught_up(self, write: Callable[[], Awaitable[int]]) -> int:
        """Write; and if the revision was wrong only because the answer to a beat was lost, write again."""
        try:
            return await write()
        except WrongRevision:
            entry = await self._bus.get(self.key)
            record = _owner(entry)
            if entry is None or record is None or record.owner != self.owner or entry.revision == self._revision:
                self.lost.set()
                raise
            self._revision = entry.revision
            return await write()

    def _record(self, *, released: bool = False) -> Owner:
        return Owner(owner=self.owner, beat=self._beat, released=released)


def _owner(entry: Entry | None) -> Owner | None:
    if entry is None:
        return None
    try:
        record: Owner = decode(entry.value, Owner)
    except ProtocolError as error:
        _log.warning("malformed ownership record", key=entry.key, error=str(error))
        return None
    return record
