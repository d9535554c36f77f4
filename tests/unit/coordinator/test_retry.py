from __future__ import annotations

import asyncio
from types import SimpleNamespace

from services.coordinator._actor import RETRY_S, RecoveryActor
from services.coordinator._queue import Pending
from shared.pcie import Address
from shared.protocol.requests import Cause

from .work_bench import InVirtualTime


def test_hints_that_a_lease_has_ended_do_not_add_up_to_ever_more_retries(in_virtual_time: InVirtualTime) -> None:
    async def story() -> None:
        port = Address.parse("00:01.0")
        works = SimpleNamespace(context=None, fabric=None, recovery_on=lambda _: None)
        actor = RecoveryActor(port, works)  # type: ignore[arg-type]
        actor._pending = Pending("r-1", Cause.DPC)
        for _ in range(5):
            actor._retry_later()
        await asyncio.sleep(1.5 * RETRY_S)
        assert actor.statistics().depth == 1

    in_virtual_time(story())


def test_p9_a_flood_of_requests_does_not_put_off_what_waits(in_virtual_time: InVirtualTime) -> None:
    async def story() -> None:
        works = SimpleNamespace(context=None, fabric=None, recovery_on=lambda _: None)
        actor = RecoveryActor(Address.parse("00:01.0"), works)  # type: ignore[arg-type]
        actor._pending = Pending("r-1", Cause.DPC)
        for _ in range(5):
            actor._retry_later()
            await asyncio.sleep(RETRY_S / 2)
        assert actor.statistics().depth == 2

    in_virtual_time(story())
