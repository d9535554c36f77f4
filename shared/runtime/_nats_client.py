"""The NATS connection, tuned for a control system: it fails at once, keeps nothing for later, and comes back for ever.

Seven changes to nats-py 2.16 (prior-art/nats.md, 1.2), each in the one place where it can be made:

- what had not left when the connection broke never leaves (C2), rather than being executed seconds later;
- reconnecting does not wait until a frozen peer has taken the bytes still in the socket (C4);
- the queue of bytes to send is bounded, since without its buffer the client does not bound it (C2);
- a flush comes after what was sent before it: as it is, its PING overtakes what is still queued, so a subscription or
  an endpoint may not be there yet when it returns (found here: 1 request in 30 met nobody);
- no credential leaves over a connection that should be encrypted and is not;
- what the server does not permit fails at once, instead of after its timeout;
- nobody can guess where an answer is waited for: whoever may ask could name it, and have somebody else answer there.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, Final

import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.nuid import NUID

from . import _nats_security as security
from ._settings import Settings

PING_INTERVAL_S: Final = 1  # with two outstanding: a frozen server is noticed after 2.4 to 3.0 s (C3)
PINGS_OUTSTANDING_MAX: Final = 2
RECONNECT_WAIT_S: Final = 0.2
CONNECT_ATTEMPT_S: Final = 2
_CANCEL_AGAIN_S: Final = 0.1
DRAIN_S: Final = 2
FLUSH_S: Final = 2
BACKLOG_MAX: Final = 1 << 20  # bytes accepted but not yet taken by the socket
_PING: Final = b"PING\r\n"
_COMPLAIN_EVERY_S: Final = 3.0  # while the server does not answer
_VIOLATION: Final = re.compile(r'permissions violation for (publish|subscription) to "([^"]*)"')
_SUBSCRIPTION: Final = "subscription"
_TOLD_MAX: Final = 256  # violations that are logged; an asker who invents addresses for answers could go on for ever

_log = structlog.get_logger()


class NotPermittedError(nats.errors.Error):
    """The server does not let our credential publish or subscribe there."""


class _Unguessable(NUID):
    """Tokens for the addresses of answers, in place of nats-py's, which count up: who has seen one knows the next.

    A thief may not publish to the inbox of another, but JetStream, and a service that both may ask, answer where the
    asker says. What keeps such an answer from being taken for the one that is waited for is this token alone.
    """

    def next(self) -> bytearray:
        """Return 128 random bits in 22 characters: nats-py cuts addresses of answers at the length of its own."""
        return bytearray(secrets.token_urlsafe(16), "ascii")


class HoldfastClient(Client):
    """nats-py's client with these changes, and what it learns on the way as plain counters."""

    def __init__(self) -> None:
        super().__init__()
        self._nuid = _Unguessable()
        self.slow = 0
        self.gone = asyncio.Event()  # closed for good: nothing will reconnect
        self._complained_at: float | None = None
        self._shown = ""
        self._leaving = False
        self._opening: Settings | None = None  # while the first connection is sought
        self._refused = 0  # attempts that met a server which would not have us, or we not it
        self._tls_required = False
        self._asked: weakref.WeakKeyDictionary[asyncio.Future[Msg], str] = weakref.WeakKeyDictionary()
        self._violations: set[tuple[str, str]] = set()

    async def open(self, settings: Settings, name: str) -> None:
        """Connect, trying again for as long as it takes; bound it with a timeout from outside.

        Raises BusRefused where it would not help: something is wrong with the credential or a certificate.
        """
        secured = security.load(settings)
        self._shown = settings.nats_url_shown
        self._opening = settings
        self._tls_required = secured.tls_required
        connecting = self.connect(
            list(settings.servers),
            name=name,
            nkeys_seed_str=secured.seed,
            inbox_prefix=secured.inbox,
            tls=secured.tls,
            error_cb=self._on_error,
            disconnected_cb=self._on_disconnected,
            reconnected_cb=self._on_reconnected,
            closed_cb=self._on_closed,
            max_reconnect_attempts=-1,
            reconnect_time_wait=RECONNECT_WAIT_S,  # type: ignore[arg-type]  # only ever slept for
            connect_timeout=CONNECT_ATTEMPT_S,
            ping_interval=PING_INTERVAL_S,
            max_outstanding_pings=PINGS_OUTSTANDING_MAX,
            pending_size=-1,
            drain_timeout=DRAIN_S,
        )
        await _to_the_end(connecting)
        self._opening = None
        self._complained_at = None

    async def listen(self, subject: str, handler: Callable[[Msg], Awaitable[None]]) -> Subscription:
        """Subscribe; from the return on, the server delivers."""
        subscription = await self.subscribe(subject, cb=handler)
        try:
            await self.settled((subject,))
        except BaseException:
            await close_subscription(self, subscription)
            raise
        return subscription

    async def settled(self, subjects: Iterable[str]) -> None:
        """Wait until the server has taken what was subscribed. Raises NotPermittedError where it has not."""
        await self.flush(FLUSH_S)
        for subject in subjects:
            if (_SUBSCRIPTION, subject.lower()) in self._violations:
                raise NotPermittedError(_not_permitted(_SUBSCRIPTION, subject))

    async def publish(
        self, subject: str, payload: bytes = b"", reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """Publish, and keep in mind who waits for an answer, should it not be permitted."""
        asking = self._resp_map.get(reply[len(self._resp_sub_prefix or b"") :]) if reply else None
        if asking is not None:
            self._asked[asking] = subject.lower()
        await super().publish(subject, payload, reply, headers)

    @property
    def ready(self) -> bool:
        """Whether what is sent now has a chance to arrive now."""
        return self.is_connected and not self.is_draining_pubs and self.pending_data_size < BACKLOG_MAX

    def abort(self) -> None:
        """Drop the socket with whatever is in it."""
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None:
            writer.transport.abort()

    async def shut(self, bound_s: float) -> None:
        """Answer what has arrived, send what is waiting, and close, in bounded time whatever the server does."""
        self._leaving = True
        leaving = asyncio.ensure_future(self.drain() if self.is_connected else self.close())
        _, late = await asyncio.wait({leaving}, timeout=bound_s)
        if late:
            self.abort()
            leaving.cancel()
            await asyncio.wait({leaving}, timeout=bound_s)
        elif (error := leaving.exception()) is not None:
            _log.debug("closing the connection", error=describe(error))

    async def _attempt_reconnect(self) -> None:
        self.abort()
        self._pending.clear()
        self._pending_data_size = 0
        await super()._attempt_reconnect()

    async def _send_ping(self, future: asyncio.Future[bool] | None = None) -> None:
        self._pongs.append(future or asyncio.get_running_loop().create_future())
        await self._send_command(_PING)
        await self._flush_pending()

    def _connect_command(self) -> bytes:
        """Greet the server; what follows is the signature of our key."""
        if self._tls_required and not self._encrypted:
            raise security.TlsMissingError
        self._quiet_end()
        command: bytes = super()._connect_command()
        return command

    @property
    def _encrypted(self) -> bool:
        writer = getattr(self._transport, "_io_writer", None)
        if writer is None:  # a WebSocket
            return self._current_server is not None and self._current_server.uri.scheme == "wss"
        return writer.get_extra_info("ssl_object") is not None

    def _quiet_end(self) -> None:
        """Tell the stream that it is encrypted, which nats-py does not; it would complain at every end of TLS."""
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None and self._encrypted:
            writer.transport.get_protocol()._over_ssl = True  # noqa: SLF001 - no public way

    async def _on_error(self, error: Exception) -> None:
        if self._opening is not None:
            self._refuse(error, self._opening)
        if (violation := _VIOLATION.search(str(error))) is not None:
            self._violated(violation[1], violation[2])
        elif isinstance(error, nats.errors.SlowConsumerError):
            self.slow += 1
            _log.warning("slow consumer", subject=error.subject, dropped=self.slow)
        elif isinstance(error, (OSError, asyncio.TimeoutError, nats.errors.Error)):
            self._complain(error)
        else:
            _log.error("handler crashed", exc_info=error)

    def _refuse(self, error: Exception, settings: Settings) -> None:
        """Give up while opening, once as many attempts were refused as there are servers."""
        refused = security.refusal(error, self._shown, settings)
        if refused is None:
            return
        self._refused += 1
        if self._refused >= len(settings.servers):
            raise refused from error

    def _violated(self, verb: str, subject: str) -> None:
        """Fail what waits for an answer from there, and say once what is missing. The server told us in lower case."""
        for asking, asked in list(self._asked.items()):
            if verb != _SUBSCRIPTION and asked == subject and not asking.done():
                asking.set_exception(NotPermittedError(_not_permitted(verb, subject)))
        if (verb, subject) in self._violations:
            return
        # Our subscriptions are few and are looked up here; askers may think of any number of addresses for answers.
        if verb == _SUBSCRIPTION or len(self._violations) < _TOLD_MAX:
            self._violations.add((verb, subject))
            _log.error("not permitted", what=verb, subject=subject, url=self._shown)

    def _complain(self, error: Exception) -> None:
        """Log trouble with the connection, at most every few seconds."""
        now = asyncio.get_running_loop().time()
        if self._complained_at is None or now - self._complained_at >= _COMPLAIN_EVERY_S:
            self._complained_at = now
            trouble = "bus error" if self.is_connected else "bus unreachable, trying on"
            _log.warning(trouble, url=self._shown, error=describe(error))

    async def _on_disconnected(self) -> None:
        if not self._leaving:
            _log.warning("bus disconnected", url=self._shown)

    async def _on_reconnected(self) -> None:
        self._violations.clear()  # the permissions may be others now
        self._complained_at = None
        _log.info("bus reconnected", url=self._shown)

    async def _on_closed(self) -> None:
        self.gone.set()


def _not_permitted(verb: str, subject: str) -> str:
    return f"the bus permits this credential no {verb} to {subject}"


def describe(error: BaseException | None) -> str:
    """Say what an error is, also where it carries no text."""
    return str(error) or type(error).__name__


async def close_subscription(client: Client, subscription: Subscription) -> None:
    """End a subscription; one whose connection is ending needs no farewell."""
    if client.is_closed or client.is_draining:
        return
    with contextlib.suppress(nats.errors.Error):
        await subscription.unsubscribe()


async def _to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Await `work`; where we are cancelled, cancel it until it ends.

    One cancellation is not enough: `asyncio.wait_for` of Python 3.11 loses it if its time comes, or what it waits for
    fails, in the same moment, and nats-py's loop over the servers then goes on for ever.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    finally:
        while not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=_CANCEL_AGAIN_S)
