"""Quarantine: who may do what while a port stays down, and that its slot ends as it was first found (P2)."""

from __future__ import annotations

from typing import Any

import pytest

from shared.pcie import Address
from shared.pcie import registers as reg
from shared.protocol import Reason
from shared.protocol.fabric import (
    Adopt,
    Close,
    Closed,
    Rank,
    Reach,
    Result,
    Role,
)
from shared.recovery import modify, write

from .fabric_asking import DISABLE, TRIGGER, do, opened, reason, request, role_of
from .fabric_bench import (
    CARD,
    CHANGED,
    DOWN,
    DPC_STATUS,
    ENABLES,
    LINK_CONTROL,
    NESTED,
    OTHER,
    PRESENT,
    ROOT,
    SLOT_CONTROL,
    SLOT_STATUS,
    UP,
    Rig,
    settle,
    space,
)
from .fabric_quarantining import (
    DLLSCE,
    HOLDS,
    IN_BAND_DISABLE,
    PDC,
    PDCE,
    contain,
    disable,
    lifted,
    listed,
    quarantined,
)


@pytest.mark.parametrize("by", HOLDS)
async def test_close_leaves_the_port_down_with_a_record_of_its_own_and_only_presence_speaking(
    rig: Rig, by: str
) -> None:
    closed = await quarantined(rig, by=by)
    assert isinstance(closed, Closed)
    results = {one.function: one.result for one in closed.outcomes}
    assert results == {DOWN: Result.RECOVERED, CARD: Result.QUARANTINED, NESTED: Result.QUARANTINED}
    assert rig.bench.enables(DOWN) == PDCE
    assert rig.bench.surprise_down_masked(DOWN)
    assert rig.bench.get(DOWN, SLOT_STATUS) & CHANGED == 0, "what latched was our own doing"
    (record,) = (await listed(rig)).quarantines
    assert (record.port, record.why) == (DOWN, "three failures in a row")
    assert [(slot.port, slot.enables) for slot in record.slots] == [(DOWN, ENABLES)]
    assert {one.address for one in record.functions} == {DOWN, CARD, NESTED}
    (fact,) = rig.facts("quarantine.entered")
    assert (fact.port, fact.data) == (DOWN, {"why": record.why, "held_by": by})


async def test_out_of_band_presence_that_changed_stays_latched_for_hotplug(rig: Rig) -> None:
    """Another card may have been seated while the port was being given up: that is what lifts a quarantine."""
    rig.bench.set(DOWN, SLOT_CONTROL, rig.bench.get(DOWN, SLOT_CONTROL) | IN_BAND_DISABLE)
    await quarantined(rig)
    assert rig.bench.get(DOWN, SLOT_STATUS) & CHANGED == PDC


async def test_a_port_that_nothing_holds_down_is_not_taken_for_quarantined(rig: Rig) -> None:
    lease = await opened(rig, DOWN)
    assert reason(await rig.ask(Close(token=lease.token, quarantine=(DOWN,)))) is Reason.POLICY
    assert reason(await rig.ask(Close(token=lease.token, quarantine=(OTHER,)))) is Reason.OUTSIDE
    assert reason(await rig.ask(Close(token=lease.token, quarantine=(CARD,)))) is Reason.OUTSIDE
    assert (await listed(rig)).leases != ()
    assert (await listed(rig)).quarantines == ()
    slot = await rig.ask(request(OTHER, Rank.SLOT_OPERATION), Role.HOTPLUG)
    refused = await rig.ask(Close(token=slot.lease.token, quarantine=(OTHER,)), Role.HOTPLUG)
    assert reason(refused) is Reason.POLICY


async def test_a_reset_bit_elsewhere_still_refuses_the_close(rig: Rig) -> None:
    lease = await opened(rig, ROOT)
    await disable(rig, lease, 1, DOWN, CARD, NESTED)
    await do(rig, lease, 2, modify(ROOT, LINK_CONTROL, 2, mask=DISABLE, value=DISABLE))
    assert reason(await rig.ask(Close(token=lease.token, quarantine=(DOWN,)))) is Reason.IN_RESET


ASKED = {
    "recovery on the port": (DOWN, Rank.RECOVERY, Reach.RESET, Reason.QUARANTINED),
    "flr below": (CARD, Rank.USER, Reach.NOTHING, Reason.QUARANTINED),
    "hold on the port": (DOWN, Rank.EXTERNAL, Reach.RESET, Reason.QUARANTINED),
    "slot operation on the port": (DOWN, Rank.SLOT_OPERATION, Reach.NOTHING, None),
    "recovery above": (ROOT, Rank.RECOVERY, Reach.RESET, None),
    "recovery aside": (OTHER, Rank.RECOVERY, Reach.RESET, None),
}


@pytest.mark.parametrize("asked", ASKED)
async def test_who_may_open_a_lease_at_a_quarantine(rig: Rig, asked: str) -> None:
    await quarantined(rig)
    port, rank, reach, expected = ASKED[asked]
    reply = await rig.ask(request(port, rank, reach), role_of(rank))
    assert (reason(reply) if expected else None) is expected
    if expected:
        assert f"holdfast quarantine release {DOWN}" in reply.message


async def test_a_slot_operation_below_the_port_is_refused(rig: Rig) -> None:
    await quarantined(rig, ROOT)
    refused = await rig.ask(request(DOWN, Rank.SLOT_OPERATION), Role.HOTPLUG)
    assert reason(refused) is Reason.QUARANTINED


@pytest.mark.parametrize("by", HOLDS)
async def test_p2_lifting_ends_with_the_enables_found_before_the_first_lease(rig: Rig, by: str) -> None:
    rig.bench.set(DOWN, SLOT_CONTROL, rig.bench.get(DOWN, SLOT_CONTROL) & ~PDCE)
    before = {port: rig.bench.spaces[port].image() for port in (ROOT, DOWN)}
    await quarantined(rig, by=by)
    (record,) = (await listed(rig)).quarantines
    lease = (await lifted(rig)).lease
    assert lease.lifted == record.lease, "whose journal knows what drivers were told"
    assert [(one.port, one.enables) for one in lease.slots] == [(DOWN, DLLSCE)]
    assert (lease.debts.contained, lease.debts.link_disabled) == (((DOWN,), ()) if by == "dpc" else ((), (DOWN,)))
    assert (await listed(rig)).quarantines == ()
    assert [fact.data for fact in rig.facts("quarantine.lifted")] == [{"by": "me"}]
    await do(rig, lease, 1, modify(DOWN, LINK_CONTROL, 2, mask=DISABLE, value=0), write(DOWN, DPC_STATUS, 2, TRIGGER))
    rig.bench.bring_up(DOWN, CARD, NESTED)
    closed = await rig.ask(Close(token=lease.token))
    assert {one.result for one in closed.outcomes} == {Result.RECOVERED}
    assert {port: rig.bench.spaces[port].image() for port in (ROOT, DOWN)} == before


async def test_only_the_coordinator_lifts_and_only_what_is_in_quarantine(rig: Rig) -> None:
    assert reason(await lifted(rig)) is Reason.POLICY
    await quarantined(rig)
    assert reason(await lifted(rig, CARD)) is Reason.POLICY, "exactly the port"
    assert reason(await lifted(rig, ROOT)) is Reason.POLICY
    for rank, reach in ((Rank.EXTERNAL, Reach.RESET), (Rank.RECOVERY, Reach.CALLBACKS)):
        assert reason(await rig.ask(request(DOWN, rank, reach, lifts=True))) is Reason.POLICY
    slot = request(DOWN, Rank.SLOT_OPERATION, lifts=True)
    assert reason(await rig.ask(slot, Role.HOTPLUG)) is Reason.ROLE
    assert len((await listed(rig)).quarantines) == 1


async def test_a_lift_that_is_asked_again_is_answered_again(rig: Rig) -> None:
    await quarantined(rig)
    asked = request(DOWN, cause="lift", lifts=True)
    first = await rig.ask(asked)
    assert (await rig.ask(asked)).lease == first.lease


async def test_a_port_that_is_lifted_may_go_back_into_quarantine(rig: Rig) -> None:
    await quarantined(rig)
    lease = (await lifted(rig)).lease
    closed = await rig.ask(Close(token=lease.token, quarantine=(DOWN,), why="still nothing"))
    assert isinstance(closed, Closed)
    (record,) = (await listed(rig)).quarantines
    assert [(slot.port, slot.enables) for slot in record.slots] == [(DOWN, ENABLES)]
    assert {one.address for one in record.functions} == {DOWN, CARD, NESTED}


# --- Restarts ---


async def test_a_restarted_fabric_knows_the_quarantine_and_everybody_behind_it(rig: Rig) -> None:
    await quarantined(rig)
    before = (await listed(rig)).quarantines[0]
    await rig.restart()
    (after,) = (await listed(rig)).quarantines
    assert (after.port, after.slots, after.functions) == (before.port, before.slots, before.functions)
    assert rig.ledger.book.topology.find(CARD) is not None
    assert rig.bench.enables(DOWN) == PDCE


async def test_a_host_that_lost_its_power_finds_the_port_held_down_again_its_slot_masked_first(rig: Rig) -> None:
    await quarantined(rig)
    rig.bench.set(DOWN, DPC_STATUS, 0)
    rig.bench.set(DOWN, SLOT_CONTROL, rig.bench.get(DOWN, SLOT_CONTROL) | ENABLES)
    rig.bench.away.clear()
    rig.bench.writes.clear()
    await rig.restart()
    assert [(address, offset) for address, offset, _, _ in rig.bench.writes] == [
        (DOWN, SLOT_CONTROL),
        (DOWN, LINK_CONTROL),
    ]
    assert rig.bench.enables(DOWN) == PDCE
    assert rig.bench.get(DOWN, LINK_CONTROL) & DISABLE
    assert [fact.data["held_by"] for fact in rig.facts("quarantine.entered")][-1] == "link_disable"


async def test_an_adopted_lease_whose_close_had_begun_ends_in_quarantine_all_the_same(rig: Rig) -> None:
    lease = await opened(rig, DOWN)
    await contain(rig, lease, 1, DOWN, CARD, NESTED)
    rig.bench.after_read = _lost_after_the_slot_was_restored(rig)
    refused = await rig.ask(Close(token=lease.token, quarantine=(DOWN,), why="storm"))
    assert reason(refused) is Reason.CONDITION
    rig.bench.after_read = lambda *_: None
    adopted = await rig.ask(Adopt(id=lease.id, holder="successor"))
    rig.bench.away -= {ROOT, UP, DOWN}
    assert isinstance(await rig.ask(Close(token=adopted.lease.token)), Closed)
    assert [(one.port, one.why) for one in (await listed(rig)).quarantines] == [(DOWN, "storm")]


def _lost_after_the_slot_was_restored(rig: Rig) -> Any:
    def after_read(address: Address, offset: int) -> None:
        if (address, offset) == (DOWN, 0) and rig.ledger.book.leases[0].closing:
            rig.bench.away |= {ROOT, UP, DOWN}

    return after_read


async def test_leases_tell_of_the_quarantines_that_cover_a_port(rig: Rig) -> None:
    await quarantined(rig)
    await settle()
    assert [one.port for one in (await listed(rig, CARD)).quarantines] == [DOWN]
    assert (await listed(rig, ROOT)).quarantines == ()
    rig.fabric._hearing._heard[f"quarantine {DOWN}"] = rig.fabric._hearing._heard[f"quarantine {DOWN}"]._replace(
        opened=0
    )
    assert (await listed(rig)).quarantines[0].age_s > 0


async def test_an_empty_slot_in_quarantine_shows_a_card_that_is_seated(rig: Rig) -> None:
    await quarantined(rig)
    rig.bench.set(DOWN, SLOT_STATUS, PRESENT | PDC)
    assert rig.bench.enables(DOWN) & PDCE


async def test_the_other_slots_of_the_lease_close_as_ever(rig: Rig) -> None:
    lease = await opened(rig, ROOT)
    await contain(rig, lease, 1, DOWN, CARD, NESTED)
    rig.bench.latch(ROOT, CHANGED)
    closed = await rig.ask(Close(token=lease.token, quarantine=(DOWN,), why="storm"))
    results = {one.function: one.result for one in closed.outcomes}
    assert results == dict.fromkeys((ROOT, UP, DOWN), Result.RECOVERED) | dict.fromkeys(
        (CARD, NESTED), Result.QUARANTINED
    )
    assert (rig.bench.enables(ROOT), rig.bench.get(ROOT, SLOT_STATUS) & CHANGED) == (ENABLES, 0)
    assert not rig.bench.surprise_down_masked(ROOT)
    (record,) = (await listed(rig)).quarantines
    assert [slot.port for slot in record.slots] == [DOWN]
    assert {one.address for one in record.functions} == {DOWN, CARD, NESTED}


async def test_p4_another_card_that_was_seated_meanwhile_is_told_when_the_quarantine_is_lifted(rig: Rig) -> None:
    await quarantined(rig)
    lease = (await lifted(rig)).lease
    rig.bench.spaces[CARD] = space(reg.DeviceType.ENDPOINT, serial=0x99)
    await do(rig, lease, 1, write(DOWN, DPC_STATUS, 2, TRIGGER))
    rig.bench.bring_up(DOWN, CARD, NESTED)
    closed = await rig.ask(Close(token=lease.token))
    assert [one.function for one in closed.outcomes if one.result is Result.REPLACED] == [CARD]
    assert rig.bench.get(DOWN, SLOT_STATUS) & CHANGED == CHANGED
    assert rig.bench.enables(DOWN) == ENABLES


async def test_p1_a_fabric_that_starts_under_a_lease_above_leaves_its_mask_on(rig: Rig) -> None:
    """Holding a port down again must not unmask what a lease has masked."""
    await quarantined(rig, by="link_disable")
    await opened(rig, ROOT)
    rig.bench.set(DOWN, LINK_CONTROL, 0)
    rig.bench.writes.clear()
    await rig.restart()
    assert rig.bench.get(DOWN, LINK_CONTROL) & DISABLE
    assert [offset for address, offset, _, _ in rig.bench.writes if address == DOWN] == [LINK_CONTROL]
    assert rig.bench.enables(DOWN) == 0


async def test_a_host_that_lost_its_power_forgets_nobody_who_is_slow_to_come_back(rig: Rig) -> None:
    await quarantined(rig)
    rig.bench.set(DOWN, DPC_STATUS, 0)
    await rig.restart()
    assert {CARD, NESTED} <= {function.address for function in rig.ledger.book.topology}


async def test_p2_a_fabric_that_starts_in_a_quarantine_does_not_take_its_mask_for_what_software_wants(rig: Rig) -> None:
    """Else a slot that cannot be reached later is given back the mask of a quarantine that was lifted long ago."""
    await quarantined(rig, by="link_disable")
    slot = await opened(rig, DOWN, Rank.SLOT_OPERATION)
    await do(rig, slot, 1, write(DOWN, SLOT_CONTROL, 2, rig.bench.get(DOWN, SLOT_CONTROL)))
    await rig.ask(Close(token=slot.token), Role.HOTPLUG)
    await rig.restart()
    lease = (await lifted(rig)).lease
    await do(rig, lease, 1, modify(DOWN, LINK_CONTROL, 2, mask=DISABLE, value=0))
    rig.bench.bring_up(DOWN, CARD, NESTED)
    await rig.ask(Close(token=lease.token))
    rig.bench.take_down(ROOT, UP, DOWN, CARD, NESTED)
    lease = await opened(rig, ROOT)
    assert [(one.port, one.enables, one.surprise_down_masked) for one in lease.slots] == [
        (ROOT, ENABLES, False),
        (DOWN, ENABLES, False),
    ]


async def test_p2_slots_nested_behind_a_quarantined_port_end_as_they_were_found_too(rig: Rig) -> None:
    rig.bench.set(DOWN, SLOT_CONTROL, rig.bench.get(DOWN, SLOT_CONTROL) & ~PDCE)
    lease = await opened(rig, ROOT)
    await contain(rig, lease, 1, ROOT, UP, DOWN, CARD, NESTED)
    await rig.ask(Close(token=lease.token, quarantine=(ROOT, ROOT), why="storm"))
    assert len((await listed(rig)).quarantines) == 1
    assert [fact.port for fact in rig.facts("lease.unmasked")] == [ROOT], "what is behind it is still the record's"
    lease = (await lifted(rig, ROOT)).lease
    assert [(one.port, one.enables) for one in lease.slots] == [(ROOT, ENABLES), (DOWN, DLLSCE)]
    await do(rig, lease, 1, write(ROOT, DPC_STATUS, 2, TRIGGER))
    rig.bench.bring_up(ROOT, UP, DOWN, CARD, NESTED)
    await rig.ask(Close(token=lease.token))
    assert (rig.bench.enables(ROOT), rig.bench.enables(DOWN)) == (ENABLES, DLLSCE)
    assert not rig.bench.surprise_down_masked(DOWN)
