"""A lab for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.unit.aer.aer_lab import Lab


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    """Yield a lab, whose actors plan no look beyond the test."""
    lab = Lab()
    yield lab
    for actor in lab.actors.values():
        actor.rest()
