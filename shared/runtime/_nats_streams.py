"""The two streams of Holdfast, seen to exist: made where they are missing, accepted as found where they are there.

They are looked for before they are made. A look is answered by the stream's own leader, and anybody may look; making
one takes the leader of the whole cluster, and a user who may make streams. So a person's command only ever looks: it
would make the streams with the wrong number of replicas, or at a bus where there is no Holdfast.
"""

from __future__ import annotations

import asyncio
from typing import Final

import nats.js.errors
import structlog
from nats.js import JetStreamContext, api

from shared.protocol import subjects

from ._nats_client import HoldfastClient
from ._nats_errors import NOT_CLUSTERED, STREAM_NAME_IN_USE, STREAM_NOT_FOUND, translated
from .bus import BusError, BusUnreachable

DUPLICATE_WINDOW_S: Final = 600.0  # a fact that is sent again within this time after a lost ack is not stored twice
FACTS_MAX: Final = 1_000_000  # the oldest go first; some 300 MB
BUCKET_STREAM: Final = f"KV_{subjects.BUCKET}"
KEY_PREFIX: Final = f"$KV.{subjects.BUCKET}."
_SERVER_MIN: Final = (2, 11)  # the first that knows Nats-Expected-Last-Subject-Sequence-Subject

_log = structlog.get_logger()

_CONFIGS: Final = {
    subjects.FACT_STREAM: api.StreamConfig(
        description="Holdfast: every fact, the audit log",
        subjects=list(subjects.FACT_SUBJECTS),
        storage=api.StorageType.FILE,
        max_msgs=FACTS_MAX,
        discard=api.DiscardPolicy.OLD,
        duplicate_window=DUPLICATE_WINDOW_S,
        deny_delete=True,
        deny_purge=True,
        allow_direct=True,
    ),
    BUCKET_STREAM: api.StreamConfig(
        description="Holdfast: ownership, recovery journals, the registry of devices",
        subjects=[f"{KEY_PREFIX}>"],
        storage=api.StorageType.FILE,
        max_msgs_per_subject=1,
        discard=api.DiscardPolicy.NEW,
        # With roll-ups, whoever may write one record could erase all others by a header.
        allow_rollup_hdrs=False,
        deny_delete=True,
        deny_purge=True,
        allow_direct=False,
    ),
}
# What protects the streams from those who may publish there, and how the operator gets it back.
_PROTECTION: Final = {
    "allow_rollup_hdrs": "--no-allow-rollup",
    "deny_delete": "--deny-delete",
    "deny_purge": "--deny-purge",
    "max_msgs_per_subject": "--max-msgs-per-subject={wanted}",
    "republish": "--no-republish",  # what is stored would be sent on, by the server, to whatever subject
    "sources": "--interactive",  # what is stored elsewhere would be stored here
    "mirror": "--interactive",
}


class Streams:
    """Sees to it that the stream of facts and the bucket exist, again after every reconnect: NATS may forget."""

    def __init__(self, client: HoldfastClient, jetstream: JetStreamContext, replicas: int, *, creates: bool) -> None:
        """`replicas` of a stream that is made. Without `creates`, a stream that is missing is waited for."""
        self._client = client
        self._jetstream = jetstream
        self._replicas = replicas
        self._creates = creates
        self._looking: asyncio.Task[None] | None = None
        self._seen_at: int | None = None  # the count of reconnects when both were last seen
        self._told: set[tuple[str, str]] = set()  # streams, and settings of theirs that were complained about

    async def ensure(self) -> None:
        """Create what is missing. Several services may do so at the same time. Raises BusError: try again.

        Everybody who asks meanwhile waits for the same look. If each took its own turn, a beat would wait behind all
        others for as long as a cluster has no leader, and come too late.
        """
        if self._seen_at == self._reconnects:
            return
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look(), name="streams")
            self._looking.add_done_callback(_retrieved)
        await asyncio.shield(self._looking)

    def doubt(self) -> None:
        """Look again before the next use: something said that a stream is missing."""
        self._seen_at = None

    async def close(self) -> None:
        """End a look that is under way."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait({self._looking})

    @property
    def _reconnects(self) -> int:
        count: int = self._client.stats["reconnects"]
        return count

    async def _look(self) -> None:
        reconnects = self._reconnects
        self._check_server()
        for stream in _CONFIGS:
            await self._see(stream)
        self._seen_at = reconnects

    def _check_server(self) -> None:
        """Refuse a server that does not know `Nats-Expected-Last-Subject-Sequence-Subject`.

        It would ignore it, and refuse every journal of the very owner: a lease would be adopted for ever, and no step
        of its recovery follow.
        """
        version = self._client.connected_server_version
        if (version.major, version.minor) < _SERVER_MIN:
            needed = ".".join(map(str, _SERVER_MIN))
            raise BusUnreachable(f"the NATS server is {version.major}.{version.minor}: {needed} or later is needed")

    async def _see(self, stream: str) -> None:
        with translated(self._client, f"stream {stream}"):
            try:
                found = await self._jetstream.stream_info(stream)
            except nats.js.errors.NotFoundError as error:
                if error.err_code != STREAM_NOT_FOUND:
                    raise
                found = await self._create(stream)
        if self._creates:
            self._complain(stream, found.config)

    async def _create(self, stream: str) -> api.StreamInfo:
        if not self._creates:
            raise BusError(f"there is no stream {stream} there: no service of Holdfast has met this bus yet")
        try:
            return await self._jetstream.add_stream(_CONFIGS[stream].evolve(name=stream, num_replicas=self._replicas))
        except nats.js.errors.APIError as error:
            if error.err_code == STREAM_NAME_IN_USE:  # by somebody who was faster, and wants other replicas
                return await self._jetstream.stream_info(stream)
            if error.err_code == NOT_CLUSTERED:
                raise BusError(
                    f"stream {stream} cannot have {self._replicas} replicas: this NATS server is in no cluster. "
                    "Set HOLDFAST_REPLICAS=1, or name a cluster in HOLDFAST_NATS_URL"
                ) from error
            raise

    def _complain(self, stream: str, found: api.StreamConfig) -> None:
        """Say once what is other than wanted: whether to change a stream that is there is the operator's choice."""
        replicas = found.num_replicas or 1
        if replicas != self._replicas and self._is_news(stream, "num_replicas"):
            fix = f"nats stream edit {stream} --replicas {self._replicas}, or set HOLDFAST_REPLICAS={replicas}"
            _log.warning("stream has other replicas", stream=stream, replicas=replicas, wanted=self._replicas, fix=fix)
        for setting, option in _PROTECTION.items():
            value, wanted = getattr(found, setting) or None, getattr(_CONFIGS[stream], setting) or None
            if value != wanted and self._is_news(stream, setting):
                fix = f"nats stream edit {stream} {option.format(wanted=wanted)}"
                _log.error("stream is not protected", stream=stream, setting=setting, value=str(value), fix=fix)

    def _is_news(self, stream: str, setting: str) -> bool:
        known = (stream, setting) in self._told
        self._told.add((stream, setting))
        return not known


def _retrieved(look: asyncio.Task[None]) -> None:
    """Take note of an error that nobody may be left to hear: who waited was cancelled."""
    if not look.cancelled():
        look.exception()
