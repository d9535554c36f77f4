"""The bus over NATS. Only modules named `_nats*` know nats-py; `connect` is the way in."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from math import inf
from typing import Any, Final, TypeVar

import nats.errors
import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as NatsSubscription
from nats.micro.request import Request as MicroRequest
from nats.micro.service import EndpointConfig, Service, ServiceConfig

from shared.protocol import PATIENCE, Message, ProtocolError, Reason, Refused, VersionError, decode, encode, is_json
from shared.protocol.facts import Fact
from shared.protocol.routes import User
from shared.protocol.subjects import by_name

from ._nats_client import HoldfastClient, close_subscription, describe
from ._nats_errors import translated
from ._nats_facts import FactReader, Outbox
from ._nats_records import RECORD_TIMEOUT_S, Records
from ._nats_streams import Streams
from ._settings import Settings
from .bus import BusError, BusRefused, BusStatistics, BusUnreachable, Entry, Incoming, Request, Subscription, Unanswered

OUTBOX_S: Final = 2.0  # for the outbox at the end
CLOSE_S: Final = 3.0  # for draining at the end
_STREAMS_RETRY_S: Final = 0.5
_STREAMS_COMPLAIN_EVERY: Final = 6  # attempts
_MICRO_VERSION: Final = "0.1.0"
# It states no facts and keeps no records, and may not make the streams; nor should the hardware wait for them.
_WITHOUT_STREAMS: Final = frozenset({User.MACHINE})
_NOT_A_NAME: Final = re.compile(r"[^A-Za-z0-9_-]+")
_NOBODY: Final = "503"  # the server's own answer where nobody listens
_SERVICE_ERROR: Final = "Nats-Service-Error"

M = TypeVar("M", bound=Message)
_log = structlog.get_logger()


async def connect(settings: Settings, service: str, *, timeout_s: float | None = None, creates: bool = True) -> NatsBus:
    """Connect and see to the streams; try for `timeout_s`, or for ever. Without `creates`, they must be there.

    Raises BusUnreachable or BusRefused, saying where it looked and what to do.
    """
    client = HoldfastClient()
    bus: NatsBus | None = None
    shown = settings.nats_url_shown
    try:
        async with asyncio.timeout(timeout_s):
            await client.open(settings, f"{service}@{settings.instance}")
            bus = NatsBus(client, settings, service, creates=creates)
            if service not in _WITHOUT_STREAMS:
                await bus.prepare()
    except TimeoutError as late:
        told = describe(client.last_error) if client.last_error else "no answer"
        missing = bus.missing if bus is not None and client.is_connected else told
        await client.shut(CLOSE_S)
        raise BusUnreachable(
            f"the bus is unreachable at {shown}: {missing}. Start it (`holdfast up`), or set HOLDFAST_NATS_URL"
        ) from late
    except (asyncio.CancelledError, BusRefused):
        await client.shut(CLOSE_S)
        raise
    return bus


class NatsBus:
    """One connection to NATS. See `Bus` for what its methods promise."""

    def __init__(self, client: HoldfastClient, settings: Settings, service: str, *, creates: bool = True) -> None:
        self._client = client
        self._settings = settings
        self._service = service
        jetstream = client.jetstream(timeout=RECORD_TIMEOUT_S)
        self._streams = Streams(client, jetstream, settings.replicas, creates=creates)
        self._records = Records(client, jetstream, self._streams)
        self._reader = FactReader(client, jetstream, self._streams)
        self._outbox = Outbox(client, jetstream, self._streams)
        self._storing = asyncio.create_task(self._outbox.run(), name="outbox")
        self._malformed = 0
        self.missing = "JetStream did not answer there (start it with -js)"  # while the streams are waited for

    async def prepare(self) -> None:
        """Wait until the streams exist."""
        attempts = 0
        while True:
            try:
                return await self._streams.ensure()
            except BusError as error:
                if not isinstance(error, Unanswered):
                    self.missing = describe(error)
                if attempts % _STREAMS_COMPLAIN_EVERY == 0:
                    _log.warning("streams not ready, trying on", error=describe(error))
                attempts += 1
                await asyncio.sleep(_STREAMS_RETRY_S)

    @property
    def gone(self) -> asyncio.Event:
        """Set when the connection is closed for good: the process cannot go on (C10)."""
        return self._client.gone

    async def publish(self, subject: str, message: Message) -> None:
        """Send a hint, at most once."""
        with translated(self._client, subject):
            await self._client.publish(subject, encode(message))

    async def request(self, subject: str, message: Message, reply: Any, *, timeout_s: float) -> Any:
        """Ask and await the reply."""
        with translated(self._client, subject):
            answer = await self._client.request(
                subject, encode(message), timeout=timeout_s, headers={PATIENCE: f"{timeout_s:g}"}
            )
        if answer.headers and _SERVICE_ERROR in answer.headers:
            raise Unanswered(f"{subject}: the service failed: {answer.headers[_SERVICE_ERROR]}")
        return decode(answer.data, reply)

    async def request_all(
        self, subject: str, message: Message, reply: Any, *, timeout_s: float, quiet_s: float
    ) -> tuple[Any, ...]:
        """Ask everybody, until nobody replies any more."""
        arrived: asyncio.Queue[Msg] = asyncio.Queue()
        answers: list[Msg] = []
        with translated(self._client, subject):
            inbox = self._client.new_inbox()
            subscription = await self._client.subscribe(inbox, cb=arrived.put)
            try:
                await self._client.publish(subject, encode(message), reply=inbox)
                while (answer := await _next(arrived, quiet_s if answers else timeout_s)) is not None:
                    answers.append(answer)
            finally:
                await close_subscription(self._client, subscription)
        return tuple(self._decoded(answers, reply))

    async def subscribe(self, subject: str, kind: type[M], handler: Callable[[Incoming], None]) -> Subscription:
        """Deliver messages of `kind`."""
        return await self._subscribe((subject,), kind, handler)

    async def _subscribe(
        self, each: tuple[str, ...], kind: type[M], handler: Callable[[Incoming], None]
    ) -> Subscription:
        async def deliver(message: Msg) -> None:  # nats-py wants a coroutine
            try:
                decoded: M = decode(message.data, kind)
            except ProtocolError as error:
                self._count_malformed(message.subject, error)
                return
            handler(Incoming(message.subject, decoded))

        subscribed = _Subscribed(self._client, [])
        try:
            for subject in each:
                with translated(self._client, subject):
                    subscribed.add(await self._client.listen(subject, deliver))
        except BaseException:
            await subscribed.close()
            raise
        return subscribed

    async def watch_facts(self, subject: str, handler: Callable[[Incoming], None]) -> Subscription:
        """Deliver facts as they are published, without history."""
        return await self._subscribe(by_name(subject), Fact, handler)

    async def serve(
        self, name: str, endpoints: Mapping[str, tuple[type[Message], Callable[[Request], None]]]
    ) -> Subscription:
        """Register a micro service with these endpoints."""
        config = ServiceConfig(
            name=_NOT_A_NAME.sub("-", name),
            version=_MICRO_VERSION,
            description=f"Holdfast {self._service}",
            metadata={"instance": self._settings.instance, "hosts": ",".join(self._settings.hosts)},
        )
        with translated(self._client, name):
            service = Service(self._client, config)
            await service.start()
            for subject, (kind, handler) in endpoints.items():
                await service.add_endpoint(
                    EndpointConfig(name=_endpoint_name(subject), subject=subject, handler=self._endpoint(kind, handler))
                )
            await self._client.settled(endpoints)
        return _Served(self._client, service)

    def record(self, fact: Fact) -> None:
        """Put a fact into the outbox."""
        self._outbox.put(fact)

    def facts(
        self, subjects: tuple[str, ...] = (), *, since_sequence: int = 1, follow: bool = False
    ) -> AsyncIterator[Fact]:
        """Iterate over stored facts."""
        return self._reader.read(subjects, since_sequence, follow=follow)

    async def get(self, key: str) -> Entry | None:
        """Read a record."""
        return await self._records.get(key)

    async def put(self, key: str, message: Message, *, revision: int) -> int:
        """Write a record on the condition of its revision."""
        return await self._records.put(key, message, revision=revision)

    async def put_owned(self, key: str, message: Message, *, owner_key: str, owner_revision: int) -> int:
        """Write a record on the condition of the owner's revision."""
        return await self._records.put_owned(key, message, owner_key=owner_key, owner_revision=owner_revision)

    async def keys(self, prefix: str) -> tuple[Entry, ...]:
        """List records."""
        return await self._records.keys(prefix)

    def statistics(self) -> BusStatistics:
        """Return the counters."""
        return BusStatistics(
            reconnects=self._client.stats["reconnects"],
            malformed=self._malformed + self._reader.malformed,
            slow=self._client.slow,
            facts_pending=self._outbox.pending,
            connected=self._client.ready,
        )

    async def close(self) -> None:
        """Flush the outbox as far as possible, drain and close."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(OUTBOX_S if self._client.ready else 0):
                await self._outbox.flushed()
        if self._outbox.pending:
            _log.warning("facts not stored at the end", pending=self._outbox.pending)
        self._storing.cancel()
        await asyncio.wait({self._storing})
        await self._streams.close()
        await self._client.shut(CLOSE_S)

    def _decoded(self, answers: list[Msg], reply: Any) -> Iterator[Any]:
        for answer in answers:
            try:
                yield decode(answer.data, reply)
            except ProtocolError as error:
                self._count_malformed(answer.subject, error)

    def _count_malformed(self, subject: str, error: ProtocolError) -> None:
        self._malformed += 1
        _log.warning("malformed message", subject=subject, malformed=self._malformed, error=str(error))

    def _endpoint(self, kind: type[Message], handler: Callable[[Request], None]) -> Any:
        async def handle(arrived: MicroRequest) -> None:
            request = _Request(arrived)
            try:
                request.message = decode(arrived.data, kind)
            except ProtocolError as error:
                self._count_malformed(arrived.subject, error)
                reason = Reason.VERSION if isinstance(error, VersionError) else Reason.MALFORMED
                await request.answer(Refused(reason=reason, message=str(error)))
                return
            handler(request)

        return handle


class _Request:
    """A request that arrived at an endpoint."""

    message: Message

    def __init__(self, arrived: MicroRequest) -> None:
        self._arrived = arrived
        self._until = asyncio.get_running_loop().time() + _patience_s(arrived.headers)
        self.subject = arrived.subject

    @property
    def abandoned(self) -> bool:
        """Whether the asker's time is over, counted from the arrival here: clocks may differ."""
        return asyncio.get_running_loop().time() > self._until

    async def answer(self, reply: Message) -> None:
        """Answer in the asker's form."""
        try:
            await self._arrived.respond(encode(reply, as_json=is_json(self._arrived.data)))
        except (nats.errors.Error, ValueError) as error:  # ValueError: the asker left no address
            _log.info("answer not sent", subject=self.subject, error=describe(error))


class _Subscribed:
    """Subscriptions, until closed."""

    def __init__(self, client: HoldfastClient, subscriptions: list[NatsSubscription]) -> None:
        self._client = client
        self._subscriptions = subscriptions

    def add(self, subscription: NatsSubscription) -> None:
        """Close this one, too, when closed."""
        self._subscriptions.append(subscription)

    async def close(self) -> None:
        """Stop delivery."""
        while self._subscriptions:
            await close_subscription(self._client, self._subscriptions.pop())


class _Served(_Subscribed):
    """A micro service, until closed.

    Its `stop` would cancel what is being handled (C8). The handlers here only hand on, so it is enough to end the
    subscriptions one by one.
    """

    def __init__(self, client: HoldfastClient, service: Service) -> None:
        endpoints = [endpoint._subscription for endpoint in service._endpoints]  # noqa: SLF001 - no public way
        verbs = list(service._subscriptions.values())  # noqa: SLF001 - no public way
        super().__init__(client, [subscription for subscription in endpoints + verbs if subscription is not None])


async def _next(arrived: asyncio.Queue[Msg], bound_s: float) -> Msg | None:
    """Return the next reply; None if none comes in time, or the server says that nobody listens."""
    try:
        async with asyncio.timeout(bound_s):
            answer = await arrived.get()
    except TimeoutError:
        return None
    return None if (answer.headers or {}).get("Status") == _NOBODY else answer


def _patience_s(headers: Mapping[str, str] | None) -> float:
    """Return how long an asker waits, in seconds; for ever if it does not say, or says what is no number."""
    try:
        return float((headers or {}).get(PATIENCE, inf))
    except ValueError:
        return inf


def _endpoint_name(subject: str) -> str:
    """Make a name from what follows host (and port) in a subject: `pcie.lab.fabric.read` -> `fabric-read`."""
    return _NOT_A_NAME.sub("-", ".".join(subject.split(".")[2:])).strip("-") or "endpoint"
