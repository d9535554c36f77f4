"""Executing: the fence, the number, P1, debts, and the snapshot."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from shared.pcie import registers as reg
from shared.protocol import Reason
from shared.protocol.fabric import (
    Adopt,
    Adopted,
    Alive,
    AskTopology,
    Beat,
    Close,
    Closed,
    Condition,
    Executed,
    Leases,
    Operation,
    Rank,
    Reach,
    Role,
    Verb,
)  # fmt: skip
from shared.recovery import modify, read, write

from .fabric_asking import BRIDGE_CONTROL, DISABLE, SBR, TRIGGER, do, opened, reason
from .fabric_bench import (
    CARD,
    CHANGED,
    DOWN,
    DPC_CONTROL,
    DPC_STATUS,
    ENABLES,
    ERROR_MASK,
    EXPRESS,
    FIRMWARE_SLOT_CONTROL,
    LINK_CONTROL,
    NESTED,
    OTHER,
    ROOT,
    SLOT_CONTROL,
    SLOT_STATUS,
    SURPRISE_DOWN,
    UP,
    Rig,
)


async def test_p7_a_deposed_holder_is_refused_for_good_also_after_a_restart(rig: Rig) -> None:
    lease = await opened(rig, ROOT)
    adopted = await rig.ask(Adopt(id=lease.id, holder="successor"))
    assert isinstance(adopted, Adopted)
    assert adopted.lease.token > lease.token
    for _ in range(2):
        assert reason(await do(rig, lease, 1, write(ROOT, BRIDGE_CONTROL, 2, SBR))) is Reason.FENCED
        assert reason(await rig.ask(Beat(token=lease.token))) is Reason.FENCED
        assert reason(await rig.ask(Close(token=lease.token))) is Reason.FENCED
        await rig.restart()
    assert rig.bench.get(ROOT, BRIDGE_CONTROL) == 0
    assert isinstance(await rig.ask(Beat(token=adopted.lease.token)), Alive)


async def test_p10_an_adoption_says_how_long_the_predecessor_was_silent_and_whether_that_was_too_long(rig: Rig) -> None:
    lease = await opened(rig, ROOT)
    await rig.ask(Adopt(id=lease.id, holder="hasty"))
    long_ago = asyncio.get_running_loop().time() - lease.allowed_s - 1
    rig.fabric._hearing.note(lease.id, long_ago)
    await rig.ask(Adopt(id=lease.id, holder="patient"))
    hasty, patient = rig.facts("lease.adopted")
    assert (hasty.data["before"], hasty.data["expired"]) == (lease.holder, False)
    assert (patient.data["before"], patient.data["expired"]) == ("hasty", True)
    assert hasty.data["silent_s"] < lease.allowed_s < patient.data["silent_s"]


async def test_p7_a_token_is_good_only_from_the_role_that_opened_it(rig: Rig) -> None:
    lease = await opened(rig, ROOT)
    assert reason(await rig.ask(Beat(token=lease.token), Role.HOTPLUG)) is Reason.ROLE
    assert reason(await rig.ask(Adopt(id=lease.id, holder="x"), Role.HOTPLUG)) is Reason.ROLE


async def test_tokens_only_rise_also_over_restarts(rig: Rig) -> None:
    seen = []
    for _ in range(3):
        lease = await opened(rig, ROOT)
        seen.append(lease.token)
        await rig.ask(Close(token=lease.token))
        await rig.restart()
    assert seen == sorted(set(seen))


async def test_n_is_executed_once_answered_again_and_stale_below(rig: Rig) -> None:
    lease = await opened(rig, ROOT)
    order = modify(ROOT, BRIDGE_CONTROL, 2, mask=SBR, value=SBR)
    first = await do(rig, lease, 1, order)
    rig.bench.writes.clear()
    assert await do(rig, lease, 1, order) == first
    assert rig.bench.writes == []
    assert reason(await do(rig, lease, 1, read(ROOT, 0, 2))) is Reason.STALE
    assert isinstance(await do(rig, lease, 4, read(ROOT, 0, 2)), Executed), "numbers may be left out"
    assert reason(await do(rig, lease, 2, order)) is Reason.STALE


RESETS = (
    modify(ROOT, BRIDGE_CONTROL, 2, mask=SBR, value=SBR),
    write(ROOT, BRIDGE_CONTROL, 2, SBR),
    write(ROOT, BRIDGE_CONTROL - 2, 4, SBR << 16),
    write(ROOT, BRIDGE_CONTROL, 1, SBR),
    modify(ROOT, LINK_CONTROL, 2, mask=DISABLE, value=DISABLE),
    modify(ROOT, DPC_CONTROL, 2, mask=0x40, value=0x40),
    write(ROOT, DPC_STATUS, 2, TRIGGER),
    modify(ROOT, SLOT_CONTROL, 2, mask=0x400, value=0x400),
)


@pytest.mark.parametrize("operation", RESETS)
@pytest.mark.parametrize("reach", [Reach.NOTHING, Reach.CALLBACKS])
async def test_p1_no_reset_bit_without_a_lease_that_resets(rig: Rig, operation: Operation, reach: Reach) -> None:
    lease = await opened(rig, ROOT, reach=reach)
    rig.bench.writes.clear()
    assert reason(await do(rig, lease, 1, operation)) is Reason.UNMASKED
    assert rig.bench.writes == []


@pytest.mark.parametrize("operation", RESETS[:-1])
async def test_p1_a_slot_operation_writes_no_reset_bit_but_power(rig: Rig, operation: Operation) -> None:
    lease = await opened(rig, ROOT, Rank.SLOT_OPERATION)
    assert reason(await do(rig, lease, 1, operation)) is Reason.UNMASKED
    assert isinstance(await do(rig, lease, 1, RESETS[-1]), Executed)


@pytest.mark.parametrize("operation", RESETS)
async def test_p1_a_slot_that_came_into_reach_with_its_enables_on_is_masked_first(
    rig: Rig, operation: Operation
) -> None:
    rig.bench.take_down(ROOT, UP, DOWN, CARD, NESTED)
    lease = await opened(rig, ROOT)
    rig.bench.bring_up(ROOT, UP, DOWN, CARD, NESTED)
    assert rig.bench.enables(DOWN) == ENABLES
    masked_at_reset = []
    rig.bench.before_write = lambda address, offset, _: masked_at_reset.append(
        (address, offset, rig.bench.enables(ROOT) == rig.bench.enables(DOWN) == 0)
    )
    assert isinstance(await do(rig, lease, 1, operation), Executed)
    assert masked_at_reset[-1][0] == ROOT
    assert masked_at_reset[-1][2]


async def test_p1_a_slot_that_does_not_take_the_mask_refuses_the_reset(rig: Rig) -> None:
    lease = await opened(rig, ROOT)
    stuck = rig.bench.spaces[DOWN]
    stuck.place(reg.Register("stuck", 0x18, 2, ""), FIRMWARE_SLOT_CONTROL, EXPRESS)
    assert reason(await do(rig, lease, 1, RESETS[0])) is Reason.UNMASKED
    assert rig.bench.get(ROOT, BRIDGE_CONTROL) == 0


@pytest.mark.parametrize(
    "operation",
    [
        write(ROOT, SLOT_CONTROL, 2, FIRMWARE_SLOT_CONTROL),
        modify(DOWN, SLOT_CONTROL, 2, mask=0x8, value=0x8),
        write(ROOT, ERROR_MASK, 4, 0),
        write(ROOT, SLOT_STATUS, 2, CHANGED),
    ],
)
async def test_p2_under_a_mask_enables_and_latches_are_left_to_close(rig: Rig, operation: Operation) -> None:
    lease = await opened(rig, ROOT)
    assert reason(await do(rig, lease, 1, operation)) is Reason.POLICY
    slot = await opened(rig, OTHER, Rank.SLOT_OPERATION)
    same_elsewhere = Operation(**{**_operation(operation), "function": OTHER})
    assert isinstance(await do(rig, slot, 1, same_elsewhere), Executed), "a slot operation masks nothing"


def _operation(operation: Operation) -> dict[str, Any]:
    return {name: getattr(operation, name) for name in operation.__struct_fields__}


async def test_execute_stays_inside_the_domain_and_asks_its_conditions(rig: Rig) -> None:
    lease = await opened(rig, ROOT)
    assert reason(await do(rig, lease, 1, read(OTHER, 0, 2))) is Reason.OUTSIDE
    assert reason(await do(rig, lease, 1, read(ROOT, 1, 2))) is Reason.MALFORMED
    there = (Condition(port=ROOT, present=True, link_active=True),)
    assert isinstance(await do(rig, lease, 1, read(ROOT, 0, 2), provided=there), Executed)
    rig.bench.take_down(ROOT, UP, DOWN, CARD, NESTED)
    assert reason(await do(rig, lease, 2, read(ROOT, 0, 2), provided=there)) is Reason.CONDITION
    assert (await do(rig, lease, 2, read(UP, 0, 2), write(UP, 4, 2, 6))).values == (None, None)


async def test_debts_follow_the_registers(rig: Rig) -> None:
    lease = await opened(rig, ROOT)

    async def owed() -> Any:
        return (await rig.ask(Leases(), None)).leases[0].debts

    await do(rig, lease, 1, RESETS[0], RESETS[4])
    assert ((await owed()).in_reset, (await owed()).link_disabled) == ((ROOT,), (ROOT,))
    assert reason(await rig.ask(Close(token=lease.token))) is Reason.IN_RESET
    await do(
        rig,
        lease,
        2,
        modify(ROOT, BRIDGE_CONTROL, 2, mask=SBR, value=0),
        modify(ROOT, LINK_CONTROL, 2, mask=DISABLE, value=0),
    )
    assert (await owed()).in_reset == (await owed()).link_disabled == ()
    assert isinstance(await rig.ask(Close(token=lease.token)), Closed)


async def test_modify_writes_foreign_rw1c_bits_as_zero(rig: Rig) -> None:
    lease = await opened(rig, ROOT)
    rig.bench.set(ROOT, DPC_STATUS, 0x9)
    await do(rig, lease, 1, modify(ROOT, DPC_STATUS, 2, mask=TRIGGER, value=TRIGGER))
    assert rig.bench.get(ROOT, DPC_STATUS) == 0x8


async def test_the_snapshot_follows_software_and_not_the_mask(rig: Rig) -> None:
    slot = await opened(rig, DOWN, Rank.SLOT_OPERATION)
    await do(rig, slot, 1, modify(DOWN, SLOT_CONTROL, 2, mask=0x8, value=0), write(CARD, 0x10, 4, 0xF000_0000))
    await rig.ask(Close(token=slot.token), Role.HOTPLUG)
    rig.bench.take_down(ROOT, UP, DOWN, CARD, NESTED)
    rig.bench.set(ROOT, DPC_STATUS, TRIGGER)
    await rig.restart()
    lease = await opened(rig, ROOT)
    assert {one.port: one.enables for one in lease.slots} == {ROOT: ENABLES, DOWN: 0x1000}
    card = next(one for one in lease.functions if one.address == CARD)
    assert next(one.value for one in card.registers if one.offset == 0x10) == 0xF000_0000


async def test_p2_neither_a_restart_nor_a_restore_under_a_mask_shows_in_the_snapshot(rig: Rig) -> None:
    lease = await opened(rig, ROOT)
    await rig.restart()
    masked = FIRMWARE_SLOT_CONTROL & ~ENABLES
    await do(rig, lease, 1, write(DOWN, SLOT_CONTROL, 2, masked), write(DOWN, ERROR_MASK, 4, SURPRISE_DOWN))
    await rig.ask(Close(token=lease.token))
    rig.bench.take_down(ROOT, UP, DOWN, CARD, NESTED)
    saved = {slot.port: slot for slot in (await opened(rig, ROOT)).slots}
    assert saved[DOWN].enables == ENABLES
    assert saved[DOWN].surprise_down_masked is False


async def test_p3_a_reset_by_power_management_that_is_taken_over_half_way_has_nobody_put_back_into_d3hot(
    rig: Rig,
) -> None:
    at = 0xC0 + reg.PM_CONTROL.offset
    rig.bench.set(CARD, EXPRESS + 1, 0xC0, 1)  # the next capability
    rig.bench.set(CARD, 0xC0, reg.CapabilityId.POWER_MANAGEMENT)
    rig.bench.spaces[CARD].place(reg.PM_CONTROL, base=0xC0)
    await rig.restart()
    lease = await opened(rig, CARD, Rank.USER, Reach.NOTHING)
    await do(rig, lease, 1, modify(CARD, at, 2, mask=reg.PM_POWER_STATE, value=3))
    assert rig.bench.get(CARD, at) == 3
    heir = await opened(rig, DOWN)
    card = next(one for one in heir.functions if one.address == CARD)
    assert next(one.value for one in card.registers if one.offset == at) == 0


async def test_enumerate_forgets_only_under_a_slot_operation_and_never_behind_containment(rig: Rig) -> None:
    look = Operation(verb=Verb.ENUMERATE, function=DOWN)
    rig.bench.take_down(DOWN, CARD, NESTED)
    lease = await opened(rig, DOWN)
    assert (await do(rig, lease, 1, look)).values == (0,)
    assert len((await rig.ask(AskTopology(), None)).topology.below(DOWN)) == 2
    await rig.ask(Close(token=lease.token))
    slot = await opened(rig, DOWN, Rank.SLOT_OPERATION)
    rig.bench.set(DOWN, DPC_STATUS, TRIGGER)
    await do(rig, slot, 1, look)
    assert len((await rig.ask(AskTopology(), None)).topology.below(DOWN)) == 2
    rig.bench.set(DOWN, DPC_STATUS, 0)
    await do(rig, slot, 2, look)
    assert (await rig.ask(AskTopology(), None)).topology.below(DOWN) == ()
