"""Every kind of hardware survives a reset in a running fleet: ARI and SR-IOV, a conventional bus, an event collector."""

from __future__ import annotations

from pathlib import Path

import services.console
from shared.protocol.facts import What
from tests.integration.conftest import StartFleet
from tests.integration.promises import keeps, verdicts

EVERYTHING = Path(services.console.__file__).parent / "data" / "everything.toml"
NIC_PORT = "0000:00:02.0"
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
