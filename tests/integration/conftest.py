"""Running fleets for the tests: one of one's own where something is killed, shared ones where ports suffice."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio

from tests.integration.fleet import Bench, start

StartFleet = Callable[..., Awaitable[Bench]]

TOPOLOGIES: Final = Path(__file__).parent / "topologies"
# Where death is not what a test is about, nobody should be taken for dead because the machine is slow.
UNHURRIED: Final = {"HOLDFAST_OWNER_S": "10", "HOLDFAST_ALLOWED_S": "10"}


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[StartFleet]:
    """Start fleets from topology text: `await fleet(text, environment={"HOLDFAST_ALLOWED_S": "1"})`."""
    async with contextlib.AsyncExitStack() as stack:
        count = 0

        async def start_one(topology: str, **options: Any) -> Bench:
            nonlocal count
            count += 1
            directory = tmp_path / f"fleet-{count}"
            directory.mkdir()
            return await stack.enter_async_context(start(topology, directory, **options))

        yield start_one


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    """One fleet for all tests that each keep to a port of `bench.toml`."""
    directory = tmp_path_factory.mktemp("bench")
    # Patient with a driver and a link that a test holds back, and with a test that is slow to say why a link is down.
    patient = {"HOLDFAST_DRIVER_S": "30", "HOLDFAST_LINK_S": "2", "HOLDFAST_VENDOR_ID_S": "10"}
    graces = {"HOLDFAST_REMOVAL_GRACE_S": "0.3", "HOLDFAST_BUTTON_S": "2"}
    options = {"environment": {**patient, **graces, **UNHURRIED}}
    async with start((TOPOLOGIES / "bench.toml").read_text(), directory, **options) as running:
        yield running


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def switch(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    """One fleet for all tests of the slots below a switch."""
    text = (TOPOLOGIES / "switch.toml").read_text()
    async with start(text, tmp_path_factory.mktemp("switch"), environment={"HOLDFAST_OWNER_S": "2"}) as running:
        yield running


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def attacked(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    """One fleet for the attacks on the ports of `attack.toml`: it polls often, and changes owners quickly."""
    directory = tmp_path_factory.mktemp("attacked")
    quick = {"HOLDFAST_DRIVER_S": "3", "HOLDFAST_OWNER_S": "1", "HOLDFAST_RECONCILE_S": "2"}
    async with start((TOPOLOGIES / "attack.toml").read_text(), directory, environment=quick) as running:
        yield running
