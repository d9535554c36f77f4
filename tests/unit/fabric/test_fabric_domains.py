"""Leases where there is no slot, or no link: conventional bridges, integrated endpoints, slotless root ports."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.pcie import Address, ConfigSpace
from shared.pcie import registers as reg
from shared.protocol import Reason
from shared.protocol.fabric import Close, Executed, Rank, Reach, Result
from shared.recovery import modify

from .fabric_asking import BRIDGE_CONTROL, DISABLE, SBR, do, opened, reason, request
from .fabric_bench import LINK_CONTROL, LINK_STATUS, OTHER, OTHER_CARD, Bench, Rig, space

A = Address.parse
SLOTLESS, BRIDGE, FIRST, SECOND, INTEGRATED = (
    A(text) for text in ("00:04.0", "07:00.0", "08:01.0", "08:02.0", "00:05.0")
)


def conventional(device: int) -> ConfigSpace:
    """A function without PCI Express, and so without anything behind it."""
    made = ConfigSpace()
    for register in reg.TYPE0:
        made.place(register)
    made.place(reg.VENDOR_ID, 0x1234)
    made.place(reg.DEVICE_ID, device)
    made.place(reg.REVISION_AND_CLASS, 0x020000_01)
    return made


def old_bench() -> Bench:
    """Adds: 00:04.0, no slot -- 07:00.0, a bridge -- 08:01.0 and 08:02.0, two slots; 00:05.0 integrated."""
    bench = Bench()
    kinds = reg.DeviceType
    bench.spaces |= {
        SLOTLESS: space(kinds.ROOT_PORT, bus=(7, 8)),
        BRIDGE: space(kinds.PCIE_TO_PCI_BRIDGE, bus=(8, 8)),
        FIRST: conventional(1),
        SECOND: conventional(2),
        INTEGRATED: space(kinds.ROOT_COMPLEX_ENDPOINT),
    }
    bench.set(SLOTLESS, LINK_STATUS, int(reg.LinkStatus.LINK_ACTIVE))
    return bench


@pytest.fixture
async def old(tmp_path: Path) -> Rig:
    return await Rig(tmp_path / "old", old_bench()).start()


async def test_a_lease_for_a_conventional_slot_is_on_its_bridge_and_covers_the_whole_bus(old: Rig) -> None:
    lease = await opened(old, FIRST, Rank.USER)
    assert lease.port == BRIDGE
    assert {one.address for one in lease.functions} == {BRIDGE, FIRST, SECOND}
    assert lease.slots == (), "the lease alone covers them"


async def test_p1_secondary_bus_reset_of_a_conventional_bridge_is_a_reset_bit(old: Rig) -> None:
    reset = modify(BRIDGE, BRIDGE_CONTROL, 2, mask=SBR, value=SBR)
    lease = await opened(old, FIRST, Rank.USER, Reach.NOTHING)
    assert reason(await do(old, lease, 1, reset)) is Reason.UNMASKED
    wider = (await old.ask(request(FIRST, Rank.USER, Reach.RESET, id=lease.id))).lease
    assert isinstance(await do(old, wider, 1, reset), Executed)
    assert reason(await old.ask(Close(token=wider.token))) is Reason.IN_RESET
    await do(old, wider, 2, modify(BRIDGE, BRIDGE_CONTROL, 2, mask=SBR, value=0))
    closed = await old.ask(Close(token=wider.token))
    assert {one.function: one.result for one in closed.outcomes} == dict.fromkeys(
        (BRIDGE, FIRST, SECOND), Result.RECOVERED
    )


async def test_one_conventional_slot_that_was_swapped_is_replaced_and_its_neighbour_is_not(old: Rig) -> None:
    lease = await opened(old, FIRST, Rank.USER)
    old.bench.spaces[SECOND] = conventional(3)
    closed = await old.ask(Close(token=lease.token))
    assert {one.function: one.result for one in closed.outcomes if one.function != BRIDGE} == {
        FIRST: Result.RECOVERED,
        SECOND: Result.REPLACED,
    }


async def test_p6_a_recovery_of_the_port_above_absorbs_the_lease_of_a_bridge(old: Rig) -> None:
    below = await opened(old, SECOND, Rank.USER)
    lease = await opened(old, BRIDGE)
    assert lease.port == SLOTLESS
    assert reason(await do(old, below, 1, modify(BRIDGE, BRIDGE_CONTROL, 2, mask=SBR, value=SBR))) is Reason.FENCED


async def test_a_slotless_root_port_has_nothing_to_mask(old: Rig) -> None:
    old.bench.writes.clear()
    lease = await opened(old, SLOTLESS)
    assert lease.slots == ()
    assert old.bench.writes == []
    assert isinstance(await do(old, lease, 1, modify(SLOTLESS, LINK_CONTROL, 2, mask=DISABLE, value=DISABLE)), Executed)
    old.bench.take_down(SLOTLESS, BRIDGE, FIRST, SECOND)
    closed = await old.ask(Close(token=lease.token, quarantine=(SLOTLESS,), why="no slot to speak"))
    assert {one.result for one in closed.outcomes if one.function != SLOTLESS} == {Result.QUARANTINED}
    lifted = (await old.ask(request(SLOTLESS, lifts=True))).lease
    assert lifted.slots == ()
    assert lifted.debts.link_disabled == (SLOTLESS,)


async def test_an_integrated_endpoint_stands_for_itself_and_has_no_link_to_reset(old: Rig) -> None:
    assert reason(await old.ask(request(INTEGRATED))) is Reason.UNSUPPORTED
    for reach in (Reach.NOTHING, Reach.CALLBACKS):
        lease = await opened(old, INTEGRATED, Rank.USER, reach)
        assert (lease.port, [one.address for one in lease.functions], lease.slots) == (INTEGRATED, [INTEGRATED], ())
        closed = await old.ask(Close(token=lease.token))
        assert [one.result for one in closed.outcomes] == [Result.RECOVERED]


async def test_leases_of_two_domains_do_not_meet(old: Rig) -> None:
    await opened(old, FIRST, Rank.USER)
    await opened(old, INTEGRATED, Rank.USER, Reach.NOTHING)
    lease = await opened(old, OTHER_CARD)
    assert lease.port == OTHER
