"""Must show 4: containment in the middle of a bring-up. Recovery has the port at once; the card comes up once."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from typing import Final

import pytest

from shared.pcie import Address, timing
from shared.pcie.registers import LINK_STATUS, LinkStatus
from shared.protocol.facts import Fact, What
from tests.integration.campaign import some_of
from tests.integration.fleet import Bench
from tests.integration.promises import promises
from tests.integration.slots import after_close, once, until

PORT: Final = "00:0e.0"
CARD: Final = "0000:0e:00.0"
LONG_S: Final = 30.0  # longer than any wait of a bring-up

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def settling(_bench: Bench, _since: int) -> None:
    """Be there: a bring-up begins with the 20 ms."""


async def awaiting_link(_bench: Bench, _since: int) -> None:
    """Let the 20 ms pass: the link, which is stuck, is waited for."""
    await asyncio.sleep(2 * timing.LINK_SETTLE)


async def awaiting_first_request(bench: Bench, _since: int) -> None:
    """Wait until the link is active: the 100 ms begin."""
    express = (await bench.topology()).get(Address.parse(PORT)).capabilities.express

    async def look() -> bool | None:
        status = await bench.read(PORT, LINK_STATUS, express)
        return (status is not None and bool(status & LinkStatus.LINK_ACTIVE)) or None

    await bench.eventually(look, f"link of {PORT}")


async def awaiting_vendor_id(bench: Bench, since: int) -> None:
    """Wait until the card, which is slow, has been looked for."""

    async def look() -> bool | None:
        done = bench.facts(What.LEASE_EXECUTED, PORT, since)
        return any(one["verb"] == "enumerate" for fact in done for one in fact.data["operations"]) or None

    await bench.eventually(look, f"enumeration below {PORT}")


WAITS: Final[dict[str, tuple[str, Callable[[Bench, int], Awaitable[None]]]]] = {
    "20 ms": ("stuck_training", settling),
    "link": ("stuck_training", awaiting_link),
    "100 ms": ("slow_ready", awaiting_first_request),
    "vendor ID": ("slow_ready", awaiting_vendor_id),
}


async def bring_up_in(bench: Bench, wait: str) -> str:
    """Seat the card that was taken out; return the lease of its bring-up when that is in one of its waits."""
    await bench.inject("remove", PORT)
    await until(bench, PORT, "off")
    slowness, reached = WAITS[wait]
    since = bench.mark()
    await bench.inject(slowness, PORT, for_s=LONG_S)
    await bench.inject("insert", PORT)

    async def begun() -> str | None:
        return next((fact.lease for fact in came_up(bench, since)), None)

    lease = await bench.eventually(begun, f"bring-up of {PORT}")
    await reached(bench, since)
    return lease


def came_up(bench: Bench, since: int) -> list[Fact]:
    """Return the bring-ups that have begun since."""
    return [fact for fact in bench.facts(What.SLOT_STATE, PORT, since) if fact.data["to"] == "power_on"]


async def contain(bench: Bench) -> None:
    """Contain the port; its card will be quick to answer from now on."""
    await bench.inject("dpc", PORT, reason="uncorrectable")
    await bench.inject("slow_ready", PORT)


async def recovered(bench: Bench, operation: str, since: int) -> str:
    """Wait until recovery is over; assert that it took the lease of `operation` without a wait (P5)."""
    started = await bench.wait_fact(What.RECOVERY_STARTED, PORT, since=since)
    assert started.lease is not None
    await bench.closed(PORT, started.lease)
    absorbed = bench.facts(What.LEASE_ABSORBED, PORT, since)
    assert [(fact.lease, fact.data["heir"]) for fact in absorbed] == [(operation, started.lease)]
    assert not bench.facts(What.RECOVERY_WAITING, PORT, since), "P5: recovery waited"
    return started.lease


async def enabled_once(bench: Bench, lease: str, since: int) -> None:
    """Assert that the slot was judged afresh after the lease, and the card enabled once."""
    await until(bench, PORT, "on")
    assert after_close(bench, await once(bench, What.DEVICE_ADDED, CARD, since), lease)
    assert [after_close(bench, fact, lease) for fact in came_up(bench, since)] == [True]
    assert not bench.facts(What.SLOT_NOT_READY, PORT, since), "the bring-up failed, instead of being absorbed"
    device = (await bench.registry())[CARD]
    assert (device.present, device.driver) == (True, "nvme")


@pytest.mark.parametrize("wait", some_of(WAITS, 1))
async def test_p5_containment_in_a_wait_of_a_bring_up_is_recovered_at_once_and_the_card_enabled_once(
    bench: Bench, wait: str
) -> None:
    async with promises(bench):
        operation = await bring_up_in(bench, wait)
        since = bench.mark()
        await contain(bench)
        lease = await recovered(bench, operation, since)
        await enabled_once(bench, lease, since)


async def test_p5_recovery_needs_no_answer_of_a_hotplug_that_is_stopped_in_a_bring_up(bench: Bench) -> None:
    async with promises(bench):
        operation = await bring_up_in(bench, "vendor ID")
        since = bench.mark()
        bench.kill("hotplug", signal.SIGSTOP)
        try:
            await contain(bench)
            lease = await recovered(bench, operation, since)
        finally:
            bench.kill("hotplug", signal.SIGCONT)
        await enabled_once(bench, lease, since)
