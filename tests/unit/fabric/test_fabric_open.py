"""Opening: what is saved, masked, inherited and refused."""

from __future__ import annotations

from typing import Any

from shared.pcie import Address
from shared.pcie import registers as reg
from shared.protocol import Reason
from shared.protocol.fabric import (
    AskTopology,
    Close,
    Open,
    Rank,
    Reach,
    Role,
    TopologyReply,
)  # fmt: skip
from shared.recovery import modify, read

from .fabric_asking import BRIDGE_CONTROL, DISABLE, SBR, TRIGGER, do, opened, reason, request
from .fabric_bench import (
    CARD,
    DOWN,
    DPC_STATUS,
    ENABLES,
    LINK_CONTROL,
    NESTED,
    OTHER,
    ROOT,
    SLOT_CONTROL,
    UP,
    Rig,
)


async def test_topology_is_the_tree_that_enumeration_finds(rig: Rig) -> None:
    reply = await rig.ask(AskTopology(), None)
    assert isinstance(reply, TopologyReply)
    assert [one.address for one in reply.topology.below(ROOT)] == [UP, DOWN, CARD, NESTED]
    assert [one.address for one in reply.topology.slots(ROOT)] == [ROOT, DOWN]


async def test_p1_open_masks_every_slot_of_the_domain_and_no_other(rig: Rig) -> None:
    lease = await opened(rig, ROOT)
    assert {slot.port: slot.enables for slot in lease.slots} == {ROOT: ENABLES, DOWN: ENABLES}
    for port in (ROOT, DOWN):
        assert rig.bench.enables(port) == 0
        assert rig.bench.surprise_down_masked(port)
        assert rig.bench.get(port, SLOT_CONTROL) & reg.SlotControl.HOTPLUG_INTERRUPT_ENABLE
    assert rig.bench.enables(OTHER) == ENABLES
    assert rig.facts("lease.masked")[0].data["slots"][0]["saved_enables"] == ENABLES


async def test_open_for_an_endpoint_takes_the_port_above_and_reach_nothing_masks_nothing(rig: Rig) -> None:
    lease = await opened(rig, CARD, Rank.USER, Reach.NOTHING)
    assert lease.port == DOWN
    assert lease.slots == ()
    assert rig.bench.enables(DOWN) == ENABLES


async def test_open_asked_again_is_answered_again_and_widens_on_request(rig: Rig) -> None:
    asked = request(ROOT, reach=Reach.CALLBACKS)
    first = (await rig.ask(asked)).lease
    assert (await rig.ask(asked)).lease == first
    wider = (await rig.ask(Open(**{**_fields(asked), "reach": Reach.RESET}))).lease
    assert (wider.token, wider.reach, wider.slots) == (first.token, Reach.RESET, first.slots)


def _fields(message: Open) -> dict[str, Any]:
    return {name: getattr(message, name) for name in message.__struct_fields__}


async def test_a_slot_that_does_not_answer_is_saved_from_the_snapshot(rig: Rig) -> None:
    rig.bench.take_down(ROOT, UP, DOWN, CARD, NESTED)
    lease = await opened(rig, ROOT)
    assert {slot.port: slot.enables for slot in lease.slots} == {ROOT: ENABLES, DOWN: ENABLES}
    down = next(one for one in lease.functions if one.address == DOWN)
    assert down.uncorrectable is None
    slot_control = next(one for one in down.registers if one.offset == SLOT_CONTROL)
    assert slot_control.value & ENABLES == 0, "what may be restored under the lease is masked"


async def test_a_restarted_fabric_still_knows_nested_slots_behind_a_contained_port(rig: Rig) -> None:
    rig.bench.take_down(ROOT, UP, DOWN, CARD, NESTED)
    rig.bench.set(ROOT, DPC_STATUS, TRIGGER)
    await rig.restart()
    lease = await opened(rig, ROOT)
    assert [slot.port for slot in lease.slots] == [ROOT, DOWN]
    assert lease.debts.contained == (ROOT,)


async def test_the_refusals_of_open_each_with_its_reason(rig: Rig) -> None:
    assert reason(await rig.ask(request(ROOT), Role.HOTPLUG)) is Reason.ROLE
    assert reason(await rig.ask(request(ROOT, Rank.SLOT_OPERATION), Role.COORDINATOR)) is Reason.ROLE
    assert reason(await rig.ask(request(Address.parse("7f:00.0")))) is Reason.UNKNOWN_PORT
    greedy = Open(id="x", port=ROOT, rank=Rank.SLOT_OPERATION, reach=Reach.RESET, cause="", holder="me")
    assert reason(await rig.ask(greedy, Role.HOTPLUG)) is Reason.POLICY
    assert reason(await rig.ask(request(ROOT, allowed_s=0.0))) is Reason.MALFORMED
    lease = await opened(rig, ROOT, id="mine")
    assert reason(await rig.ask(request(ROOT, id="mine", holder="another"))) is Reason.HELD
    assert reason(await rig.ask(request(DOWN))) is Reason.HELD
    await rig.ask(Close(token=lease.token))
    assert reason(await rig.ask(request(ROOT, id="mine"))) is Reason.FENCED
    assert len(rig.facts("lease.refused")) == 8


async def test_p2_an_heir_inherits_what_was_found_and_never_the_mask(rig: Rig) -> None:
    below = await opened(rig, DOWN)
    await do(rig, below, 1, modify(DOWN, BRIDGE_CONTROL, 2, mask=SBR, value=SBR))
    reply = await rig.ask(request(ROOT))
    assert reply.absorbed == (below.id,)
    assert {slot.port: slot.enables for slot in reply.lease.slots} == {ROOT: ENABLES, DOWN: ENABLES}
    assert reply.lease.debts.in_reset == (DOWN,)
    assert reason(await do(rig, below, 2, read(DOWN, 0, 2))) is Reason.FENCED


async def test_p2_an_heir_owes_the_link_that_the_absorbed_had_disabled(rig: Rig) -> None:
    below = await opened(rig, DOWN, Rank.USER)
    await do(rig, below, 1, modify(DOWN, LINK_CONTROL, 2, mask=DISABLE, value=DISABLE))
    heir = await opened(rig, ROOT)
    assert heir.debts.link_disabled == (DOWN,)
    assert reason(await rig.ask(Close(token=heir.token))) is Reason.IN_RESET
