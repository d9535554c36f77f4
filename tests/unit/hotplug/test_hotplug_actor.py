"""One slot's actor: what it does to the hardware, and what it says."""

import asyncio
from typing import Any, cast

import msgspec
import pytest

from services.hotplug._actor import SlotActor
from shared.pcie import Topology, Value
from shared.pcie import registers as r
from shared.protocol import Reason, Refused, subjects
from shared.protocol.fabric import (
    Operation,
    Rank,
    Reach,
    Verb,
)
from shared.protocol.facts import What
from shared.protocol.records import Recovery, RecoveryState
from shared.protocol.records import Verdict as Outcome
from shared.protocol.requests import SlotReport, SlotState
from shared.runtime import Wake
from tests.unit.hotplug.hotplug_bench import (
    AER,
    BUSY,
    CARD,
    ENDPOINT,
    EXPRESS,
    LINK_CHANGED,
    PORT,
    PRESENCE_CHANGED,
    PRESENT,
    ROOT,
    WHO,
    Ask,
    Lab,
)


async def test_a_card_that_runs_at_start_is_registered_and_not_touched(lab: Lab) -> None:
    lab.bench.seat(command=BUSY)
    lab.bench.topology = lab.shop.actors.topology = Topology((ROOT, ENDPOINT))
    await lab.look(Wake.START)
    assert lab.state() is SlotState.ON
    assert lab.device().generation == 1
    assert [(one.function, one.mask) for one in lab.bench.written] == [(PORT, int(r.SlotControl.POWER_FAULT_ENABLE))]
    assert lab.said(What.SLOT_RECONCILED)


async def test_p3_a_restart_keeps_the_generation(lab: Lab) -> None:
    await lab.occupied()
    actor = lab.actor
    await lab.shop.registry.load()
    lab.actor = SlotActor(PORT, lab.shop)
    await lab.look(Wake.START)
    lab.actor.rest()
    lab.actor = actor
    assert lab.device().generation == 1
    assert not lab.said(What.DEVICE_ADDED)


async def test_p4_a_removal_is_acted_on_exactly_once(lab: Lab) -> None:
    await lab.occupied()
    lab.bench.pull()
    for _ in range(3):
        await lab.look()
    assert lab.state() is SlotState.OFF
    assert len(lab.said(What.DEVICE_REMOVED)) == len(lab.said(What.LINK_DOWN)) == 1
    assert not lab.device().present
    assert lab.bench.status == 0
    assert lab.bench.opened == lab.bench.closed
    channels = [data["to"] for data in lab.said(What.DEVICE_CHANNEL)]
    assert channels == ["frozen"]


async def test_an_insertion_brings_the_card_up_and_configures_it(lab: Lab) -> None:
    await lab.look(Wake.START)
    lab.bench.seat()
    lab.bench.status |= PRESENCE_CHANGED | LINK_CHANGED
    await lab.look()
    assert lab.state() is SlotState.ON
    assert lab.device().driver == "nvme"
    assert lab.bench.registers[CARD, r.BAR[0].offset] == 0x9000_0000
    assert lab.bench.registers[CARD, r.COMMAND.offset] == BUSY
    assert lab.bench.status == PRESENT
    assert [data["to"] for data in lab.said(What.SLOT_STATE)] == ["power_on", "on"]
    (bound,) = lab.store.calls
    assert bound.lease is not None
    assert bound.lease.startswith("slot-")
    assert bound.token > 0


@pytest.mark.parametrize("evidence", ["dpc", "fatal", "lease"])
async def test_p3_a_link_down_with_evidence_of_a_recovery_is_deferred_and_left_latched(lab: Lab, evidence: str) -> None:
    await lab.occupied()
    lab.bench.status |= LINK_CHANGED
    lab.bench.link(up=False)
    if evidence == "dpc":
        lab.bench.dpc(triggered=True)
    elif evidence == "fatal":
        lab.bench.registers[PORT, AER + r.UNCORRECTABLE_STATUS.offset] = int(r.Uncorrectable.MALFORMED_TLP)
        lab.bench.registers[PORT, AER + r.UNCORRECTABLE_SEVERITY.offset] = r.UNCORRECTABLE_FATAL_DEFAULT
    else:
        lab.bench.cover("r1")
    for _ in range(3):
        await lab.look()
    assert lab.state() is SlotState.ON
    assert lab.bench.status & LINK_CHANGED
    assert not lab.bench.written
    assert len(lab.said(What.SLOT_DEFERRED)) == 1


async def test_p3_the_same_device_after_a_flap_is_kept_and_the_latch_cleared(lab: Lab) -> None:
    """Scenario 1: another edge comes only once the status has been cleared."""
    await lab.occupied()
    lab.bench.status |= LINK_CHANGED
    await lab.look()
    assert lab.bench.status == PRESENT
    assert lab.device().generation == 1
    assert len(lab.said(What.DEVICE_KEPT)) == len(lab.said(What.SLOT_IGNORED)) == 1


async def test_p3_each_function_is_kept_once_per_lease_latched_or_not(lab: Lab) -> None:
    await lab.occupied()
    lab.bench.cover("r1")
    await lab.look()
    assert lab.device().channel == "frozen"
    lab.bench.uncover()
    for _ in range(2):
        await lab.look(Wake.ENDED)
    assert [data["lease"] for data in lab.said(What.DEVICE_KEPT)] == ["r1"]
    assert lab.device().channel == "normal"


async def test_p4_a_swap_during_a_lease_is_found_with_nothing_latched(lab: Lab) -> None:
    await lab.occupied()
    lab.bench.cover("r1")
    await lab.look()
    lab.bench.seat(msgspec.structs.replace(WHO, device=0x0A55))
    lab.bench.uncover()
    other = msgspec.structs.replace(ENDPOINT, identity=msgspec.structs.replace(WHO, device=0x0A55))
    enumerate_again = lab.bench._perform

    def perform(operation: Operation) -> Value:
        value = enumerate_again(operation)
        if operation.verb is Verb.ENUMERATE and value:
            lab.bench.topology = Topology((ROOT, other))
        return value

    lab.bench._perform = perform  # type: ignore[method-assign]
    await lab.look(Wake.ENDED)
    assert len(lab.said(What.DEVICE_REMOVED)) == len(lab.said(What.DEVICE_ADDED)) == 1
    assert not lab.said(What.DEVICE_KEPT)
    assert lab.device().generation == 2
    assert lab.device().identity.device == 0x0A55


async def test_p5_a_recovery_ends_the_waits_of_a_bring_up_at_once(lab: Lab) -> None:
    await lab.look(Wake.START)
    lab.bench.seat(link=False)
    lab.bench.status |= PRESENCE_CHANGED
    look = asyncio.create_task(lab.look())
    await asyncio.sleep(0.05)
    assert lab.state() is SlotState.POWER_ON
    lab.bench.cover("r1")
    lab.actor.doubt()
    await asyncio.wait_for(look, 0.1)
    assert lab.state() is SlotState.OFF
    assert not lab.bench.closed[1:], "an absorbed lease is not ours to close"
    lab.bench.uncover()
    lab.bench.link(up=True)
    await lab.look(Wake.ENDED)
    assert lab.state() is SlotState.ON
    assert len(lab.said(What.DEVICE_ADDED)) == 1


async def test_p5_a_power_off_that_was_absorbed_is_tried_again(lab: Lab) -> None:
    await lab.occupied()
    lab.store.slow = asyncio.Event()
    ask = Ask(subjects.slot("lab", PORT, "power_off"))
    lab.actor.asks.put(cast("Any", ask))
    look = asyncio.create_task(lab.look())
    await asyncio.sleep(0.02)
    (answer,) = ask.answers
    assert isinstance(answer, SlotReport)
    assert answer.state is SlotState.POWER_OFF
    lab.bench.cover("r1")
    lab.actor.doubt()
    await asyncio.wait_for(look, 0.1)
    assert lab.state() is SlotState.ON
    lab.store.slow = None
    lab.bench.uncover()
    await lab.look(Wake.ENDED)
    assert lab.state() is SlotState.OFF
    await lab.look(Wake.POLL)
    assert lab.state() is SlotState.OFF, "switched off on purpose: it stays off"
    assert len(ask.answers) == 1


async def test_p5_a_power_off_absorbed_after_its_functions_had_left_still_ends_with_the_slot_off(lab: Lab) -> None:
    """The link may be up by then: without the request in mind, the slot would be brought up again."""
    await lab.occupied()

    def absorbed(operation: Operation) -> None:
        if operation.verb is Verb.MODIFY and operation.function == CARD:  # the card goes quiet: the last thing before
            lab.bench.cover("r1")

    lab.bench.on_execute = absorbed
    ask = Ask(subjects.slot("lab", PORT, "power_off"))
    lab.actor.asks.put(cast("Any", ask))
    await lab.look()
    lab.bench.on_execute = lambda _: None
    assert lab.device().present is False
    assert lab.actor.report().state is SlotState.POWER_OFF
    lab.bench.uncover()
    await lab.look(Wake.ENDED)
    assert lab.state() is SlotState.OFF
    assert lab.actor.report().state is SlotState.OFF
    await lab.look()
    assert lab.state() is SlotState.OFF
    assert not lab.said(What.DEVICE_ADDED)


async def test_a_power_request_during_a_recovery_is_refused_and_names_the_lease(lab: Lab) -> None:
    await lab.occupied()
    lab.bench.cover("r1")
    ask = Ask(subjects.slot("lab", PORT, "power_off"))
    lab.actor.asks.put(cast("Any", ask))
    await lab.look()
    (answer,) = ask.answers
    assert isinstance(answer, Refused)
    assert answer.reason is Reason.HELD
    assert answer.lease is not None
    assert answer.lease.id == "r1"


@pytest.mark.parametrize("closed", [True, False], ids=["a mask whose lease has closed", "an orphan"])
async def test_p10_enables_are_set_again_only_if_they_are_off_still_when_nobody_else_can_mask(
    lab: Lab, closed: bool
) -> None:
    """The registers are read before the leases: what a lease had masked may be restored by the time that nobody holds."""
    await lab.occupied()
    place = PORT, EXPRESS + r.SLOT_CONTROL.offset
    before = lab.bench.registers[place]
    lab.bench.registers[place] = before & ~int(r.SLOT_MASKED)

    def unmasked() -> None:
        if closed:
            lab.bench.registers[place] = before

    lab.bench.on_open = unmasked
    await lab.look()
    assert lab.bench.registers[place] & int(r.SLOT_MASKED) == before & int(r.SLOT_MASKED)
    assert bool(lab.said(What.SLOT_RECONCILED)) is not closed


async def test_power_on_of_an_empty_slot_is_refused(lab: Lab) -> None:
    ask = Ask(subjects.slot("lab", PORT, "power_on"))
    lab.actor.asks.put(cast("Any", ask))
    await lab.look(Wake.START)
    (answer,) = ask.answers
    assert isinstance(answer, Refused)
    assert answer.reason is Reason.ABSENT


async def test_p9_a_port_that_reads_all_ones_decides_nothing(lab: Lab) -> None:
    await lab.occupied()
    lab.bench.pull()
    lab.bench.silent = True
    await lab.look()
    assert lab.state() is SlotState.ON
    assert not lab.facts
    assert not lab.bench.written


async def test_a_rebound_driver_counts_a_generation_once_per_lease_and_from_the_journal_alone(lab: Lab) -> None:
    await lab.occupied()
    lab.store.records[subjects.recovery_key("lab", PORT)] = Recovery(
        lease="r1", port=PORT, cause="dpc", rank=Rank.RECOVERY, reach=Reach.RESET, state=RecoveryState.CLOSED,
        step="closed", verdicts={str(CARD): Outcome.REBOUND},
    )  # fmt: skip
    for _ in range(2):
        await lab.look(Wake.ENDED)
    await lab.shop.registry.load()
    await lab.look(Wake.START)
    assert lab.device().generation == 2
    assert len(lab.said(What.DEVICE_REBOUND)) == 1


async def test_channels_stay_frozen_after_a_dead_mans_close_until_the_callbacks_are_finished(lab: Lab) -> None:
    await lab.occupied()
    key = subjects.recovery_key("lab", PORT)
    record = Recovery(
        lease="r1",
        port=PORT,
        cause="dpc",
        rank=Rank.RECOVERY,
        reach=Reach.RESET,
        state=RecoveryState.OPEN,
        step="reset",
    )
    lab.store.records[key] = record
    await lab.look(Wake.ENDED)
    assert lab.device().channel == "frozen"
    lab.store.records[key] = msgspec.structs.replace(record, state=RecoveryState.CLOSED)
    await lab.look(Wake.ENDED)
    assert lab.device().channel == "normal"


async def test_a_power_fault_that_lasts_is_reported_once_and_does_not_block_the_interrupt(lab: Lab) -> None:
    """CVE-2021-47617: a fault that asserts again on every clear must not loop, nor keep MSI from firing."""
    await lab.occupied()
    fault = int(r.SlotStatus.POWER_FAULT_DETECTED)
    lab.bench.status |= fault

    def assert_again(operation: Operation) -> None:
        if operation.verb is Verb.READ and operation.offset == EXPRESS + r.SLOT_STATUS.offset:
            lab.bench.status |= fault

    lab.bench.on_execute = assert_again
    for _ in range(3):
        await lab.look(Wake.POLL)
    assert [data["lasts"] for data in lab.said(What.SLOT_POWER_FAULT)] == [True]
    control = lab.bench.registers[PORT, EXPRESS + r.SLOT_CONTROL.offset]
    assert not control & r.SlotControl.POWER_FAULT_ENABLE
    assert lab.state() is SlotState.ON


async def test_a_card_without_a_link_is_given_up_and_not_tried_again_at_once(lab: Lab) -> None:
    lab.bench.seat(link=False)
    await lab.look(Wake.START)
    for _ in range(2):
        await lab.look(Wake.POLL)
    assert lab.state() is SlotState.OFF
    assert [data["why"] for data in lab.said(What.SLOT_NOT_READY)] == ["no link"]
