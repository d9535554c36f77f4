"""Must show 4: containment in the middle of a bring-up. Recovery has the port at once; the card comes up once."""

from __future__ import annotations

import signal

import pytest

from shared.pcie.registers import LINK_STATUS, LinkStatus
from shared.protocol.facts import Fact, What
from tests.integration.fleet import Bench
from tests.integration.promises import promises
from tests.integration.slots import once, until

PORT, CARD = "00:0e.0", "0000:0e:00.0"
LONG_S = 30.0  # longer than any wait of a bring-up

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def begun(bench: Bench, since: int) -> Fact:
    """Wait until a bring-up has begun."""

    async def look() -> Fact | None:
        states = bench.facts(What.SLOT_STATE, PORT, since)
        return next((fact for fact in states if fact.data["to"] == "power_on"), None)

    return await bench.eventually(look, f"bring-up of {PORT}")


async def link_active(bench: Bench) -> None:
    """Wait until the link is active: the 100 ms begin."""
    express = (await bench.topology()).get(bench.address(PORT)).capabilities.express

    async def look() -> bool | None:
        status = await bench.read(PORT, LINK_STATUS, express)
        return bool(status is not None and status & LinkStatus.LINK_ACTIVE) or None

    await bench.eventually(look, f"link of {PORT}")


async def asked_for_vendor_id(bench: Bench, since: int) -> None:
    """Wait until the bring-up looks for the card: the vendor ID wait."""

    async def look() -> bool | None:
        done = bench.facts(What.LEASE_EXECUTED, PORT, since)
        return any(one["verb"] == "enumerate" for fact in done for one in fact.data["operations"]) or None

    await bench.eventually(look, f"enumeration below {PORT}")


async def in_wait(bench: Bench, wait: str) -> Fact:
    """Insert a card, and return the fact of its bring-up when that is in one of its waits."""
    since = bench.mark()
    if wait in {"settle", "link"}:
        await bench.inject("stuck_training", PORT, for_s=LONG_S)
    else:
        await bench.inject("slow_ready", PORT, for_s=LONG_S)
    await bench.inject("insert", PORT)
    started = await begun(bench, since)
    if wait == "link":
        await slot_powered(bench, started, since)
    elif wait == "before the first request":
        await link_active(bench)
    elif wait == "vendor ID":
        await asked_for_vendor_id(bench, since)
    await bench.inject("slow_ready", PORT)  # for the next time that the link comes up
    return started
