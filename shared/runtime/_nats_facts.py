"""Facts on NATS: an outbox that stores them in order, and a reader without a consumer.

The outbox sends one fact at a time and goes on when it is acknowledged, so the stream has them in the order in which
they were stated, whatever is lost or repeated. Each carries an id, so a fact that is sent again after a lost
acknowledgement is stored once.

The reader asks for batches by sequence number. It keeps no state in the server, so a restart of the server cannot
leave it deaf, as a consumer's would for 18 s (C5): messages wake it, the stream decides.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections import deque
from collections.abc import AsyncIterator
from typing import Final

import msgspec
import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext
from nats.js.api import StreamInfo

from shared.protocol import ProtocolError, decode, encode, subjects
from shared.protocol.facts import Fact

from ._nats_client import HoldfastClient, close_subscription, describe
from ._nats_errors import translated
from ._nats_streams import Streams
from .bus import BusError, BusUnreachable, NobodyListens, Unanswered

FACT_BYTES_MAX: Final = 1 << 18  # the server's own limit for a message is 1 MiB unless configured
_ID_BYTES: Final = 12
_STORE_TIMEOUT_S: Final = 2.0
_RETRY_FIRST_S: Final = 0.05
_RETRY_MAX_S: Final = 1.0
_BATCH: Final = 256
_BATCH_TIMEOUT_S: Final = 2.0
# A follower looks again soon after it was woken, for a message may wake it before it is stored; and, less and less
# often, when nothing wakes it.
_LOOK_AGAIN_FIRST_S: Final = 0.01
_LOOK_AGAIN_MAX_S: Final = 1.0
_DIRECT_GET: Final = f"$JS.API.DIRECT.GET.{subjects.FACT_STREAM}"
_END_OF_BATCH: Final = "204"
_NOTHING_THERE: Final = "404"

_log = structlog.get_logger()


class Outbox:
    """Keeps facts until they are stored, and in order."""

    def __init__(self, client: HoldfastClient, jetstream: JetStreamContext, streams: Streams) -> None:
        self._client = client
        self._jetstream = jetstream
        self._streams = streams
        self._waiting: deque[tuple[str, str, bytes]] = deque()
        self._more = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def pending(self) -> int:
        """The number of facts that are not yet stored."""
        return len(self._waiting)

    def put(self, fact: Fact) -> None:
        """Queue a fact."""
        # Of two messages with one id, the stream keeps the first: who could guess the next id could suppress a fact.
        identity = secrets.token_hex(_ID_BYTES)
        data = encode(fact)
        if len(data) > FACT_BYTES_MAX:
            # It could never be stored, and everything after it would wait for it.
            _log.error("fact too large, stored without its data", what=fact.what, bytes=len(data))
            data = encode(msgspec.structs.replace(fact, data={"left_out_bytes": len(data)}))
        self._waiting.append((subjects.fact(fact.host, fact.port, fact.what), identity, data))
        self._empty.clear()
        self._more.set()

    async def flushed(self) -> None:
        """Wait until all facts are stored."""
        await self._empty.wait()

    async def run(self) -> None:
        """Store facts until cancelled."""
        pause = _RETRY_FIRST_S
        while True:
            await self._more.wait()
            try:
                await self._store_first()
            except BusError as error:
                if not isinstance(error, BusUnreachable):
                    _log.warning("fact not stored, trying again", pending=self.pending, error=describe(error))
                await asyncio.sleep(pause)
                pause = min(2 * pause, _RETRY_MAX_S)
                continue
            pause = _RETRY_FIRST_S
            if not self._waiting:
                self._more.clear()
                self._empty.set()

    async def _store_first(self) -> None:
        await self._streams.ensure()
        subject, identity, data = self._waiting[0]
        try:
            with translated(self._client, subject):
                await self._jetstream.publish(
                    subject,
                    data,
                    timeout=_STORE_TIMEOUT_S,
                    stream=subjects.FACT_STREAM,
                    headers={"Nats-Msg-Id": identity},
                )
        except NobodyListens:
            self._streams.doubt()
            raise
        self._waiting.popleft()


class FactReader:
    """Reads the stream of facts, from any sequence number on."""

    def __init__(self, client: HoldfastClient, jetstream: JetStreamContext, streams: Streams) -> None:
        self._client = client
        self._jetstream = jetstream
        self._streams = streams
        self.malformed = 0

    async def read(self, filters: tuple[str, ...], first: int, *, follow: bool) -> AsyncIterator[Fact]:
        """Iterate from sequence number `first` over what is stored; with `follow` over what comes, through outages.

        `first` 0 begins after what is stored.
        """
        filter_subject = filters[0] if len(filters) == 1 else ">"
        woken = asyncio.Event()
        wakers = await self._wakers(filters, woken) if follow else ()
        try:
            stream = await self._stream()
            first = first or stream.state.last_seq + 1
            pause = _LOOK_AGAIN_FIRST_S
            while True:
                woken.clear()
                batch = await (self._batch_if_any if follow else self._batch)(first, filter_subject)
                for message in batch:
                    assert message.headers is not None
                    first = int(message.headers["Nats-Sequence"]) + 1
                    fact = self._decoded(message, filters)
                    if fact is not None:
                        yield fact
                if not batch and not follow:
                    return
                if not batch:
                    pause = _LOOK_AGAIN_FIRST_S if await _happened(woken, pause) else min(2 * pause, _LOOK_AGAIN_MAX_S)
                    stream_now = await self._stream_if_any() or stream
                    if stream_now.created != stream.created:
                        stream, first = stream_now, 1  # made anew: NATS has forgotten
        finally:
            for waker in wakers:
                await close_subscription(self._client, waker)

    async def _wakers(self, filters: tuple[str, ...], woken: asyncio.Event) -> list[Subscription]:
        async def wake(_message: Msg) -> None:  # nats-py wants a coroutine
            woken.set()

        with translated(self._client, "facts"):
            return [await self._client.listen(subject, wake) for subject in _at_any_port(filters)]

    async def _stream(self) -> StreamInfo:
        await self._streams.ensure()
        with translated(self._client, subjects.FACT_STREAM):
            return await self._jetstream.stream_info(subjects.FACT_STREAM)

    async def _stream_if_any(self) -> StreamInfo | None:
        try:
            return await self._stream()
        except BusError:
            return None

    async def _batch_if_any(self, first: int, filter_subject: str) -> list[Msg]:
        try:
            return await self._batch(first, filter_subject)
        except BusError:
            return []

    async def _batch(self, first: int, filter_subject: str) -> list[Msg]:
        """Ask for the next messages from `first` on (batched direct get, ADR-31; nats-server 2.11)."""
        await self._streams.ensure()
        batch: list[Msg] = []
        ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def collect(message: Msg) -> None:  # nats-py wants a coroutine
            status = (message.headers or {}).get("Status")
            if status is None:
                batch.append(message)
            elif not ended.done():
                ended.set_result(status)

        asked = json.dumps({"seq": first, "batch": _BATCH, "next_by_subj": filter_subject}).encode()
        with translated(self._client, _DIRECT_GET):
            inbox = self._client.new_inbox()
            subscription = await self._client.subscribe(inbox, cb=collect)
            try:
                await self._client.publish(_DIRECT_GET, asked, reply=inbox)
                async with asyncio.timeout(_BATCH_TIMEOUT_S):
                    status = await ended
            except TimeoutError as late:
                raise Unanswered(f"{_DIRECT_GET}: no answer in time") from late
            finally:
                await close_subscription(self._client, subscription)
        if status in (_END_OF_BATCH, _NOTHING_THERE):
            return batch
        self._streams.doubt()
        raise NobodyListens(f"{_DIRECT_GET}: status {status}")

    def _decoded(self, message: Msg, filters: tuple[str, ...]) -> Fact | None:
        assert message.headers is not None
        subject = message.headers["Nats-Subject"]
        if filters and not any(matches(wanted, subject) for wanted in filters):
            return None
        try:
            fact: Fact = decode(message.data, Fact)
        except ProtocolError as error:
            self.malformed += 1
            _log.warning("malformed fact in the stream", subject=subject, error=str(error))
            return None
        return fact


def matches(pattern: str, subject: str) -> bool:
    """Tell whether a subject matches a pattern with `*` (one token) and `>` (one or more at the end)."""
    wanted, given = pattern.split("."), subject.split(".")
    if wanted[-1] == ">":
        wanted.pop()
        if len(given) <= len(wanted):
            return False
        given = given[: len(wanted)]
    return len(wanted) == len(given) and all(want in ("*", token) for want, token in zip(wanted, given, strict=True))


def _at_any_port(filters: tuple[str, ...]) -> tuple[str, ...]:
    """Return what is heard of the facts that are filtered for: a few more, for the stream decides."""
    if not filters:
        return subjects.FACT_SUBJECTS
    anywhere = (subjects.at_any_port(name) for one in filters for name in subjects.by_name(one))
    return tuple(dict.fromkeys(anywhere))


async def _happened(event: asyncio.Event, bound_s: float) -> bool:
    """Wait for the event, at most for `bound_s`; tell whether it happened."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(bound_s):
            await event.wait()
    return event.is_set()
