"""Errors that are somebody else's: of DPC, of a lease, of hotplug, of a quarantine, of the firmware."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from shared.pcie import Address
from shared.pcie import registers as r
from shared.protocol import Reason, Refused
from shared.protocol.fabric import Quarantine, Reach
from shared.protocol.facts import What
from shared.protocol.requests import Cause
from shared.runtime import Wake
from tests.port_bench import AER, DOWN_0, DOWN_1, DPC, EXPRESS, GPU_0, GPU_1, NVME, NVME_1, ROOT, SWITCH_ROOT, lease
from tests.unit.aer.aer_lab import CORRECTABLE, ENDED, FATAL, INTERRUPT, NONFATAL, START, Lab


async def test_p6_what_dpc_contains_is_not_recovered_twice(lab: Lab) -> None:
    lab.set_bits(DOWN_0, r.DPC_STATUS, r.DpcStatus.TRIGGER, DPC)
    lab.silent.add(GPU_0)
    lab.latch(SWITCH_ROOT, FATAL, fatal=GPU_0)
    await lab.look(port=SWITCH_ROOT)
    assert not lab.recovers
    assert lab.root_status(SWITCH_ROOT) == FATAL, "evidence stays until the lease is open"
    lab.leases = (lease(DOWN_0),)
    await lab.look(port=SWITCH_ROOT)
    assert not lab.recovers
    assert lab.root_status(SWITCH_ROOT) == 0
    [fact] = lab.said(What.ERROR_IGNORED)
    assert "contained" in fact.data["why"]


async def test_bits_that_a_reset_provokes_are_ignored_under_its_lease(lab: Lab) -> None:
    lab.uncorrectable(ROOT, r.Uncorrectable.SURPRISE_DOWN | r.Uncorrectable.COMPLETION_TIMEOUT)
    lab.latch(ROOT, FATAL, fatal=ROOT)
    lab.leases = (lease(ROOT),)
    await lab.look()
    assert not lab.recovers
    assert lab.root_status() == 0
    assert [fact.lease for fact in lab.said(What.ERROR_IGNORED)] == ["lease-1"]


async def test_other_bits_under_a_lease_are_a_new_cause(lab: Lab) -> None:
    lab.uncorrectable(ROOT, r.Uncorrectable.SURPRISE_DOWN | r.Uncorrectable.MALFORMED_TLP)
    lab.latch(ROOT, FATAL, fatal=ROOT)
    lab.leases = (lease(ROOT),)
    await lab.look()
    assert [each.port for each in lab.recovers] == [ROOT]


async def test_a_slot_operation_provokes_nothing(lab: Lab) -> None:
    lab.uncorrectable(NVME, r.Uncorrectable.COMPLETION_TIMEOUT)
    lab.latch(ROOT, NONFATAL, fatal=NVME)
    lab.leases = (lease(ROOT, reach=Reach.NOTHING),)
    await lab.look()
    assert [each.cause for each in lab.recovers] == [Cause.AER_NONFATAL]


async def test_scenario_18_a_surprise_removal_is_left_to_hotplug_after_a_grace(lab: Lab) -> None:
    lab.uncorrectable(ROOT, r.Uncorrectable.SURPRISE_DOWN)
    lab.latch(ROOT, FATAL, fatal=ROOT)
    lab.put(ROOT, r.SLOT_STATUS, 0, EXPRESS)
    lab.put(ROOT, r.LINK_STATUS, 0, EXPRESS)
    await lab.look()
    assert lab.root_status() == FATAL, "not believed at once"
    await asyncio.sleep(0.03)
    await lab.look()
    assert lab.root_status() == 0
    assert not lab.recovers
    assert "surprise removal" in lab.said(What.ERROR_IGNORED)[0].data["why"]


async def test_scenario_18_surprise_down_with_the_card_in_place_is_an_error(lab: Lab) -> None:
    lab.uncorrectable(ROOT, r.Uncorrectable.SURPRISE_DOWN)
    lab.latch(ROOT, FATAL, fatal=ROOT)
    lab.put(ROOT, r.LINK_STATUS, 0, EXPRESS)
    await lab.look()
    assert [each.cause for each in lab.recovers] == [Cause.AER_FATAL]


async def test_a_fatal_error_left_by_a_recovery_is_a_new_cause(lab: Lab) -> None:
    lab.uncorrectable(NVME, r.Uncorrectable.INTERNAL)
    lab.leases = (lease(ROOT),)
    await lab.look(ENDED)
    assert not lab.recovers, "whoever holds the lease reads the same registers"
    lab.leases = ()
    await lab.look(ENDED)
    assert [each.functions for each in lab.recovers] == [(NVME,)]


async def test_p6_a_port_that_reports_both_gives_one_recovery_also_if_aer_comes_too_late_to_see_its_lease(
    lab: Lab,
) -> None:
    lab.set_bits(DOWN_0, r.DPC_STATUS, r.DpcStatus.TRIGGER, DPC)
    lab.silent.add(GPU_0)
    lab.latch(SWITCH_ROOT, FATAL, fatal=GPU_0)
    await lab.look(port=SWITCH_ROOT)
    lab.put(DOWN_0, r.DPC_STATUS, 0, DPC)  # released, and the recovery has ended: the device has failed
    await lab.look(ENDED, port=SWITCH_ROOT)
    assert not lab.recovers
    assert lab.root_status(SWITCH_ROOT) == 0
    assert [fact.data["reason"] for fact in lab.said(What.ERROR_IGNORED)] == ["contained"]


async def test_p6_a_port_that_reports_both_and_recovers_leaves_no_message_without_a_trace(lab: Lab) -> None:
    lab.set_bits(DOWN_0, r.DPC_STATUS, r.DpcStatus.TRIGGER, DPC)
    lab.silent.add(GPU_0)
    lab.latch(SWITCH_ROOT, FATAL, fatal=GPU_0)
    await lab.look(port=SWITCH_ROOT)
    lab.put(DOWN_0, r.DPC_STATUS, 0, DPC)
    lab.silent.clear()
    await lab.look(ENDED, port=SWITCH_ROOT)
    assert lab.root_status(SWITCH_ROOT) == 0
    assert [fact.data["reason"] for fact in lab.said(What.ERROR_IGNORED)] == ["contained"]


async def test_a_new_error_after_a_containment_is_recovered_although_its_message_came_in_one_latch(lab: Lab) -> None:
    lab.set_bits(DOWN_0, r.DPC_STATUS, r.DpcStatus.TRIGGER, DPC)
    lab.silent.add(GPU_0)
    lab.latch(SWITCH_ROOT, FATAL, fatal=GPU_0)
    await lab.look(port=SWITCH_ROOT)
    lab.put(DOWN_0, r.DPC_STATUS, 0, DPC)
    lab.silent.clear()
    lab.uncorrectable(GPU_0, r.Uncorrectable.MALFORMED_TLP)
    lab.latch(SWITCH_ROOT, r.RootErrorStatus.MULTIPLE_UNCORRECTABLE)
    await lab.look(ENDED, port=SWITCH_ROOT)
    assert [each.port for each in lab.recovers] == [DOWN_0]


@pytest.mark.parametrize("held", [DOWN_0, SWITCH_ROOT])
async def test_a_port_in_quarantine_is_not_asked_for_and_does_not_block_the_others(lab: Lab, held: Address) -> None:
    lab.quarantines = (Quarantine(port=held, lease="r-1", why="storm"),)
    lab.set_bits(held, r.DPC_STATUS, r.DpcStatus.TRIGGER, DPC)
    lab.uncorrectable(DOWN_0, r.Uncorrectable.DATA_LINK_PROTOCOL)
    lab.uncorrectable(GPU_1, r.Uncorrectable.MALFORMED_TLP)
    lab.latch(SWITCH_ROOT, FATAL | r.RootErrorStatus.MULTIPLE_UNCORRECTABLE, fatal=DOWN_0)
    for _ in range(3):
        await lab.look(port=SWITCH_ROOT)
    assert [each.port for each in lab.recovers] == ([DOWN_1] if held == DOWN_0 else [])
    assert {fact.data["reason"] for fact in lab.said(What.ERROR_IGNORED)} == {"quarantined"}
    assert lab.root_status(SWITCH_ROOT) == 0


async def test_a_refusal_for_quarantine_frees_the_latch_and_is_said_as_such(lab: Lab) -> None:
    lab.uncorrectable(NVME, r.Uncorrectable.MALFORMED_TLP)
    lab.latch(ROOT, FATAL, fatal=NVME)
    lab.replies = [Refused(reason=Reason.QUARANTINED, message="holdfast quarantine release 0000:00:01.0")]
    await lab.look()
    await lab.look(ENDED)
    assert [fact.data["reason"] for fact in lab.said(What.ERROR_IGNORED)] == ["quarantined"]
    assert lab.root_status() == 0
    assert len(lab.recovers) == 1


async def test_on_a_firmware_first_host_an_interrupt_is_said_to_be_the_firmwares_once(lab: Lab) -> None:
    lab.ports.topology = msgspec.structs.replace(lab.topology, firmware_first=True)
    lab.uncorrectable(NVME, r.Uncorrectable.MALFORMED_TLP)
    lab.latch(ROOT, FATAL, fatal=NVME)
    for wakes in (START, frozenset({Wake.POLL}), ENDED):
        await lab.look(wakes)
    assert not lab.facts
    assert not lab.reads
    for _ in range(2):
        await lab.look(INTERRUPT)
    [fact] = lab.said(What.ERROR_IGNORED)
    assert (fact.data["reason"], fact.data["severity"], fact.data["functions"]) == ("firmware", "fatal", [str(NVME)])
    assert not lab.recovers
    assert not lab.acknowledged
    lab.put(ROOT, r.ROOT_ERROR_STATUS, 0, AER)
    await lab.look(INTERRUPT)
    lab.latch(ROOT, CORRECTABLE, correctable=NVME_1)
    await lab.look(INTERRUPT)
    assert [fact.data["severity"] for fact in lab.said(What.ERROR_IGNORED)] == ["fatal", "correctable"]
