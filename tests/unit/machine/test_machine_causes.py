"""Causes beyond the plain error: each as the registers and the interrupts show it."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from services.machine import Machine, MachineError, parse
from services.machine._topology_checks import check_function
from services.machine._topology_file import changed
from shared.pcie import Address, errors
from shared.pcie import registers as r
from shared.protocol.requests import Inject, Injection
from tests.unit.machine.machine_bench import DISK, LONG_S, NESTED, PORT, TRAINING_S, Bench, on_bench

ROOT = r.RootErrorStatus
ROOT_BITS = 0x7F
RP_PIO = {str(bit.name).lower(): bit for bit in r.RpPio}
HEADER = (0x04000001, 0x0000000F, 0x01000000, 0x0)


@pytest.mark.parametrize("name", sorted(RP_PIO))
def test_each_rp_pio_error_contains_and_is_logged_with_its_request(name: str) -> None:
    @on_bench()
    async def scenario(bench: Bench) -> None:
        bench.inject(Injection.DPC, PORT, reason="rp_pio", names=(name,), header=HEADER)
        status = bench.get(PORT, r.DPC_STATUS)
        assert errors.dpc_reason(status) is r.DpcReason.RP_PIO
        assert bench.get(PORT, r.RP_PIO_STATUS) == RP_PIO[name]
        assert 1 << ((status & r.DPC_RP_PIO_FIRST_ERROR) >> r.DPC_RP_PIO_FIRST_ERROR_SHIFT) == RP_PIO[name]
        assert tuple(bench.get(PORT, register) for register in r.RP_PIO_HEADER_LOG) == HEADER
        assert bench.vectors() == [0, 2]
        assert not bench.link_active()

    scenario()


@on_bench(more='dpc_trigger = "nonfatal"')
async def test_a_nonfatal_message_triggers_10b_and_is_swallowed(bench: Bench) -> None:
    bench.inject(Injection.ERROR, DISK, names=("CmpltTO",))
    assert errors.dpc_reason(bench.get(PORT, r.DPC_STATUS)) is r.DpcReason.ERR_NONFATAL
    assert bench.get(PORT, r.DPC_SOURCE) == DISK.requester_id
    assert bench.get(PORT, r.ROOT_ERROR_STATUS) & ROOT_BITS == 0


@on_bench(dpc=False)
async def test_a_poisoned_tlp_is_nonfatal_where_it_is_received(bench: Bench) -> None:
    bench.inject(Injection.ERROR, DISK, names=("TLP",), header=HEADER)
    assert bench.get(DISK, r.UNCORRECTABLE_STATUS) == r.Uncorrectable.POISONED_TLP
    assert bench.get(DISK, r.DEVICE_STATUS) & r.DeviceStatus.NONFATAL_DETECTED
    assert bench.get(PORT, r.ROOT_ERROR_STATUS) & ROOT_BITS == ROOT.UNCORRECTABLE_RECEIVED | ROOT.NONFATAL_RECEIVED


@on_bench()
async def test_a_poisoned_tlp_at_the_root_port_is_its_own_and_contains(bench: Bench) -> None:
    bench.inject(Injection.ERROR, PORT, names=("TLP",), header=HEADER)
    assert errors.dpc_reason(bench.get(PORT, r.DPC_STATUS)) is r.DpcReason.UNCORRECTABLE
    assert bench.get(PORT, r.UNCORRECTABLE_STATUS) == r.Uncorrectable.POISONED_TLP


@pytest.mark.parametrize(
    ("name", "received"),
    [
        ("CorrIntErr", ROOT.CORRECTABLE_RECEIVED),
        ("UncorrIntErr", ROOT.UNCORRECTABLE_RECEIVED | ROOT.FIRST_FATAL | ROOT.FATAL_RECEIVED),
    ],
)
def test_internal_errors_are_reported(name: str, received: ROOT) -> None:
    @on_bench(dpc=False)
    async def scenario(bench: Bench) -> None:
        bench.inject(Injection.ERROR, DISK, names=(name,))
        assert bench.get(PORT, r.ROOT_ERROR_STATUS) & ROOT_BITS == received

    scenario()


@on_bench(more='quirks = ["reports_both"]')
async def test_a_port_that_reports_both_contains_and_passes_the_message_on(bench: Bench) -> None:
    bench.inject(Injection.ERROR, DISK, names=("MalfTLP",))
    assert errors.dpc_reason(bench.get(PORT, r.DPC_STATUS)) is r.DpcReason.ERR_FATAL
    assert bench.get(PORT, r.ROOT_ERROR_STATUS) & ROOT.FATAL_RECEIVED
    assert bench.get(PORT, r.ERROR_SOURCE) >> 16 == DISK.requester_id
    assert sorted(bench.vectors()) == [0, 1, 2]


@on_bench(more='quirks = ["reports_both"]')
async def test_a_port_that_reports_both_does_so_for_its_own_errors_too(bench: Bench) -> None:
    bench.inject(Injection.ERROR, PORT, names=("DLP",))
    assert errors.dpc_reason(bench.get(PORT, r.DPC_STATUS)) is r.DpcReason.UNCORRECTABLE
    assert bench.get(PORT, r.ERROR_SOURCE) >> 16 == PORT.requester_id
    assert sorted(bench.vectors()) == [0, 1, 2]


@on_bench(more='stale = ["MalfTLP", "BadTLP"]')
async def test_scenario_31_stale_status_is_latched_and_nothing_was_sent(bench: Bench) -> None:
    assert bench.get(PORT, r.UNCORRECTABLE_STATUS) == r.Uncorrectable.MALFORMED_TLP
    assert bench.get(PORT, r.CORRECTABLE_STATUS) == r.Correctable.BAD_TLP
    assert bench.get(PORT, r.DEVICE_STATUS) & r.DeviceStatus.FATAL_DETECTED
    assert bench.get(PORT, r.ROOT_ERROR_STATUS) & ROOT_BITS == 0
    assert bench.get(PORT, r.DPC_STATUS) == 0
    assert bench.vectors() == []


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"stale": ["Nonsense"]}, "01:00.0: stale: no error is called 'Nonsense'"),
        ({"stale": ["MalfTLP"], "aer": False}, "01:00.0: stale names AER errors, and the function has no aer"),
        ({"quirks": ["reports_both"]}, "01:00.0: reports_both is a quirk of ports with dpc"),
        ({"quirks": ["sleeps"]}, "Invalid enum value 'sleeps'"),
    ],
)
def test_a_topology_file_that_asks_for_the_impossible_is_refused(fields: dict[str, Any], match: str) -> None:
    disk = parse(
        '[[function]]\naddress="00:01.0"\nkind="root_port"\nbus=[1,1]\nvendor=1\ndevice=1\n'
        '[[function]]\naddress="01:00.0"\nkind="endpoint"\nvendor=1\ndevice=1\n'
    ).function[1]
    with pytest.raises(MachineError, match=match):
        check_function(changed(disk, fields))


@on_bench()
async def test_lost_interrupts_never_arrive_and_the_next_does(bench: Bench) -> None:
    bench.inject(Injection.INTERRUPT_LOST, PORT, service="dpc", count=2)
    for expected in ([], [], [2]):
        bench.inject(Injection.DPC, PORT, reason="uncorrectable")
        assert [vector for vector in bench.vectors() if vector == 2] == expected
        bench.put(PORT, r.DPC_STATUS, r.DpcStatus.TRIGGER | r.DpcStatus.INTERRUPT)
        await asyncio.sleep(LONG_S)


async def ups(bench: Bench, seconds: float) -> int:
    """Count how often the nested link comes up; Link State Changed is cleared as it latches."""
    count, was_up = 0, bench.link_active(NESTED)
    for _ in range(int(seconds / 0.001)):
        await asyncio.sleep(0.001)
        up = bench.link_active(NESTED)
        count += up and not was_up
        was_up = up
    return count


async def retrain(bench: Bench) -> None:
    bench.turn(NESTED, r.LINK_CONTROL, r.LinkControl.LINK_DISABLE, on=True)
    bench.turn(NESTED, r.LINK_CONTROL, r.LinkControl.LINK_DISABLE, on=False)


@on_bench(dpc=False)
async def test_an_unstable_link_drops_so_often_and_then_stays_up(bench: Bench) -> None:
    bench.inject(Injection.UNSTABLE_LINK, NESTED, for_s=0.006, count=3)
    assert await ups(bench, LONG_S) == 0, "it drops from the next training on"
    assert bench.link_active(NESTED)
    await retrain(bench)
    assert await ups(bench, LONG_S) == 4
    assert bench.link_active(NESTED)
    await retrain(bench)
    assert await ups(bench, LONG_S) == 1


@on_bench(dpc=False)
async def test_a_link_that_is_unstable_for_good_is_mended_by_link_up_or_another_card(bench: Bench) -> None:
    for cure in (Injection.LINK_UP, Injection.SWAP):
        bench.inject(Injection.UNSTABLE_LINK, NESTED, count=0)
        await retrain(bench)
        assert await ups(bench, LONG_S) > LONG_S / (TRAINING_S + 0.02)
        bench.inject(cure, NESTED)
        await asyncio.sleep(0.1)
        assert bench.link_active(NESTED)
        assert await ups(bench, LONG_S) == 0


@on_bench(dpc=False)
async def test_a_link_that_went_down_before_its_drop_has_not_dropped(bench: Bench) -> None:
    bench.inject(Injection.UNSTABLE_LINK, NESTED, for_s=0.5, count=1)
    for _ in range(3):
        await retrain(bench)
        await asyncio.sleep(0.1)
    assert await ups(bench, 0.3) == 0, "what was planned for the link that went down does not hit the next"
    assert await ups(bench, LONG_S) == 1


@on_bench()
async def test_an_unstable_link_is_a_surprise_and_contains(bench: Bench) -> None:
    bench.inject(Injection.UNSTABLE_LINK, PORT)
    bench.turn(PORT, r.LINK_CONTROL, r.LinkControl.LINK_DISABLE, on=True)
    bench.turn(PORT, r.LINK_CONTROL, r.LinkControl.LINK_DISABLE, on=False)
    await asyncio.sleep(LONG_S)
    assert bench.get(PORT, r.UNCORRECTABLE_STATUS) == r.Uncorrectable.SURPRISE_DOWN
    assert bench.get(PORT, r.DPC_STATUS) & r.DpcStatus.TRIGGER


@pytest.mark.parametrize(
    ("what", "fields", "match"),
    [
        (Injection.INTERRUPT_LOST, {}, "interrupt_lost needs a service: hotplug, aer, dpc"),
        (Injection.INTERRUPT_LOST, {"service": "dpc", "count": 0}, "a count of at least 1"),
        (Injection.UNSTABLE_LINK, {"count": -1}, "a count of at least 1"),
        (Injection.UNSTABLE_LINK, {"for_s": -0.5}, "for_s is a time in seconds, not -0.5"),
        (Injection.LINK_FLAP, {"for_s": math.nan}, "for_s is a time"),
        (Injection.BUTTON, {"after_s": math.inf}, "after_s is a time"),
        (Injection.DPC, {"reason": "rp_pio", "names": ("tape_timeout",)}, "rp_pio knows the names config_unsupported"),
        (Injection.ERROR, {"names": ("NoSuch",)}, "no error is called 'NoSuch'"),
    ],
)
def test_what_no_lab_could_do_is_refused(what: Injection, fields: dict[str, Any], match: str) -> None:
    @on_bench()
    async def scenario(bench: Bench) -> None:
        with pytest.raises(MachineError, match=match):
            bench.inject(what, PORT, **fields)

    scenario()


@on_bench()
async def test_an_endpoint_raises_no_interrupts_to_lose(bench: Bench) -> None:
    with pytest.raises(MachineError, match="needs a port or an event collector"):
        bench.inject(Injection.INTERRUPT_LOST, DISK, service="aer")


COLLECTOR, SOUND, CRYPTO = (Address.parse(text) for text in ("00:1e.0", "00:1f.0", "00:1d.0"))
INTEGRATED = """
[[function]]
address = "00:1e.0"
kind = "event_collector"
vendor = 0x8086
device = 1
collects = ["00:1f.0"]
vectors = { aer = 3 }

[[function]]
address = "00:1f.0"
kind = "integrated_endpoint"
vendor = 0x8086
device = 2

[[function]]
address = "00:1d.0"
kind = "integrated_endpoint"
vendor = 0x8086
device = 3
"""


async def test_an_integrated_endpoint_reports_to_its_event_collector() -> None:
    machine, raised = Machine(parse(INTEGRATED)), list[tuple[Address, int]]()
    machine.listen(lambda port, vector: raised.append((port, vector)))
    collector = machine.find(COLLECTOR)
    assert collector is not None
    assert collector.aer is not None

    machine.inject(Inject(what=Injection.ERROR, target=CRYPTO, names=("MalfTLP",)))
    assert not raised, "nobody collects its messages"
    machine.inject(Inject(what=Injection.ERROR, target=SOUND, names=("MalfTLP",)))
    assert raised == [(COLLECTOR, 3)]
    assert collector.aer.get(r.ROOT_ERROR_STATUS) & ROOT.FATAL_RECEIVED
    assert collector.aer.get(r.ERROR_SOURCE) >> 16 == SOUND.requester_id

    machine.inject(Inject(what=Injection.INTERRUPT_LOST, target=COLLECTOR, service="aer"))
    collector.aer.put(r.ROOT_ERROR_STATUS, 0)
    machine.settle()
    machine.inject(Inject(what=Injection.ERROR, target=COLLECTOR, names=("UncorrIntErr",)))
    assert collector.aer.get(r.ERROR_SOURCE) >> 16 == COLLECTOR.requester_id, "its own errors, too"
    assert len(raised) == 1, "and that message was lost"
