"""What a hold asks for beyond its mask: errors kept quiet, and an identity that is meant to change."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from shared.pcie import IdentityField
from shared.pcie import registers as reg
from shared.protocol.fabric import Adopt, Close, Closed, Lease, Open, Opened, Rank, Reach, Result
from shared.recovery import modify, write

from .fabric_asking import do, opened, request
from .fabric_bench import (
    CARD,
    DOWN,
    DSN,
    ENABLES,
    EXPRESS,
    NESTED,
    OTHER,
    OTHER_CARD,
    ROOT,
    SLOT_STATUS,
    UP,
    Rig,
    space,
)
from .test_fabric_crash import Died, Mortal

COMMAND, BRIDGE_CONTROL = reg.COMMAND.offset, reg.BRIDGE_CONTROL.offset
DEVICE_CONTROL = EXPRESS + reg.DEVICE_CONTROL.offset
SERR = int(reg.Command.SERR)
BRIDGE_SERR = int(reg.BridgeControl.SERR)
REPORTING = int(reg.DeviceControl.NONFATAL_REPORTING | reg.DeviceControl.FATAL_REPORTING)
OTHER_BITS = int(reg.DeviceControl.CORRECTABLE_REPORTING)
NEW_SERIAL = 0x99
SERIAL_LOW = DSN + reg.SERIAL_NUMBER_LOW.offset


def loud(rig: Rig) -> None:
    for port in (ROOT, DOWN, OTHER):
        rig.bench.set(port, COMMAND, SERR | 0x6)
        rig.bench.set(port, BRIDGE_CONTROL, BRIDGE_SERR)
        rig.bench.set(port, DEVICE_CONTROL, REPORTING | OTHER_BITS)


def reporting(rig: Rig, port: object = OTHER) -> tuple[int, int, int]:
    return tuple(rig.bench.get(port, at) for at in (COMMAND, BRIDGE_CONTROL, DEVICE_CONTROL))  # type: ignore[arg-type, return-value]


LOUD = (SERR | 0x6, BRIDGE_SERR, REPORTING | OTHER_BITS)
QUIET = (0x6, 0, OTHER_BITS)


async def hold(rig: Rig, port: object = OTHER, **more: object) -> Lease:
    return await opened(rig, port, Rank.EXTERNAL, **more)  # type: ignore[arg-type]


# --- quiet_errors ---


async def test_errors_of_the_port_are_quiet_until_close_and_of_no_other(rig: Rig) -> None:
    loud(rig)
    lease = await hold(rig, quiet_errors=True)
    (saved,) = lease.quiet
    assert (saved.function, saved.command, saved.bridge_control, saved.device_control) == (
        OTHER,
        SERR,
        BRIDGE_SERR,
        REPORTING,
    )
    assert (reporting(rig), reporting(rig, ROOT)) == (QUIET, LOUD)
    assert [fact.data["quiet"] for fact in rig.facts("lease.masked")] == [[str(OTHER)]]
    await rig.ask(Close(token=lease.token))
    assert reporting(rig) == LOUD


async def test_only_what_was_found_set_is_set_again(rig: Rig) -> None:
    rig.bench.set(OTHER, DEVICE_CONTROL, int(reg.DeviceControl.FATAL_REPORTING))
    lease = await hold(rig, quiet_errors=True)
    await rig.ask(Close(token=lease.token))
    assert reporting(rig) == (0, 0, int(reg.DeviceControl.FATAL_REPORTING))


async def test_nothing_is_quiet_that_nobody_asked_for(rig: Rig) -> None:
    loud(rig)
    lease = await hold(rig)
    assert lease.quiet == ()
    assert reporting(rig) == LOUD


async def test_what_is_kept_quiet_is_inherited_and_ends_with_the_heir(rig: Rig) -> None:
    loud(rig)
    await hold(rig, DOWN, quiet_errors=True)
    heir = await opened(rig, ROOT)
    assert [one.function for one in heir.quiet] == [DOWN]
    assert (reporting(rig, DOWN), reporting(rig, ROOT)) == (QUIET, LOUD)
    await rig.ask(Close(token=heir.token))
    assert reporting(rig, DOWN) == LOUD


async def test_a_successor_knows_what_is_quiet(rig: Rig) -> None:
    loud(rig)
    lease = await hold(rig, quiet_errors=True)
    await rig.restart()
    adopted = await rig.ask(Adopt(id=lease.id, holder="successor"))
    assert adopted.lease.quiet == lease.quiet
    await rig.ask(Close(token=adopted.lease.token))
    assert reporting(rig) == LOUD


async def test_a_holder_who_restores_config_space_does_not_make_the_snapshot_forget(rig: Rig) -> None:
    """Else the next reset would restore silence for good."""
    loud(rig)
    await rig.restart()
    lease = await hold(rig, quiet_errors=True)
    await do(
        rig, lease, 1, write(OTHER, COMMAND, 2, 0x6), modify(OTHER, DEVICE_CONTROL, 2, mask=0xFFFF, value=OTHER_BITS)
    )
    await rig.ask(Close(token=lease.token))
    (saved,) = (one for one in (await opened(rig, OTHER)).functions if one.address == OTHER)
    held = {one.offset: one.value for one in saved.registers}
    assert (held[COMMAND], held[DEVICE_CONTROL]) == (SERR | 0x6, REPORTING | OTHER_BITS)


async def test_widening_keeps_what_is_quiet_and_what_is_accepted(rig: Rig) -> None:
    loud(rig)
    first = request(OTHER, Rank.EXTERNAL, Reach.NOTHING, quiet_errors=True, accept=(IdentityField.SERIAL,))
    assert isinstance(await rig.ask(first), Opened)
    wider = request(OTHER, Rank.EXTERNAL, Reach.RESET, id=first.id)
    lease = (await rig.ask(wider)).lease
    assert [one.device_control for one in lease.quiet] == [REPORTING]
    assert lease.accept == (IdentityField.SERIAL,)
    await rig.ask(Close(token=lease.token))
    assert reporting(rig) == LOUD


@pytest.mark.parametrize("at", range(1, 40))
async def test_p2_errors_are_reported_again_whoever_crashes_and_whenever(tmp_path: Path, at: int) -> None:
    rig = Mortal(tmp_path / "ledger", 1000)
    loud(rig)
    await rig.start()
    rig.left = at
    asked = Open(id="h", port=OTHER, rank=Rank.EXTERNAL, cause="", holder="me", quiet_errors=True)
    lease = (await rig.ask_until_answered(asked)).lease
    assert reporting(rig) == QUIET
    assert isinstance(await rig.ask_until_answered(Close(token=lease.token)), Closed)
    assert reporting(rig) == LOUD
    assert rig.bench.enables(OTHER) == ENABLES
    rig.ledger.close()


# --- accept ---


def reload(rig: Rig, **changed: int) -> None:
    """The card comes back as the firmware image makes it."""
    rig.bench.take_down(OTHER, OTHER_CARD)
    rig.bench.spaces[OTHER_CARD] = space(reg.DeviceType.ENDPOINT, serial=changed.get("serial", 0x33))
    if "device" in changed:
        rig.bench.set(OTHER_CARD, reg.DEVICE_ID.offset, changed["device"])
    rig.bench.bring_up(OTHER, OTHER_CARD)


async def test_p3_an_identity_that_changes_as_intended_is_the_same_card_and_known_from_then_on(rig: Rig) -> None:
    lease = await hold(rig, accept=(IdentityField.SERIAL, IdentityField.DEVICE))
    assert lease.accept == (IdentityField.DEVICE, IdentityField.SERIAL)
    reload(rig, serial=NEW_SERIAL, device=0x4711)
    closed = await rig.ask(Close(token=lease.token))
    (outcome,) = (one for one in closed.outcomes if one.function == OTHER_CARD)
    assert (outcome.result, outcome.differs) == (Result.RECOVERED, ("device", "serial"))
    assert rig.bench.get(OTHER, SLOT_STATUS) & 0x108 == 0, "nothing is left for hotplug"
    await rig.restart()
    known = rig.ledger.book.topology.get(OTHER_CARD).identity
    assert (known.serial, known.device) == (NEW_SERIAL, 0x4711)
    again = await opened(rig, OTHER)
    closed = await rig.ask(Close(token=again.token))
    assert {one.result for one in closed.outcomes} == {Result.RECOVERED}
    assert rig.ledger.book.ended[1].retired.accepted == lease.accept


async def test_p4_what_was_not_named_still_makes_it_another_card(rig: Rig) -> None:
    lease = await hold(rig, accept=(IdentityField.DEVICE,))
    reload(rig, serial=NEW_SERIAL, device=0x4711)
    closed = await rig.ask(Close(token=lease.token))
    (outcome,) = (one for one in closed.outcomes if one.function == OTHER_CARD)
    assert (outcome.result, outcome.differs) == (Result.REPLACED, ("serial",))
    assert rig.bench.get(OTHER, SLOT_STATUS) & 0x108
    assert rig.ledger.book.topology.get(OTHER_CARD).identity.serial == 0x33


async def test_a_recovery_that_absorbs_the_hold_accepts_what_the_hold_intends(rig: Rig) -> None:
    await hold(rig, accept=(IdentityField.SERIAL,))
    heir = await opened(rig, OTHER)
    assert heir.accept == (IdentityField.SERIAL,)
    reload(rig, serial=NEW_SERIAL)
    closed = await rig.ask(Close(token=heir.token))
    assert {one.result for one in closed.outcomes} == {Result.RECOVERED}


async def test_p4_a_recovery_above_accepts_it_of_whom_the_hold_was_about_and_of_nobody_else(rig: Rig) -> None:
    await hold(rig, DOWN, accept=(IdentityField.SERIAL,))
    heir = await opened(rig, ROOT)
    assert (heir.accept, heir.accepts) == ((), (IdentityField.SERIAL,))
    for one in (CARD, UP):
        rig.bench.set(one, SERIAL_LOW, NEW_SERIAL, 4)
    closed = await rig.ask(Close(token=heir.token))
    found = {one.function: one.result for one in closed.outcomes}
    assert (found[CARD], found[UP]) == (Result.RECOVERED, Result.REPLACED)
    assert rig.ledger.book.ended[0].retired.accepted == (IdentityField.SERIAL,)


async def test_what_a_recovery_has_accepted_of_a_hold_its_own_heir_accepts_too(rig: Rig) -> None:
    await hold(rig, DOWN, accept=(IdentityField.SERIAL,))
    for lease in (await hold(rig, ROOT), await opened(rig, ROOT)):
        assert {one.address for one in lease.functions if one.accept} == {DOWN, CARD, NESTED}


@pytest.mark.parametrize("at", range(1, 25))
async def test_an_accepted_identity_is_kept_whoever_crashes(tmp_path: Path, at: int) -> None:
    rig = Mortal(tmp_path / "ledger", 1000)
    await rig.start()
    lease = await hold(rig, accept=(IdentityField.SERIAL,))
    reload(rig, serial=NEW_SERIAL)
    rig.left = at
    with contextlib.suppress(Died):
        await rig.ask(Close(token=lease.token))
    rig.bench.before_write = lambda *_: None
    await rig.restart()
    if rig.ledger.book.leases:
        await rig.ask(Close(token=lease.token))
    assert rig.ledger.book.topology.get(OTHER_CARD).identity.serial == NEW_SERIAL
    assert {CARD, NESTED, UP} <= {function.address for function in rig.ledger.book.topology}
    rig.ledger.close()


# --- links ---


async def test_what_links_had_negotiated_is_saved_also_where_they_are_down_by_now(rig: Rig) -> None:
    speeds = {ROOT: 0x2000 | 16 << 4 | 4, DOWN: 0x2000 | 8 << 4 | 3}
    for port, status in speeds.items():
        rig.bench.set(port, EXPRESS + 0x12, status)
    await rig.restart()
    rig.bench.take_down(ROOT, UP, DOWN, CARD, NESTED)
    lease = await opened(rig, ROOT)
    assert [(one.port, one.speed, one.width) for one in lease.links] == [(ROOT, 4, 16), (DOWN, 3, 8)]
    rig.bench.away.clear()
    rig.bench.set(ROOT, EXPRESS + 0x12, 0x2000 | 4 << 4 | 4)
    closed = await rig.ask(Close(token=lease.token))
    assert {one.function for one in closed.outcomes if one.degraded} == {UP, DOWN}, "the link above both"
    assert [(one.port, one.width) for one in (await opened(rig, ROOT)).links] == [(ROOT, 4), (DOWN, 8)]
