"""Must show 1: what Linux once did wrong, share 4 of the files beside this one."""

from __future__ import annotations

import pytest

from tests.scenarios.files import fulfilled, share


@pytest.mark.parametrize("name", share(3))
async def test_what_linux_did_wrong_cannot_happen_here(name: str) -> None:
    await fulfilled(name)
