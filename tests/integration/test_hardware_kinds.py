"""Every kind of hardware survives a reset, or a flood, in a running fleet: ARI and SR-IOV, a conventional bus ..."""

from __future__ import annotations

from pathlib import Path

import services.console
from shared.pcie import Address
from shared.pcie.registers import CORRECTABLE_STATUS, Correctable
from shared.protocol.facts import Fact, What
from tests.integration.attack import pending
from tests.integration.conftest import StartFleet
from tests.integration.promises import keeps, verdicts

EVERYTHING = Path(services.console.__file__).parent / "data" / "everything.toml"
NIC_PORT = "0000:00:02.0"
BRIDGE_PORT = "0000:00:01.0"
DRIVE = "0000:42:00.0"
BURST = 10  # facts of one function that aer tells in five seconds
VIRTUAL = [f"0000:10:02.{n}" for n in range(4)]


async def test_p3_virtual_functions_integrated_endpoints_and_a_silent_port_lose_nothing(fleet: StartFleet) -> None:
    bench = await fleet(EVERYTHING.read_text())
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
    assert not await pending(bench, BRIDGE_PORT)


async def test_a_flood_is_counted_to_the_last_time_that_its_status_was_cleared_and_told_ten_times_in_five_seconds(
    fleet: StartFleet,
) -> None:
    """What comes while the status is set leaves no trace in any register; all else is counted, told or not."""
    bench = await fleet(EVERYTHING.read_text())
    status = (await bench.topology()).get(Address.parse(DRIVE)).capabilities.aer + CORRECTABLE_STATUS.offset
    since = bench.mark()
    await bench.inject("error", DRIVE, names=("BadTLP",), count=2_000, for_s=5.0)
    await bench.inject("error", DRIVE, names=("RxErr",), after_s=5.5)

    async def told() -> int | None:
        cleared = [fact for fact in bench.facts(What.LEASE_ACKNOWLEDGED, since=since) if _is_of(fact, DRIVE, status)]
        seen = sum(bool((fact.data["value"] or 0) & Correctable.BAD_TLP) for fact in cleared)  # None: no answer
        counts = [fact.data["counts"] for fact in bench.facts(What.ERROR_CORRECTABLE, since=since)]
        return seen if counts and counts[-1] == {"BadTLP": seen, "RxErr": 1} else None

    assert await bench.eventually(told, "every clearing of the status is counted, and told in the end")
    assert len(bench.facts(What.ERROR_CORRECTABLE, since=since)) <= 3 * BURST
    assert not bench.facts(What.RECOVERY_STARTED, since=since)
    assert not await pending(bench, DRIVE)


def _is_of(fact: Fact, function: str, offset: int) -> bool:
    return (fact.data["function"], fact.data["offset"]) == (function, offset)
