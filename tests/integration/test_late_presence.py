"""Must show 8: presence that changes after the link change was consumed. Port 11 shows presence 1.5 s late."""

from __future__ import annotations

from typing import Final

import pytest

from shared.pcie.registers import SlotStatus
from shared.protocol.facts import What
from tests.integration.fleet import Bench
from tests.integration.promises import keeps, promises, quiet, verdicts
from tests.integration.slots import after_close, closed_after, contained_in, once, until

PORT: Final = "00:11.0"
CARD: Final = "0000:11:00.0"

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_p3_a_presence_change_after_the_lease_has_consumed_the_link_change_is_no_removal(bench: Bench) -> None:
    since = bench.mark()
    async with keeps(bench, PORT, resets=True):
        lease = await contained_in(bench, PORT, CARD, "error_detected")

        async def absent() -> bool | None:
            status = await bench.slot_status(PORT)
            return (status is not None and not status & SlotStatus.PRESENCE) or None

        await bench.eventually(absent, f"no presence at {PORT}, late as it is")
        assert verdicts(await closed_after(bench, PORT, CARD, lease)) == {CARD: "kept"}

        async def ignored() -> bool | None:
            told = bench.facts(What.SLOT_IGNORED, PORT, since)
            late = [fact for fact in told if fact.data["latched"] & SlotStatus.PRESENCE_CHANGED]
            return any(after_close(bench, fact, lease) for fact in late) or None

        await bench.eventually(ignored, f"belated presence of {PORT} ignored")


async def test_p4_a_removal_and_an_insertion_whose_presence_shows_late_are_each_acted_on_once(bench: Bench) -> None:
    since = bench.mark()
    async with promises(bench):
        await bench.inject("remove", PORT)
        await once(bench, What.DEVICE_REMOVED, CARD, since)
        await until(bench, PORT, "off")
        await quiet(bench, PORT)
        await bench.inject("insert", PORT)
        await once(bench, What.DEVICE_ADDED, CARD, since)
        await until(bench, PORT, "on")
    await once(bench, What.DEVICE_REMOVED, CARD, since)
    await once(bench, What.DEVICE_ADDED, CARD, since)
