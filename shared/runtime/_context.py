"""What a service is given for each host that it serves."""

from __future__ import annotations

import asyncio

import structlog

from shared.protocol import Message

from ._facts import Facts
from ._metrics import Metrics
from ._ownership import Ownership
from ._settings import Settings
from .bus import Bus, WrongRevision


class Context:
    """One host in one service, for one tenure of its ownership."""

    def __init__(
        self,
        service: str,
        host: str,
        bus: Bus,
        settings: Settings,
        ownership: Ownership | None,
        stopping: asyncio.Event | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self.service = service
        self.host = host
        self.bus = bus
        self.settings = settings
        self.ownership = ownership  # None where the service owns nothing
        self.log = structlog.get_logger().bind(service=service, host=host)
        self.metrics = Metrics(service) if metrics is None else metrics
        self.facts = Facts(bus, service, host, self.metrics)
        # Once set: take no new work, finish what must not be left half done, return.
        self.stopping = asyncio.Event() if stopping is None else stopping
        self.waiting: str | None = "its registers have not been read yet"  # None while it is ready
        self.proved = False  # it was ready once: so our credential was ours, whatever the bus says of it later

    def ready(self) -> None:
        """Say that the registers have been read and requests are answered, until `wait`. To repeat it says nothing.

        It is the line that supervisors and tests wait for, and what /readyz needs.
        """
        self.proved = True
        if self.waiting is not None:
            self.waiting = None
            self.log.info("ready", instance=self.settings.instance)

    def wait(self, why: str) -> None:
        """Say that this cannot be relied on, until `ready`; `why` is what /readyz answers. Logged where it was ready."""
        if self.waiting is None:
            self.log.warning("not ready", why=why)
        self.waiting = why

    async def put_owned(self, key: str, message: Message) -> int:
        """Write a record on condition that the host is still ours. Raises WrongRevision where it is not."""
        if self.ownership is None:
            raise WrongRevision(f"{key}: {self.service} owns nothing")
        return await self.ownership.put_owned(key, message)
