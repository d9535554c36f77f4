"""A nats-server as `keys init` configures it, and connections to it as each of its users, or as a stranger."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import os
import signal
import ssl
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Final, Self

from nats.aio.client import Client
from nats.aio.msg import Msg

from services.console import _nats_server
from services.console._process import Process
from services.console.keys import _store as _key_store
from shared.protocol import permissions
from shared.runtime import public_key

START_S: Final = 60.0
STOP_S: Final = 10.0
_MESSAGE_S: Final = 20
_VIOLATION: Final = "permissions violation"


def make_keys(directory: Path, *hosts: str, at: dt.datetime | None = None, days: int = 2) -> Path:
    """Make keys as `keys init` would have at another time; return the directory."""
    now = at or dt.datetime.now(dt.UTC)
    found = _key_store.read(directory)
    _key_store.write(directory, _key_store.complete(found, hosts or ("lab",), ("nats",), days, now))
    return directory


class SecuredServer:
    """One nats-server with JetStream, TLS and users."""

    def __init__(self, directory: Path, keys: Path | None, port: int | None = None) -> None:
        self._directory = directory
        self.keys = keys
        self._port = port
        self._process: Process
        self.url = ""

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start; the second time on the port that it had."""
        self._directory.mkdir(parents=True, exist_ok=True)
        command = _nats_server.command(self._directory, self._port, self.keys)
        self._process = await Process.start(
            "nats", command, os.environ, on_line=lambda *_: None, is_ready=_nats_server.is_ready
        )
        self.url = _nats_server.url(await self._process.ready(START_S))
        self._port = int(self.url.rpartition(":")[2])

    async def stop(self) -> None:
        """Stop it."""
        await self._process.stop(STOP_S)

    async def reload(self) -> None:
        """Have the running server read what `keys` holds now."""
        _nats_server.command(self._directory, None, self.keys)
        self._process.signal(signal.SIGHUP)

    def settings(self, user: str) -> dict[str, str]:
        """Return the environment of a service that is `user` here."""
        assert self.keys is not None
        return {
            "HOLDFAST_NATS_URL": self.url,
            "HOLDFAST_NATS_CREDENTIAL": str(self.keys / f"{user}.nk"),
            "HOLDFAST_NATS_CA": str(self.keys / "ca.pem"),
        }

    def inbox(self, user: str) -> str:
        """Return the prefix of the addresses at which `user` waits for answers."""
        assert self.keys is not None
        return permissions.inbox(public_key((self.keys / f"{user}.nk").read_bytes().strip()))


class Guest:
    """A plain client, without anything of ours between it and the server."""

    def __init__(self, client: Client, inbox: str) -> None:
        self.client = client
        self.inbox = inbox
        self.violations: list[str] = []

    async def may_publish(self, subjects: Iterable[str]) -> set[str]:
        """Publish to each, one by one; return those that the server took."""
        return {subject for subject in subjects if await self._publishes(subject)}

    async def may_subscribe(self, subjects: Iterable[str]) -> set[str]:
        """Subscribe to each, one by one; return those that the server took."""
        return {subject for subject in subjects if await self._subscribes(subject)}

    async def send(self, subject: str, data: bytes, reply: str = "", headers: dict[str, str] | None = None) -> None:
        """Send, and wait until the server has seen to it."""
        await self.client.publish(subject, data, reply=reply, headers=headers)
        await self.settled()

    async def ask(self, subject: str, data: bytes, headers: dict[str, str] | None = None) -> Msg:
        """Ask and return the answer."""
        return await self.client.request(subject, data, timeout=_MESSAGE_S, headers=headers)

    async def _publishes(self, subject: str) -> bool:
        self.violations.clear()
        await self.send(subject, b"")
        return not self.violations

    async def _subscribes(self, subject: str) -> bool:
        self.violations.clear()
        subscription = await self.client.subscribe(subject)
        await self.settled()
        await subscription.unsubscribe()
        return not self.violations

    async def settled(self) -> None:
        """Wait until the server has seen to what was sent."""
        # nats-py's first PING may overtake what is still queued; the second comes after it.
        await self.client.flush(_MESSAGE_S)
        await self.client.flush(_MESSAGE_S)

    async def on_error(self, error: Exception) -> None:
        if _VIOLATION in str(error):
            self.violations.append(str(error))


@contextlib.asynccontextmanager
async def guest(server: SecuredServer, user: str) -> AsyncIterator[Guest]:
    """Connect as one of the server's users."""
    assert server.keys is not None
    seed = (server.keys / f"{user}.nk").read_bytes().strip()
    connected = Guest(Client(), server.inbox(user))
    await connected.client.connect(
        server.url,
        nkeys_seed_str=seed.decode(),
        tls=ssl.create_default_context(cafile=server.keys / "ca.pem"),
        inbox_prefix=connected.inbox,
        error_cb=connected.on_error,
        allow_reconnect=False,
    )
    try:
        yield connected
    finally:
        await connected.client.close()


async def heard(guest: Guest, subject: str) -> asyncio.Queue[Msg]:
    """Listen; return where it arrives."""
    found: asyncio.Queue[Msg] = asyncio.Queue()
    await guest.client.subscribe(subject, cb=found.put)
    await guest.settled()
    return found


async def arrived(found: asyncio.Queue[Msg]) -> Msg:
    """Wait for the next message."""
    async with asyncio.timeout(_MESSAGE_S):
        return await found.get()
