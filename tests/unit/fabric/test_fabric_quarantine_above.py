"""Leases above a quarantine, beside it and in its place: who leaves what alone, and what is handed on."""

from __future__ import annotations

import pytest

from shared.protocol import Reason
from shared.protocol.fabric import (
    Close,
    Closed,
    Opened,
    Operation,
    Rank,
    Result,
    Role,
    Verb,
)
from shared.protocol.facts import What
from shared.recovery import modify, write

from .fabric_asking import BRIDGE_CONTROL, DISABLE, SBR, TRIGGER, do, opened, reason, request
from .fabric_bench import (
    CARD,
    DOWN,
    DPC_STATUS,
    ENABLES,
    LINK_CONTROL,
    NESTED,
    ROOT,
    SLOT_CONTROL,
    SLOT_STATUS,
    UP,
    Rig,
)
from .fabric_quarantining import (
    DLLSCE,
    PDC,
    PDCE,
    contain,
    lifted,
    listed,
    quarantined,
)


async def test_a_lease_above_leaves_the_port_and_all_behind_it_alone(rig: Rig) -> None:
    await quarantined(rig, by="link_disable")
    lease = await opened(rig, ROOT)
    assert lease.quarantined == (DOWN,)
    assert {one.address for one in lease.functions} == {ROOT, UP, DOWN}
    assert [(one.port, one.enables, one.surprise_down_masked) for one in lease.slots] == [
        (ROOT, ENABLES, False),
        (DOWN, PDCE, None),
    ]
    assert rig.bench.enables(DOWN) == 0
    assert lease.debts.link_disabled == ()
    closed = await rig.ask(Close(token=lease.token))
    assert {one.function: one.result for one in closed.outcomes} == dict.fromkeys((ROOT, UP, DOWN), Result.RECOVERED)
    assert rig.bench.enables(ROOT) == ENABLES
    assert rig.bench.enables(DOWN) == PDCE
    assert rig.bench.surprise_down_masked(DOWN)


async def test_a_lease_above_may_hold_the_port_down_again_and_owes_nothing_for_it(rig: Rig) -> None:
    await quarantined(rig, by="link_disable")
    lease = await opened(rig, ROOT)
    rig.bench.set(DOWN, LINK_CONTROL, 0)  # a hot reset from above
    await do(rig, lease, 1, modify(DOWN, LINK_CONTROL, 2, mask=DISABLE, value=DISABLE))
    assert rig.bench.get(DOWN, LINK_CONTROL) & DISABLE
    assert isinstance(await rig.ask(Close(token=lease.token)), Closed)


LETTING_GO = {
    "link_disable": write(DOWN, LINK_CONTROL, 2, 0),
    "containment": write(DOWN, DPC_STATUS, 2, TRIGGER),
    "bus_reset": modify(DOWN, BRIDGE_CONTROL, 2, mask=SBR, value=SBR),
    "link_state_changed": modify(DOWN, SLOT_CONTROL, 2, mask=DLLSCE, value=DLLSCE),
    "behind": write(CARD, 0x04, 2, 6),
}


@pytest.mark.parametrize("what", LETTING_GO)
@pytest.mark.parametrize("who", ["a recovery above", "a slot operation"])
async def test_nobody_lets_go_of_a_quarantined_port(rig: Rig, what: str, who: str) -> None:
    await quarantined(rig)
    if who == "a slot operation":
        lease = await opened(rig, DOWN, Rank.SLOT_OPERATION)
    else:
        lease = await opened(rig, ROOT)
    assert reason(await do(rig, lease, 1, LETTING_GO[what])) is Reason.QUARANTINED


async def test_a_slot_operation_may_clear_what_latched_and_enumerating_forgets_nothing(rig: Rig) -> None:
    await quarantined(rig, by="link_disable")
    rig.bench.latch(DOWN, PDC)
    slot = await opened(rig, DOWN, Rank.SLOT_OPERATION)
    answer = await do(rig, slot, 1, write(DOWN, SLOT_STATUS, 2, PDC), Operation(verb=Verb.ENUMERATE, function=DOWN))
    assert answer.values == (PDC, 0)
    await rig.ask(Close(token=slot.token), Role.HOTPLUG)
    assert rig.ledger.book.topology.find(CARD) is not None
    assert {one.address for one in (await lifted(rig)).lease.functions} == {DOWN, CARD, NESTED}


async def test_p4_a_quarantine_ends_when_its_port_went_away_with_the_card_that_it_is_part_of(rig: Rig) -> None:
    await quarantined(rig, by="link_disable")
    rig.bench.take_down(ROOT, UP, DOWN, CARD, NESTED)
    slot = await opened(rig, ROOT, Rank.SLOT_OPERATION)
    await do(rig, slot, 1, Operation(verb=Verb.ENUMERATE, function=ROOT))
    assert rig.ledger.book.topology.find(DOWN) is None
    assert not (await listed(rig)).quarantines
    assert "gone" in rig.facts(What.QUARANTINE_LIFTED)[0].data["by"]
    rig.bench.bring_up(ROOT, UP, DOWN, CARD, NESTED)
    await do(rig, slot, 2, Operation(verb=Verb.ENUMERATE, function=ROOT))
    await rig.ask(Close(token=slot.token), Role.HOTPLUG)
    assert isinstance(await rig.ask(request(DOWN, Rank.SLOT_OPERATION), Role.HOTPLUG), Opened)
    await rig.restart()
    assert not (await listed(rig)).quarantines


async def test_nested_quarantines_each_keep_their_own(rig: Rig) -> None:
    await quarantined(rig, by="link_disable")
    await quarantined(rig, ROOT)
    assert reason(await lifted(rig)) is Reason.QUARANTINED, "the port above it first"
    assert reason(await rig.ask(request(DOWN, Rank.SLOT_OPERATION), Role.HOTPLUG)) is Reason.QUARANTINED
    lease = (await lifted(rig, ROOT)).lease
    assert lease.quarantined == (DOWN,)
    assert {one.address for one in lease.functions} == {ROOT, UP, DOWN}
    await do(rig, lease, 1, write(ROOT, DPC_STATUS, 2, TRIGGER))
    rig.bench.bring_up(ROOT, UP, DOWN)
    assert isinstance(await rig.ask(Close(token=lease.token)), Closed)
    assert (rig.bench.enables(ROOT), rig.bench.enables(DOWN)) == (ENABLES, PDCE)
    lease = (await lifted(rig)).lease
    assert [(one.port, one.enables) for one in lease.slots] == [(DOWN, ENABLES)]


async def test_a_lift_that_is_absorbed_passes_on_what_the_record_had_kept(rig: Rig) -> None:
    await quarantined(rig, by="link_disable")
    await lifted(rig)
    lease = await opened(rig, ROOT)
    assert lease.quarantined == ()
    assert lease.debts.link_disabled == (DOWN,)
    assert [(one.port, one.enables, one.surprise_down_masked) for one in lease.slots] == [
        (ROOT, ENABLES, False),
        (DOWN, ENABLES, False),
    ]


async def test_p7_who_was_absorbed_puts_nothing_into_quarantine_any_more(rig: Rig) -> None:
    lease = await opened(rig, DOWN)
    await contain(rig, lease, 1, DOWN, CARD, NESTED)
    heir = await opened(rig, ROOT)
    assert heir.debts.contained == (DOWN,)
    assert reason(await rig.ask(Close(token=lease.token, quarantine=(DOWN,)))) is Reason.FENCED
    assert (await listed(rig)).quarantines == ()
