from __future__ import annotations

import itertools
from collections.abc import AsyncIterator

import nats
import pytest
from nats.aio.client import Client

from shared.runtime import (
    NatsBus,
)
from tests.conftest import NatsServer
from tests.integration.bus.bench import bus_to

_hosts = itertools.count(1)


@pytest.fixture
def host() -> str:
    """A host of its own for each test, so that all can share one server."""
    return f"host{next(_hosts)}"


@pytest.fixture
async def bus(nats_server: NatsServer) -> AsyncIterator[NatsBus]:
    async with bus_to(nats_server) as connected:
        yield connected


@pytest.fixture
async def person(nats_server: NatsServer) -> AsyncIterator[Client]:
    """A person with the plain `nats` command."""
    client = await nats.connect(nats_server.url)
    yield client
    await client.close()
