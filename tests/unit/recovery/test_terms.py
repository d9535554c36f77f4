"""What a lease says beyond its domain: what may differ, what stays down, what is the firmware's, what is kept quiet."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from shared.pcie import Address, IdentityField, Topology
from shared.pcie import registers as reg
from shared.protocol.fabric import Lease, Rank, Reach, Result, SavedReporting
from shared.recovery import Bounds, PortState
from tests.unit.fabric.fabric_bench import (
    AER,
    CARD,
    DOWN,
    DPC,
    DPC_STATUS,
    ERROR_MASK,
    ERROR_STATUS,
    EXPRESS,
    LINK_CONTROL,
    LINK_STATUS,
    NESTED,
    PRESENT,
    ROOT,
    SLOT_STATUS,
    UP,
)

from .forward_bench import BAR0, BAR_VALUE, BRIDGE_CONTROL, COMMAND, DISABLE, SBR, TRIGGER, ForwardBench

SERR = int(reg.Command.SERR)
DEVICE_CONTROL = EXPRESS + reg.DEVICE_CONTROL.offset


def with_terms(bench: ForwardBench, **terms: Any) -> Lease:
    return msgspec.structs.replace(bench.lease(), **terms)


# --- accept ---


@pytest.mark.parametrize(
    ("accept", "result"),
    [((IdentityField.SERIAL,), Result.RECOVERED), ((), Result.REPLACED), ((IdentityField.REVISION,), Result.REPLACED)],
)
def test_p3_what_the_holder_intends_to_change_may_differ_and_nothing_else(
    accept: tuple[IdentityField, ...], result: Result
) -> None:
    bench = ForwardBench()
    bench.trigger(DOWN)
    bench.swap(CARD, serial=0x99)
    bench.spaces[CARD].place(reg.Register("BAR 0", BAR0, 4, "", rw=0xFFFF_FFFF), 0)
    (outcome,) = (one for one in bench.roll(with_terms(bench, accept=accept)).outcomes if one.function == CARD)
    assert (outcome.result, outcome.differs) == (result, ("serial",))
    assert (bench.get(CARD, BAR0, 4) == BAR_VALUE) is (result is Result.RECOVERED)


def test_p4_what_may_differ_of_one_function_may_not_of_its_sibling() -> None:
    bench = ForwardBench()
    bench.trigger(DOWN)
    lease = bench.lease()
    of_card = {CARD: (IdentityField.SERIAL,)}
    saved = (msgspec.structs.replace(one, accept=of_card.get(one.address, ())) for one in lease.functions)
    for one in (CARD, NESTED):
        bench.swap(one, serial=0x99)
    verified = bench.roll(msgspec.structs.replace(lease, functions=tuple(saved)))
    assert (verified.result(CARD), verified.result(NESTED)) == (Result.RECOVERED, Result.REPLACED)


def test_another_device_id_that_is_accepted_does_not_end_the_wait_for_its_siblings() -> None:
    bench = ForwardBench()
    bench.trigger(DOWN)
    bench.spaces[CARD].place(reg.DEVICE_ID, 0x4711)
    bench.ready_s[NESTED] = 1.0
    verified = bench.roll(with_terms(bench, accept=(IdentityField.DEVICE,)))
    assert verified.result(NESTED) is verified.result(CARD) is Result.RECOVERED


# --- Quarantine ---


def above(bench: ForwardBench) -> Lease:
    """A lease on 00:01.0 while 02:00.0 is in quarantine."""
    functions = tuple(one for one in bench.lease().functions if one.address not in {CARD, NESTED})
    return with_terms(bench, quarantined=(DOWN,), functions=functions)


@pytest.mark.parametrize("by", ["dpc", "link_disable"])
def test_an_ancestor_neither_releases_nor_awaits_what_is_in_quarantine(by: str) -> None:
    bench = ForwardBench()
    if by == "dpc":
        bench.trigger(DOWN)
    else:
        bench.set(DOWN, LINK_CONTROL, DISABLE)
        bench.take_down(DOWN)
    bench.trigger(ROOT)
    verified = bench.roll(above(bench))
    assert {one.result for one in verified.outcomes} == {Result.RECOVERED}
    assert [one.port for one in verified.ports] == [ROOT]
    assert bench.now < 1.0
    held = bench.get(DOWN, DPC_STATUS) & TRIGGER if by == "dpc" else bench.get(DOWN, LINK_CONTROL) & DISABLE
    assert held, "a hot reset clears Link Disable: it is set again"
    assert not [one for one in bench.writes if one.function in {CARD, NESTED}]


def test_a_run_over_a_domain_with_a_quarantine_that_holds_writes_nothing() -> None:
    bench = ForwardBench()
    bench.set(DOWN, LINK_CONTROL, DISABLE)
    bench.take_down(DOWN)
    bench.roll(above(bench))
    assert bench.writes == []


def test_link_control_of_a_quarantined_port_is_restored_without_letting_the_link_up() -> None:
    bench = ForwardBench()
    bench.set(DOWN, LINK_CONTROL, DISABLE)
    bench.take_down(DOWN)
    lease = above(bench)
    bench.set(DOWN, LINK_CONTROL, DISABLE | 0x40)
    bench.roll(lease)
    (restored,) = (one for one in bench.writes if one.function == DOWN and one.offset == LINK_CONTROL)
    assert restored.value == DISABLE


# --- Firmware first ---


def test_without_an_edr_event_no_error_register_is_written_and_containment_stays() -> None:
    bench = ForwardBench()
    bench.trigger(DOWN)
    bench.set(DOWN, ERROR_STATUS, int(reg.Uncorrectable.SURPRISE_DOWN), 4)
    bench.set(ROOT, BRIDGE_CONTROL, SBR)
    bench.set(UP, ERROR_MASK, 0x10, 4)  # not as it was saved
    verified = bench.roll(with_terms(bench, firmware_owned=True, rank=Rank.EXTERNAL))
    assert (DOWN, PortState.FIRMWARE) in [(one.port, one.state) for one in verified.ports]
    assert verified.result(CARD) is Result.FAILED
    assert bench.get(DOWN, DPC_STATUS) & TRIGGER
    assert bench.writes != []
    touched = [one for one in bench.writes if AER <= one.offset < AER + 0x2C or DPC <= one.offset < DPC + 0x0C]
    assert touched == []


# --- Quiet errors ---


def test_what_is_kept_quiet_is_not_restored_before_close() -> None:
    bench = ForwardBench()
    saved = SavedReporting(function=DOWN, command=SERR, bridge_control=0x2, device_control=0x6)
    bench.set(DOWN, COMMAND, 0x0106)
    bench.images[DOWN] = bench.spaces[DOWN].image()
    bench.trigger(ROOT)
    assert {one.result for one in bench.roll(with_terms(bench, quiet=(saved,))).outcomes} == {Result.RECOVERED}
    assert bench.get(DOWN, COMMAND) == 0x0006


# --- Ports that do not report their link ---


def without_reporting(bench: ForwardBench, port: Address) -> None:
    bench.topology = Topology(
        tuple(
            msgspec.structs.replace(one, link_active_reporting=False) if one.address == port else one
            for one in bench.topology
        )
    )


def test_a_port_that_does_not_report_its_link_is_given_the_whole_time() -> None:
    bench = ForwardBench()
    without_reporting(bench, DOWN)
    bench.trigger(DOWN)
    assert {one.result for one in bench.roll().outcomes} == {Result.RECOVERED}
    assert bench.now >= 1.0


def test_p8_presence_alone_tells_that_nobody_is_there() -> None:
    bench = ForwardBench()
    without_reporting(bench, DOWN)
    bench.trigger(DOWN)
    bench.pull(DOWN)
    verified = bench.roll()
    assert verified.result(CARD) is Result.REMOVED
    assert bench.now < 2.0
    bench = ForwardBench()
    without_reporting(bench, DOWN)
    bench.ready_s[CARD] = bench.ready_s[NESTED] = 1e9
    bench.trigger(DOWN)
    bench.at.append((2.0, lambda: bench.pull(DOWN)))
    assert bench.roll(bounds=Bounds()).result(CARD) is Result.REMOVED
    assert bench.now < 5.0
    assert not bench.get(DOWN, SLOT_STATUS) & PRESENT
    assert not bench.get(DOWN, LINK_STATUS)


# --- Domains without a port ---


def as_bridge(bench: ForwardBench) -> Lease:
    """02:00.0 is a bridge to a conventional bus, and the lease is on it."""
    bench.topology = Topology(
        tuple(
            msgspec.structs.replace(one, kind=reg.DeviceType.PCIE_TO_PCI_BRIDGE, slot=None)
            if one.address == DOWN
            else one
            for one in bench.topology
        )
    )
    functions = tuple(one for one in bench.lease().functions if one.address in {DOWN, CARD, NESTED})
    return with_terms(bench, port=DOWN, slots=(), functions=functions)


def test_a_lease_on_a_conventional_bridge_lets_go_of_its_bus_and_restores_every_slot_on_it() -> None:
    bench = ForwardBench()
    lease = as_bridge(bench)
    bench.set(DOWN, BRIDGE_CONTROL, SBR)
    for card in (CARD, NESTED):
        bench.spaces[card].hot_reset()
    verified = bench.roll(lease)
    assert {one.result for one in verified.outcomes} == {Result.RECOVERED}
    assert bench.now >= 1.0, "a conventional bus needs a second (PCI 3.0 §4.3.2)"
    assert bench.get(CARD, BAR0, 4) == bench.get(NESTED, BAR0, 4) == BAR_VALUE
    assert not bench.get(DOWN, BRIDGE_CONTROL) & SBR


def test_one_slot_of_a_conventional_bus_that_was_swapped_leaves_its_neighbours_recovered() -> None:
    bench = ForwardBench()
    lease = as_bridge(bench)
    bench.set(DOWN, BRIDGE_CONTROL, SBR)
    bench.spaces[NESTED].hot_reset()
    bench.swap(CARD, serial=0x99)
    verified = bench.roll(lease)
    assert (verified.result(CARD), verified.result(NESTED)) == (Result.REPLACED, Result.RECOVERED)


def test_a_lease_on_an_integrated_endpoint_awaits_and_restores_it_alone() -> None:
    bench = ForwardBench()
    functions = tuple(one for one in bench.lease().functions if one.address == CARD)
    bench.spaces[CARD].hot_reset()
    for reach in (Reach.NOTHING, Reach.CALLBACKS):
        lease = with_terms(bench, port=CARD, slots=(), functions=functions, reach=reach)
        assert bench.roll(lease).result(CARD) is Result.RECOVERED
    assert bench.get(CARD, BAR0, 4) == BAR_VALUE
    assert {one.function for one in bench.writes} == {CARD}


# --- Virtual functions ---


def with_virtual(bench: ForwardBench) -> None:
    """03:00.1 is a virtual function of 03:00.0: it gives FFFFh for its ids."""
    bench.topology = Topology(
        tuple(msgspec.structs.replace(one, physical=CARD) if one.address == NESTED else one for one in bench.topology)
    )
    bench.spaces[NESTED].set(0, 4, 0xFFFF_FFFF)


def test_virtual_functions_are_checked_after_their_physical_function_is_restored() -> None:
    bench = ForwardBench()
    with_virtual(bench)
    bench.trigger(DOWN)
    verified = bench.roll()
    assert {one.result for one in verified.outcomes} == {Result.RECOVERED}
    card = max(n for n, one in enumerate(bench.writes) if one.function == CARD)
    virtual = min(n for n, one in enumerate(bench.writes) if one.function == NESTED)
    assert card < virtual


def test_virtual_functions_of_one_that_did_not_come_back_are_not_awaited() -> None:
    bench = ForwardBench()
    with_virtual(bench)
    bench.trigger(DOWN)
    bench.swap(CARD, serial=0x99)
    verified = bench.roll(bounds=Bounds())
    assert (verified.result(CARD), verified.result(NESTED)) == (Result.REPLACED, Result.FAILED)
    assert bench.now < 5.0
    assert not [one for one in bench.writes if one.function == NESTED]


def test_another_virtual_function_is_told_by_its_class() -> None:
    bench = ForwardBench()
    with_virtual(bench)
    bench.trigger(DOWN)
    bench.spaces[NESTED].place(reg.REVISION_AND_CLASS, 0x020000_07)
    verified = bench.roll()
    assert (verified.result(CARD), verified.result(NESTED)) == (Result.RECOVERED, Result.REPLACED)
    assert UP in {one.function for one in verified.outcomes}


def test_a_capability_that_the_reload_has_moved_is_not_written_to_where_it_was() -> None:
    bench = ForwardBench()
    bench.set(CARD, ERROR_MASK, 0x10, 4)
    bench.set(CARD, DEVICE_CONTROL, 0x7)
    bench.images[CARD] = bench.spaces[CARD].image()
    bench.trigger(DOWN)
    bench.swap(CARD, serial=0x99)
    bench.spaces[CARD].place(reg.Register("BAR 0", BAR0, 4, "", rw=0xFFFF_FFFF), 0)
    bench.set(CARD, AER, 0x000B, 2)  # something else stands where AER was
    verified = bench.roll(with_terms(bench, accept=(IdentityField.SERIAL,)))
    assert verified.result(CARD) is Result.RECOVERED
    assert bench.get(CARD, BAR0, 4) == BAR_VALUE
    assert bench.get(CARD, DEVICE_CONTROL) == 0x7
    assert bench.get(CARD, ERROR_MASK, 4) == 0
