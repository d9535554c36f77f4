from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from .fabric_bench import Rig


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    started = await Rig(tmp_path / "ledger").start()
    yield started
    started.ledger.close()
