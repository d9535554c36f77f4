"""Errors and containment: logged, routed by severity, caught by DPC."""

from __future__ import annotations

import asyncio
import itertools
from unittest import mock

import pytest

from services.machine._clock import Clock
from services.machine._dpc import triggers
from services.machine._errors import detect
from shared.pcie import errors
from shared.pcie import registers as r
from shared.pcie.errors import Severity
from shared.protocol.requests import Injection
from tests.unit.machine.machine_bench import CARD, DISK, LONG_S, NESTED, PORT, UPPER, Bench, on_bench

ROOT = r.RootErrorStatus
ROOT_BITS = 0x7F


@on_bench(dpc=False)
async def test_a_fatal_error_is_logged_with_its_header_and_reaches_the_root_port(bench: Bench) -> None:
    bench.inject(Injection.ERROR, CARD, names=("MalfTLP",), header=(1, 2, 3, 4))

    assert bench.get(CARD, r.UNCORRECTABLE_STATUS) == r.Uncorrectable.MALFORMED_TLP
    assert bench.get(CARD, r.AER_CONTROL) & r.FIRST_ERROR_POINTER == 18
    assert [bench.get(CARD, register) for register in r.HEADER_LOG] == [1, 2, 3, 4]
    assert bench.get(CARD, r.DEVICE_STATUS) & r.DeviceStatus.FATAL_DETECTED
    expected = ROOT.UNCORRECTABLE_RECEIVED | ROOT.FIRST_FATAL | ROOT.FATAL_RECEIVED
    assert bench.get(UPPER, r.ROOT_ERROR_STATUS) & ROOT_BITS == expected
    assert bench.get(UPPER, r.ERROR_SOURCE) >> 16 == CARD.requester_id
    assert bench.vectors(UPPER) == [0]


@on_bench(dpc=False)
async def test_the_second_error_keeps_the_first_ones_pointer_and_counts_as_multiple(bench: Bench) -> None:
    bench.inject(Injection.ERROR, DISK, names=("CmpltTO",), header=(1, 0, 0, 0))
    bench.inject(Injection.ERROR, DISK, names=("PoisonTLPBlocked",), header=(2, 0, 0, 0))
    bench.inject(Injection.ERROR, DISK, names=("RxErr",), count=2)

    assert bench.get(DISK, r.AER_CONTROL) & r.FIRST_ERROR_POINTER == 14
    assert bench.get(DISK, r.HEADER_LOG[0]) == 1
    status = ROOT(bench.get(PORT, r.ROOT_ERROR_STATUS) & ROOT_BITS)
    assert ROOT.MULTIPLE_UNCORRECTABLE | ROOT.MULTIPLE_CORRECTABLE | ROOT.NONFATAL_RECEIVED in status
    assert ROOT.FIRST_FATAL not in status
    assert bench.vectors() == [1]


@on_bench(dpc=False)
async def test_what_is_masked_is_logged_and_goes_no_further(bench: Bench) -> None:
    bench.put(DISK, r.UNCORRECTABLE_MASK, r.Uncorrectable.COMPLETION_TIMEOUT)
    bench.inject(Injection.ERROR, DISK, names=("CmpltTO",), header=(9, 9, 9, 9))

    assert bench.get(DISK, r.UNCORRECTABLE_STATUS)
    assert bench.get(DISK, r.HEADER_LOG[0]) == 0
    assert bench.get(PORT, r.ROOT_ERROR_STATUS) & ROOT_BITS == 0


@on_bench(dpc=False)
async def test_nothing_passes_a_bridge_without_serr(bench: Bench) -> None:
    bench.turn(NESTED, r.BRIDGE_CONTROL, r.BridgeControl.SERR, on=False)
    bench.inject(Injection.ERROR, CARD, names=("MalfTLP",))
    assert bench.get(UPPER, r.ROOT_ERROR_STATUS) & ROOT_BITS == 0
    bench.inject(Injection.ERROR, CARD, names=("BadTLP",))
    assert bench.get(UPPER, r.ROOT_ERROR_STATUS) & ROOT_BITS == ROOT.CORRECTABLE_RECEIVED


@on_bench(dpc=False)
async def test_reporting_needs_device_control_or_serr(bench: Bench) -> None:
    bench.put(DISK, r.COMMAND, 0)
    bench.put(DISK, r.DEVICE_CONTROL, 0)
    bench.inject(Injection.ERROR, DISK, names=("MalfTLP", "RxErr"))
    assert bench.get(PORT, r.ROOT_ERROR_STATUS) & ROOT_BITS == 0
    bench.put(DISK, r.COMMAND, r.Command.SERR)
    bench.inject(Injection.ERROR, DISK, names=("MalfTLP", "RxErr"))
    assert bench.get(PORT, r.ROOT_ERROR_STATUS) & ROOT.CORRECTABLE_RECEIVED == 0
    assert bench.get(PORT, r.ROOT_ERROR_STATUS) & ROOT.FATAL_RECEIVED


@on_bench()
async def test_an_advisory_error_is_correctable_at_most_and_contains_nothing(bench: Bench) -> None:
    bench.put(PORT, r.DPC_CONTROL, r.DpcControl.TRIGGER_ON_NONFATAL | r.DpcControl.INTERRUPT_ENABLE)
    bench.put(DISK, r.CORRECTABLE_MASK, 0)
    bench.inject(Injection.ERROR, DISK, names=("UnsupReq", "NonFatalErr"))

    assert bench.get(DISK, r.UNCORRECTABLE_STATUS) == r.Uncorrectable.UNSUPPORTED_REQUEST
    assert bench.get(DISK, r.CORRECTABLE_STATUS) == r.Correctable.ADVISORY_NONFATAL
    assert bench.get(PORT, r.ROOT_ERROR_STATUS) & ROOT_BITS == ROOT.CORRECTABLE_RECEIVED
    assert bench.get(PORT, r.DPC_STATUS) == 0


@on_bench()
async def test_a_fatal_message_is_contained_and_swallowed(bench: Bench) -> None:
    bench.inject(Injection.ERROR, DISK, names=("MalfTLP",))

    status = bench.get(PORT, r.DPC_STATUS)
    assert status & r.DpcStatus.TRIGGER
    assert status & r.DpcStatus.INTERRUPT
    assert errors.dpc_reason(status) is r.DpcReason.ERR_FATAL
    assert bench.get(PORT, r.DPC_SOURCE) == DISK.requester_id
    assert bench.get(PORT, r.ROOT_ERROR_STATUS) & ROOT_BITS == 0
    assert not bench.link_active()
    assert bench.get(PORT, r.UNCORRECTABLE_STATUS) == 0
    assert sorted(bench.vectors()) == [0, 2]


@on_bench()
async def test_a_nonfatal_message_does_not_trigger_01b(bench: Bench) -> None:
    bench.inject(Injection.ERROR, DISK, names=("CmpltTO",))
    assert bench.get(PORT, r.DPC_STATUS) == 0
    assert bench.get(PORT, r.ROOT_ERROR_STATUS) & ROOT.NONFATAL_RECEIVED
    bench.inject(Injection.ERROR, PORT, names=("CmpltTO",))
    assert errors.dpc_reason(bench.get(PORT, r.DPC_STATUS)) is r.DpcReason.UNCORRECTABLE


@on_bench(rp_busy_s=0.1)
async def test_containment_is_not_released_while_the_root_port_is_busy(bench: Bench) -> None:
    bench.inject(Injection.ERROR, DISK, names=("MalfTLP",))
    bench.put(PORT, r.DPC_STATUS, r.DpcStatus.TRIGGER | r.DpcStatus.INTERRUPT)
    status = bench.get(PORT, r.DPC_STATUS)
    assert status & (r.DpcStatus.TRIGGER | r.DpcStatus.RP_BUSY) == r.DpcStatus.TRIGGER | r.DpcStatus.RP_BUSY
    assert not status & r.DpcStatus.INTERRUPT
    await asyncio.sleep(0.15)
    bench.put(PORT, r.DPC_STATUS, r.DpcStatus.TRIGGER)
    await asyncio.sleep(LONG_S)
    assert bench.link_active()
    assert bench.answers(DISK)
    assert bench.get(DISK, r.UNCORRECTABLE_STATUS) == r.Uncorrectable.MALFORMED_TLP


@on_bench()
async def test_a_pulled_card_triggers_containment_by_surprise_down(bench: Bench) -> None:
    bench.inject(Injection.REMOVE, PORT)
    assert bench.get(PORT, r.UNCORRECTABLE_STATUS) == r.Uncorrectable.SURPRISE_DOWN
    assert errors.dpc_reason(bench.get(PORT, r.DPC_STATUS)) is r.DpcReason.UNCORRECTABLE


@on_bench()
async def test_a_surprise_below_is_contained_by_the_port_above(bench: Bench) -> None:
    bench.inject(Injection.REMOVE, NESTED)
    assert errors.dpc_reason(bench.get(UPPER, r.DPC_STATUS)) is r.DpcReason.ERR_FATAL
    assert bench.get(UPPER, r.DPC_SOURCE) == NESTED.requester_id
    assert not bench.answers(NESTED)


@on_bench()
async def test_the_software_trigger_contains_only_where_containment_is_enabled(bench: Bench) -> None:
    bench.put(PORT, r.DPC_CONTROL, r.DpcControl.SOFTWARE_TRIGGER)
    assert bench.get(PORT, r.DPC_STATUS) == 0
    bench.put(PORT, r.DPC_CONTROL, r.DpcControl.SOFTWARE_TRIGGER | r.DpcControl.TRIGGER_ON_FATAL)
    assert errors.dpc_reason(bench.get(PORT, r.DPC_STATUS)) is r.DpcReason.SOFTWARE
    assert bench.get(PORT, r.DPC_CONTROL) == r.DpcControl.TRIGGER_ON_FATAL


@pytest.mark.parametrize("reason", list(r.DpcReason))
def test_every_reason_can_be_injected(reason: r.DpcReason) -> None:
    @on_bench()
    async def scenario(bench: Bench) -> None:
        bench.turn(PORT, r.DPC_CONTROL, r.DpcControl.ERR_COR_ENABLE, on=True)
        bench.inject(Injection.DPC, PORT, reason=reason.name.lower(), source=DISK)
        assert errors.dpc_reason(bench.get(PORT, r.DPC_STATUS)) is reason
        received = reason in {r.DpcReason.ERR_FATAL, r.DpcReason.ERR_NONFATAL}
        assert bench.get(PORT, r.DPC_SOURCE) == (DISK.requester_id if received else 0)
        assert bench.get(PORT, r.ROOT_ERROR_STATUS) & ROOT_BITS == ROOT.CORRECTABLE_RECEIVED
        pio = r.RpPio.MEMORY_TIMEOUT if reason is r.DpcReason.RP_PIO else 0
        assert bench.get(PORT, r.RP_PIO_STATUS) == pio

    scenario()


def test_what_triggers_is_as_the_design_says() -> None:
    """DESIGN 5, dpc: 01b any local one or a received ERR_FATAL, 10b ERR_NONFATAL as well, 00b nothing."""
    uncorrectable = (Severity.NONFATAL, Severity.FATAL)
    for severity, received in itertools.product(uncorrectable, (False, True)):
        assert not triggers(0, severity, received=received)
        assert triggers(2, severity, received=received)
        assert triggers(1, severity, received=received) is (severity is Severity.FATAL or not received)
    assert not triggers(2, Severity.CORRECTABLE, received=True)


FLOOD = 10_000


@on_bench(dpc=False)
async def test_a_flood_leaves_the_bench_time_for_others_and_is_detected_to_the_last_error(bench: Bench) -> None:
    """A timer for each error, after each of which the whole bench settles, would keep config requests waiting."""
    with mock.patch("services.machine._inject.detect", wraps=detect) as detected:
        with mock.patch.object(Clock, "later", autospec=True, side_effect=Clock.later) as planned:
            bench.inject(Injection.ERROR, DISK, names=("RxErr",), count=FLOOD, for_s=1.0)
        assert planned.call_count < FLOOD // 50
        await asyncio.sleep(0.5)
        assert abs(detected.call_count - FLOOD // 2) < FLOOD // 50
        await asyncio.sleep(0.5)
        assert detected.call_count == FLOOD


@on_bench(dpc=False)
async def test_a_flood_ends_when_its_card_is_pulled_and_is_not_the_next_cards(bench: Bench) -> None:
    bench.inject(Injection.ERROR, DISK, names=("RxErr",), count=100, for_s=2 * LONG_S)
    bench.inject(Injection.SWAP, PORT)
    await asyncio.sleep(LONG_S)
    bench.put(DISK, r.CORRECTABLE_STATUS, 0xFFFF_FFFF)
    bench.put(PORT, r.ROOT_ERROR_STATUS, ROOT_BITS)
    await asyncio.sleep(LONG_S)
    assert bench.answers(DISK)
    assert bench.get(DISK, r.CORRECTABLE_STATUS) == 0
    assert bench.get(PORT, r.ROOT_ERROR_STATUS) & ROOT_BITS == 0
