"""The slot under test."""

from collections.abc import AsyncIterator

import pytest

from tests.unit.hotplug.hotplug_bench import Lab


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    made = Lab()
    yield made
    made.actor.rest()
