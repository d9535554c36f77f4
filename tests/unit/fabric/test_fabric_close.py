"""Closing, questions, and what aer may acknowledge."""

from __future__ import annotations

import pytest

from shared.pcie import Address
from shared.pcie import registers as reg
from shared.protocol import Reason
from shared.protocol.fabric import (
    Acknowledge,
    Beat,
    Close,
    Closed,
    Executed,
    LeaseList,
    Leases,
    Rank,
    Reach,
    Read,
    Result,
    Role,
    Values,
)  # fmt: skip
from shared.recovery import modify, read, write

from .fabric_asking import BRIDGE_CONTROL, SBR, do, opened, reason
from .fabric_bench import (
    ACTIVE,
    CARD,
    CHANGED,
    DOWN,
    ENABLES,
    ERROR_MASK,
    ERROR_STATUS,
    LINK_STATUS,
    NESTED,
    OTHER,
    OTHER_CARD,
    PRESENT,
    ROOT,
    SLOT_CONTROL,
    SLOT_STATUS,
    SURPRISE_DOWN,
    UP,
    Bench,
    Rig,
    space,
)


async def test_p2_close_restores_exactly_the_bits_that_were_found(rig: Rig) -> None:
    rig.bench.set(DOWN, SLOT_CONTROL, 0x1020)  # PDCE was off
    rig.bench.set(DOWN, ERROR_MASK, SURPRISE_DOWN, 4)
    before = {port: (rig.bench.get(port, SLOT_CONTROL), rig.bench.get(port, ERROR_MASK, 4)) for port in (ROOT, DOWN)}
    lease = await opened(rig, ROOT)
    await do(rig, lease, 1, modify(ROOT, SLOT_CONTROL, 2, mask=0x1, value=0x1))
    rig.bench.take_down(ROOT, UP, DOWN, CARD, NESTED)
    rig.bench.bring_up(ROOT, UP, DOWN, CARD, NESTED)
    rig.bench.latch(ROOT, CHANGED)
    closed = await rig.ask(Close(token=lease.token))
    assert {one.result for one in closed.outcomes} == {Result.RECOVERED}
    assert rig.bench.get(ROOT, SLOT_STATUS) & CHANGED == 0
    after = {port: (rig.bench.get(port, SLOT_CONTROL), rig.bench.get(port, ERROR_MASK, 4)) for port in (ROOT, DOWN)}
    assert after == before | {ROOT: (before[ROOT][0] | 1, before[ROOT][1])}, "a bit set meanwhile is not taken back"
    assert [fact.port for fact in rig.facts("lease.unmasked")] == [DOWN, ROOT], "deepest first"


@pytest.mark.parametrize("swapped", [CARD, NESTED])
async def test_p4_another_function_behind_the_first_is_left_latched_too(rig: Rig, swapped: Address) -> None:
    """The kernel looks at function 0 alone."""
    lease = await opened(rig, ROOT)
    rig.bench.take_down(DOWN, CARD, NESTED)
    rig.bench.spaces[swapped] = space(reg.DeviceType.ENDPOINT, serial=0x99)
    rig.bench.bring_up(DOWN, CARD, NESTED)
    rig.bench.latch(DOWN, CHANGED)
    closed = await rig.ask(Close(token=lease.token))
    assert [one.function for one in closed.outcomes if one.result is Result.REPLACED] == [swapped]
    assert rig.bench.get(DOWN, SLOT_STATUS) & CHANGED == CHANGED
    assert rig.bench.enables(DOWN) == ENABLES


async def test_p4_another_card_is_left_latched_for_hotplug(rig: Rig) -> None:
    lease = await opened(rig, OTHER)
    rig.bench.take_down(OTHER, OTHER_CARD)
    rig.bench.spaces[OTHER_CARD] = space(reg.DeviceType.ENDPOINT, serial=0x99)
    rig.bench.bring_up(OTHER, OTHER_CARD)
    closed = await rig.ask(Close(token=lease.token))
    (outcome,) = (one for one in closed.outcomes if one.function == OTHER_CARD)
    assert (outcome.result, outcome.differs) == (Result.REPLACED, ("serial",))
    assert rig.bench.get(OTHER, SLOT_STATUS) & CHANGED == CHANGED
    assert rig.bench.enables(OTHER) == ENABLES


async def test_p4_a_card_whose_pins_say_that_it_was_reseated_is_replaced_although_it_answers_as_before(
    rig: Rig,
) -> None:
    pins = rig.bench.get(OTHER, SLOT_CONTROL) | reg.SlotControl.IN_BAND_PRESENCE_DISABLE
    rig.bench.set(OTHER, SLOT_CONTROL, int(pins))
    lease = await opened(rig, OTHER)
    rig.bench.latch(OTHER, int(reg.SlotStatus.PRESENCE_CHANGED))
    closed = await rig.ask(Close(token=lease.token))
    assert {one.function: one.result for one in closed.outcomes}[OTHER_CARD] is Result.REPLACED
    assert rig.bench.get(OTHER, SLOT_STATUS) & reg.SlotStatus.PRESENCE_CHANGED


@pytest.mark.parametrize(("present", "result"), [(0, Result.REMOVED), (PRESENT, Result.FAILED)])
async def test_a_card_that_does_not_answer_is_removed_or_failed_by_presence(
    rig: Rig, present: int, result: Result
) -> None:
    lease = await opened(rig, OTHER)
    rig.bench.take_down(OTHER, OTHER_CARD)
    rig.bench.set(OTHER, SLOT_STATUS, CHANGED | present)
    closed = await rig.ask(Close(token=lease.token))
    assert [one.result for one in closed.outcomes] == [Result.RECOVERED, result]
    assert rig.bench.enables(OTHER) == ENABLES


async def test_close_asked_again_is_answered_again(rig: Rig) -> None:
    lease = await opened(rig, OTHER)
    first = await rig.ask(Close(token=lease.token))
    await rig.restart()
    assert await rig.ask(Close(token=lease.token)) == first


async def test_p2_hardware_that_is_away_keeps_the_lease_until_it_is_back(rig: Rig) -> None:
    lease = await opened(rig, OTHER)
    rig.bench.away |= set(rig.bench.spaces)
    assert reason(await rig.ask(Close(token=lease.token))) is Reason.CONDITION
    rig.bench.away.clear()
    assert isinstance(await rig.ask(Close(token=lease.token)), Closed)
    assert rig.bench.enables(OTHER) == ENABLES


async def test_a_slot_operation_is_retired_as_it_stands(rig: Rig) -> None:
    slot = await opened(rig, OTHER, Rank.SLOT_OPERATION)
    rig.bench.writes.clear()
    assert (await rig.ask(Close(token=slot.token), Role.HOTPLUG)).outcomes == ()
    assert rig.bench.writes == []


# --- Questions and acknowledgements ---


async def test_leases_have_no_tokens_and_tell_of_those_that_ended(rig: Rig) -> None:
    lease = await opened(rig, DOWN)
    listed = await rig.ask(Leases(port=CARD), None)
    assert isinstance(listed, LeaseList)
    assert [(one.id, one.token) for one in listed.leases] == [(lease.id, 0)]
    assert (await rig.ask(Leases(port=OTHER), None)).leases == ()
    assert (await rig.ask(Leases(port=ROOT), None)).leases == (), "a lease below does not cover the port above"
    await rig.ask(Close(token=lease.token))
    assert [one.lease.id for one in (await rig.ask(Leases(port=CARD), None)).retired] == [lease.id]


async def test_p9_reads_are_values_or_none_and_name_the_covering_lease(rig: Rig) -> None:
    lease = await opened(rig, ROOT)
    rig.bench.away.add(CARD)
    reply = await rig.ask(Read(operations=(read(CARD, 0, 2), read(CARD, 0x0C, 1), read(ROOT, 0, 2))), None)
    assert isinstance(reply, Values)
    assert reply.values == (None, None, 0x8086)
    assert reply.lease is not None
    assert reply.lease.id == lease.id
    assert reason(await rig.ask(Read(operations=(write(ROOT, 0, 2, 0),)), None)) is Reason.POLICY


async def test_no_evidence_is_cleared_before_its_lease_is_open(rig: Rig) -> None:
    rig.bench.set(CARD, ERROR_STATUS, 0x4000, 4)
    rig.bench.set(CARD, 0x110, 0x40, 4)
    clear = Acknowledge(operations=(write(CARD, ERROR_STATUS, 4, 0x4000),))
    assert reason(await rig.ask(clear, Role.AER)) is Reason.POLICY
    assert isinstance(await rig.ask(Acknowledge(operations=(write(CARD, 0x110, 4, 0x40),)), Role.AER), Executed)
    assert (
        reason(await rig.ask(Acknowledge(operations=(write(ROOT, BRIDGE_CONTROL, 2, SBR),)), Role.AER)) is Reason.POLICY
    )
    await opened(rig, ROOT, reach=Reach.CALLBACKS)
    assert isinstance(await rig.ask(clear, Role.AER), Executed)
    assert rig.bench.get(CARD, ERROR_STATUS, 4) == rig.bench.get(CARD, 0x110, 4) == 0


async def test_silence_is_measured_from_the_last_accepted_command(rig: Rig) -> None:
    lease = await opened(rig, ROOT)
    rig.fabric._hearing._heard[lease.id] = rig.fabric._hearing._heard[lease.id]._replace(last=0.0)
    assert (await rig.ask(Leases(), None)).leases[0].silent_s > 0
    await rig.ask(Beat(token=lease.token))
    assert (await rig.ask(Leases(), None)).leases[0].silent_s < 1


def test_bench_links_are_up() -> None:
    assert Bench().get(ROOT, LINK_STATUS) == ACTIVE
