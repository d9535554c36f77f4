"""Causes that are not a plain error: what reports twice, what nobody says, what was there before, what is integrated."""

from __future__ import annotations

from typing import Final

from shared.protocol.facts import Fact, What
from tests.integration.attack import pending
from tests.integration.conftest import StartFleet
from tests.integration.fleet import Bench
from tests.integration.promises import keeps, verdicts

LONG_S: Final = "300"  # nothing is found by looking again: only by what somebody says

TOPOLOGY: Final = """
[[function]]
address = "00:01.0"
kind = "root_port"
bus = [1, 1]
vendor = 0x8086
device = 0x6f04
dpc = true
quirks = ["reports_both"]
slot = {number = 1}

[[function]]
address = "01:00.0"
kind = "endpoint"
vendor = 0x144d
device = 0xa808
serial = "00-25-38-00-00-00-00-01"
driver = {name = "nvme"}

[[function]]
address = "00:02.0"
kind = "root_port"
bus = [2, 2]
vendor = 0x8086
device = 0x6f04
dpc = true
dpc_trigger = "nonfatal"
stale = ["MalfTLP"]
slot = {number = 2}
vectors = {hotplug = 0, aer = 1, dpc = 2}

[[function]]
address = "02:00.0"
kind = "endpoint"
vendor = 0x144d
device = 0xa808
serial = "00-25-38-00-00-00-00-02"
stale = ["CmpltTO", "UnsupReq"]
driver = {name = "nvme"}

[[function]]
address = "00:1e.0"
kind = "event_collector"
vendor = 0x8086
device = 0x2023
collects = ["00:1f.0"]

[[function]]
address = "00:1f.0"
kind = "integrated_endpoint"
vendor = 0x8086
device = 0x2021
flr = true
driver = {name = "qat"}
"""


async def started(fleet: StartFleet) -> Bench:
    return await fleet(TOPOLOGY, environment={"HOLDFAST_RECONCILE_S": LONG_S})


def ignored(bench: Bench, reason: str) -> list[Fact]:
    return [fact for fact in bench.facts(What.ERROR_IGNORED) if fact.data["reason"] == reason]


async def recovered(bench: Bench, port: str, since: int) -> dict[str, str]:
    first = await bench.wait_fact(What.RECOVERY_STARTED, port, since=since)
    return verdicts(await bench.closed(port, first.lease))


async def test_p6_a_port_that_reports_one_fault_by_aer_and_dpc_is_recovered_once(fleet: StartFleet) -> None:
    bench = await started(fleet)
    since = bench.mark()
    async with keeps(bench, "00:01.0", resets=True):
        await bench.inject("error", "01:00.0", names=["MalfTLP"])
        assert set((await recovered(bench, "00:01.0", since)).values()) == {"kept"}

        async def calm() -> bool | None:
            return not await pending(bench, "00:01.0") or None

        await bench.eventually(calm, "the root port's latch acknowledged")
    assert len(bench.facts(What.RECOVERY_STARTED, since=since)) == 1
    assert {fact.data["reason"] for fact in bench.facts(What.ERROR_IGNORED, "00:01.0", since)} <= {
        "contained",
        "provoked",
    }


async def test_p9_a_lost_containment_interrupt_is_made_up_for_by_hotplug_s_look(fleet: StartFleet) -> None:
    bench = await started(fleet)
    since = bench.mark()
    await bench.inject("interrupt_lost", "00:02.0", service="dpc")
    async with keeps(bench, "00:02.0", resets=True):
        await bench.inject("error", "02:00.0", names=["TLP"], header=[0x4A000001, 0xF, 0, 0])
        assert set((await recovered(bench, "00:02.0", since)).values()) == {"kept"}
    entered = await bench.wait_fact(What.CONTAINMENT_ENTERED, "00:02.0", since=since)
    assert entered.data["reason"] == "err_nonfatal"


async def test_scenario_31_stale_status_is_told_and_cleared_and_stands_in_nobody_s_way(fleet: StartFleet) -> None:
    bench = await started(fleet)

    async def told() -> bool | None:
        return len(ignored(bench, "stale")) == 2 or None

    await bench.eventually(told, "both functions' stale status")
    for address in ("00:02.0", "02:00.0"):

        async def cleared(address: str = address) -> bool | None:
            return not {"device", "uncorrectable"} & (await pending(bench, address)).keys() or None

        await bench.eventually(cleared, f"no status left at {address}")
    assert not bench.facts(What.RECOVERY_STARTED)
    since = bench.mark()
    await bench.inject("remove", "00:02.0")
    removed = await bench.wait_fact(What.DEVICE_REMOVED, "00:02.0", since=since)
    assert removed.data["function"] == "0000:02:00.0"


async def test_an_integrated_endpoint_is_recovered_at_itself(fleet: StartFleet) -> None:
    bench = await started(fleet)
    since = bench.mark()
    await bench.inject("error", "00:1f.0", names=["UncorrIntErr"])
    error = await bench.wait_fact(What.ERROR_FATAL, "00:1f.0", since=since)
    assert error.data["function"] == "0000:00:1f.0"
    begun = await bench.wait_fact(What.RECOVERY_STARTED, "00:1f.0", since=since)
    record = await bench.closed("00:1f.0", begun.lease)
    assert record.verdicts == {"0000:00:1f.0": "kept"}
    assert not await pending(bench, "00:1f.0")


FIRMWARE_FIRST: Final = """
firmware_first = true

[[function]]
address = "00:01.0"
kind = "root_port"
bus = [1, 1]
vendor = 0x8086
device = 0x6f04
dpc = true
slot = {number = 1}

[[function]]
address = "01:00.0"
kind = "endpoint"
vendor = 0x144d
device = 0xa808
serial = "00-25-38-00-00-00-00-01"
driver = {name = "nvme"}
"""
SUCCESS: Final = 0x80
FAILURE: Final = 0x81


async def test_on_a_firmware_first_host_a_containment_is_recovered_when_it_is_handed_over_and_answered(
    fleet: StartFleet,
) -> None:
    bench = await fleet(FIRMWARE_FIRST, environment={"HOLDFAST_RECONCILE_S": LONG_S})
    since = bench.mark()
    async with keeps(bench, "00:01.0", resets=True):
        await bench.inject("error", "01:00.0", names=["MalfTLP"])
        begun = await bench.wait_fact(What.RECOVERY_STARTED, "00:01.0", since=since)
        assert begun.cause == "edr"
        assert set(verdicts(await bench.closed("00:01.0", begun.lease)).values()) == {"kept"}
        answer = await bench.wait_fact(What.LEASE_FIRMWARE_ANSWERED, "00:01.0", since=since)
        assert answer.data["status"] == SUCCESS
    assert not bench.facts(What.ERROR_FATAL, since=since)

    # A notification that is about nothing is answered all the same.
    since = bench.mark()
    await bench.inject("edr", "00:01.0")
    answer = await bench.wait_fact(What.LEASE_FIRMWARE_ANSWERED, "00:01.0", since=since)
    assert answer.data["status"] == SUCCESS


async def test_on_a_firmware_first_host_an_event_of_a_port_in_quarantine_is_answered_with_failure(
    fleet: StartFleet,
) -> None:
    """Nobody opens a lease there, so no lease's end would answer, and the firmware would wait for ever."""
    bench = await fleet(FIRMWARE_FIRST, environment={"HOLDFAST_READY_S": "1", "HOLDFAST_RECONCILE_S": LONG_S})
    port, since = "00:01.0", bench.mark()
    await bench.inject("slow_ready", port, for_s=1000.0)
    await bench.inject("dpc", port, reason="uncorrectable")
    await bench.wait_fact(What.QUARANTINE_ENTERED, port, since=since)
    await bench.wait_fact(What.LEASE_CLOSED, port, since=since)
    entered = await bench.wait_fact(What.LEASE_FIRMWARE_ANSWERED, port, since=since)
    assert entered.data["status"] == FAILURE

    since = bench.mark()
    await bench.inject("edr", port)
    again = await bench.wait_fact(What.LEASE_FIRMWARE_ANSWERED, port, since=since)
    assert again.data["status"] == FAILURE
    assert not (await bench.leases()).edr
    assert not bench.facts(What.RECOVERY_STARTED, since=since)


async def test_on_a_firmware_first_host_an_error_that_nobody_contained_is_the_firmwares(fleet: StartFleet) -> None:
    bench = await fleet(FIRMWARE_FIRST, environment={"HOLDFAST_RECONCILE_S": LONG_S})
    since = bench.mark()
    await bench.inject("error", "01:00.0", names=["CmpltTO"])
    await bench.inject("interrupt", "00:01.0", service="aer")
    said = await bench.wait_fact(What.ERROR_IGNORED, "00:01.0", since=since)
    assert said.data["reason"] == "firmware"
    assert not bench.facts(What.RECOVERY_STARTED, since=since)
    assert not bench.facts(What.LEASE_ACKNOWLEDGED)
