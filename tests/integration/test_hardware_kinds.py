"""Every kind of hardware survives a reset, or a flood, in a running fleet: ARI and SR-IOV, a conventional bus ..."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

import services.console
from shared.pcie import Address
from shared.pcie.registers import CORRECTABLE_STATUS, Correctable
from shared.protocol.facts import Fact, What
from tests.integration.attack import pending
from tests.integration.fleet import Bench, start
from tests.integration.promises import keeps, verdicts

pytestmark = pytest.mark.asyncio(loop_scope="module")

EVERYTHING = Path(services.console.__file__).parent / "data" / "everything.toml"
NIC_PORT = "0000:00:02.0"
BRIDGE_PORT = "0000:00:01.0"
DRIVE = "0000:42:00.0"
BURST, WINDOW_S = 10, 5.0  # so many facts of one function does aer tell in so many seconds
VIRTUAL = [f"0000:10:02.{n}" for n in range(4)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    async with start(EVERYTHING.read_text(), tmp_path_factory.mktemp("everything")) as running:
        yield running


async def test_p3_virtual_functions_integrated_endpoints_and_a_silent_port_lose_nothing(bench: Bench) -> None:
    topology = await bench.topology()
    assert [str(one.address) for one in topology if one.physical is not None] == VIRTUAL

    since = bench.mark()
    async with keeps(bench, NIC_PORT, resets=True):
        await bench.inject("dpc", NIC_PORT, reason="uncorrectable")
        started = await bench.wait_fact(What.RECOVERY_STARTED, NIC_PORT, since=since)
        got = verdicts(await bench.closed(NIC_PORT, started.lease))
    assert {got[address] for address in ("0000:10:00.0", "0000:10:01.0", *VIRTUAL)} == {"kept"}

    since = bench.mark()
    async with keeps(bench, "0000:00:03.0", resets=True):
        await bench.inject("error", "0000:18:00.0", names=("MalfTLP",))
        started = await bench.wait_fact(What.RECOVERY_STARTED, "0000:00:03.0", since=since)
        await bench.closed("0000:00:03.0", started.lease)

    since = bench.mark()
    async with keeps(bench, "0000:00:0c.0", resets=False):
        await bench.inject("error", "0000:00:0c.0", names=("CmpltTO",))
        reported = await bench.wait_fact(What.ERROR_NONFATAL, since=since)
        assert reported.data["function"] == "0000:00:0c.0"
        started = await bench.wait_fact(What.RECOVERY_STARTED, since=since)
        await bench.closed(str(started.port), started.lease)

    # What asserts SERR# on a conventional bus has no error registers: the bridge's message is all that tells of it.
    since = bench.mark()
    async with keeps(bench, BRIDGE_PORT, resets=True):
        await bench.inject("error", "0000:02:00.0", names=("MalfTLP",))
        started = await bench.wait_fact(What.RECOVERY_STARTED, BRIDGE_PORT, since=since)
        got = verdicts(await bench.closed(BRIDGE_PORT, started.lease))
    assert set(got.values()) == {"kept"}
    await nothing_is_left(bench, BRIDGE_PORT)


async def test_a_flood_is_counted_no_more_often_than_its_status_was_cleared_and_told_ten_times_in_five_seconds(
    bench: Bench,
) -> None:
    """What comes while the status is set leaves no trace in any register; all else is counted, told or not.

    An acknowledgement that a slow fabric answered too late is sent again, and that clears nothing that was counted.
    """
    status = (await bench.topology()).get(Address.parse(DRIVE)).capabilities.aer + CORRECTABLE_STATUS.offset
    since = bench.mark()
    await bench.inject("error", DRIVE, names=("BadTLP",), count=2_000, for_s=5.0)
    await bench.inject("error", DRIVE, names=("RxErr",), after_s=5.5)

    async def told() -> bool | None:
        cleared = [fact for fact in bench.facts(What.LEASE_ACKNOWLEDGED, since=since) if _is_of(fact, DRIVE, status)]
        seen = sum(bool((fact.data["value"] or 0) & Correctable.BAD_TLP) for fact in cleared)  # None: no answer
        counted = [fact.data["counts"] for fact in bench.facts(What.ERROR_CORRECTABLE, since=since)]
        last = counted[-1] if counted else {}
        return (last.get("RxErr") == 1 and 0 < last["BadTLP"] <= seen) or None

    await bench.eventually(told, "the flood is counted, and told in the end with what came after it")
    facts = bench.facts(What.ERROR_CORRECTABLE, since=since)
    windows = 2 + (facts[-1].at - facts[0].at).total_seconds() / WINDOW_S
    assert len(facts) <= windows * BURST
    assert not bench.facts(What.RECOVERY_STARTED, since=since)
    await nothing_is_left(bench, DRIVE)


async def nothing_is_left(bench: Bench, port: str) -> None:
    """Wait until no status register of the port holds an event or an error."""

    async def look() -> bool | None:
        return not await pending(bench, port) or None

    await bench.eventually(look, f"nothing is left at {port}")


def _is_of(fact: Fact, function: str, offset: int) -> bool:
    return (fact.data["function"], fact.data["offset"]) == (function, offset)
