"""Records in the key-value bucket, by plain JetStream messages: nats-py's own key-value API has traps (K1 to K11).

Every write is conditional. A write that timed out is read back and compared, so that a lost acknowledgement is not
taken for a lost race (K8). The bucket keeps one value per key (K4) and is read from its leader (K11).

One stream holds all keys, so a write can be made conditional on the revision of *another* key, the ownership record.
Each beat of the owner moves that revision; so even a write that was delayed on its way dies with the next beat.
"""

from __future__ import annotations

import asyncio
from typing import Final

import nats.js.errors
from nats.js import JetStreamContext, api

from shared.pcie import timing
from shared.protocol import Message, encode

from ._nats_client import HoldfastClient
from ._nats_errors import STREAM_NOT_FOUND, WRONG_LAST_SEQUENCE, translated
from ._nats_streams import BUCKET_STREAM, KEY_PREFIX, Streams
from .bus import BusUnreachable, Entry, NobodyListens, Unanswered, WrongRevision

RECORD_TIMEOUT_S: Final = timing.LEASE_ATTEMPT  # for one JetStream request; the median is below 2 ms
_LISTED_AT_ONCE: Final = 64
_EXPECTED: Final = "Nats-Expected-Last-Subject-Sequence"
_EXPECTED_SUBJECT: Final = "Nats-Expected-Last-Subject-Sequence-Subject"
_TOMBSTONE_HEADERS: Final = ("KV-Operation", "Nats-Marker-Reason")


class Records:
    """Reads and writes the bucket."""

    def __init__(self, client: HoldfastClient, jetstream: JetStreamContext, streams: Streams) -> None:
        self._client = client
        self._jetstream = jetstream
        self._streams = streams

    async def get(self, key: str) -> Entry | None:
        """Read a record from the stream's leader; None where there is none, or only a tombstone."""
        return _living(key, await self._last(KEY_PREFIX + key))

    async def put(self, key: str, message: Message, *, revision: int) -> int:
        """Write if the key's revision still is `revision` (0: there is no record)."""
        value = encode(message)
        try:
            return await self._write(key, value, {_EXPECTED: str(revision)}, above=revision)
        except WrongRevision:
            buried = None if revision else await self._last(KEY_PREFIX + key)
            if buried is None or _living(key, buried) is not None:
                raise
            assert buried.seq is not None
            # The key was deleted: its tombstone holds the revision to write upon (K2).
            return await self._write(key, value, {_EXPECTED: str(buried.seq)}, above=buried.seq)

    async def put_owned(self, key: str, message: Message, *, owner_key: str, owner_revision: int) -> int:
        """Write if the ownership record still has `owner_revision`, whatever the key itself holds."""
        headers = {_EXPECTED: str(owner_revision), _EXPECTED_SUBJECT: KEY_PREFIX + owner_key}
        return await self._write(key, encode(message), headers, above=0)

    async def keys(self, prefix: str) -> tuple[Entry, ...]:
        """List the records whose key starts with `prefix`, in the order of their keys."""
        await self._streams.ensure()
        with translated(self._client, KEY_PREFIX + prefix):
            info = await self._jetstream.stream_info(BUCKET_STREAM, subjects_filter=f"{KEY_PREFIX}{prefix}>")
        found = sorted(subject.removeprefix(KEY_PREFIX) for subject in info.state.subjects or ())
        entries: list[Entry | None] = []
        for first in range(0, len(found), _LISTED_AT_ONCE):
            entries += await asyncio.gather(*map(self.get, found[first : first + _LISTED_AT_ONCE]))
        return tuple(entry for entry in entries if entry is not None)

    async def _last(self, subject: str) -> api.RawStreamMsg | None:
        await self._streams.ensure()
        with translated(self._client, subject):
            try:
                return await self._jetstream.get_last_msg(BUCKET_STREAM, subject)
            except nats.js.errors.NotFoundError as error:
                if error.err_code == STREAM_NOT_FOUND:
                    self._streams.doubt()
                return None

    async def _write(self, key: str, value: bytes, headers: dict[str, str], *, above: int) -> int:
        await self._streams.ensure()
        try:
            return await self._publish(KEY_PREFIX + key, value, headers)
        except NobodyListens:
            self._streams.doubt()
            raise
        except BusUnreachable:
            raise
        except Unanswered as unknown:
            entry = await self._read_back(key, unknown)
            if entry is not None and entry.value == value and entry.revision > above:
                return entry.revision
            raise

    async def _publish(self, subject: str, value: bytes, headers: dict[str, str]) -> int:
        with translated(self._client, subject):
            try:
                ack = await self._jetstream.publish(
                    subject, value, timeout=RECORD_TIMEOUT_S, stream=BUCKET_STREAM, headers=headers
                )
            except nats.js.errors.APIError as error:
                if error.err_code not in WRONG_LAST_SEQUENCE:
                    raise
                raise WrongRevision(f"{subject}: {error.description}") from error
        return ack.seq

    async def _read_back(self, key: str, unknown: Unanswered) -> Entry | None:
        """Read what became of a write without an answer; if that cannot be read either, it stays unknown."""
        try:
            return await self.get(key)
        except (BusUnreachable, Unanswered):
            raise unknown from None


def _living(key: str, message: api.RawStreamMsg | None) -> Entry | None:
    """Return the record, unless the key was deleted or has expired: such markers have no value (K1)."""
    if message is None or any(header in (message.headers or {}) for header in _TOMBSTONE_HEADERS):
        return None
    assert message.seq is not None
    return Entry(key=key, value=message.data or b"", revision=message.seq)
