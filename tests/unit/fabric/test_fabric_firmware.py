"""Firmware first: what may be written and when, what may not be held, and that the firmware is always answered."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

from services.fabric._actor import Notified
from shared.pcie import Address
from shared.pcie import registers as reg
from shared.protocol import Reason
from shared.protocol.fabric import (
    Acknowledge,
    AskTopology,
    Close,
    Closed,
    Executed,
    Lease,
    Leases,
    Opened,
    Operation,
    Rank,
    Reach,
    Result,
    Role,
)
from shared.recovery import modify, write

from .fabric_asking import DISABLE, TRIGGER, do, opened, reason, request
from .fabric_bench import (
    AER,
    CARD,
    DOWN,
    DPC,
    DPC_STATUS,
    ERROR_MASK,
    ERROR_STATUS,
    EXPRESS,
    LINK_CONTROL,
    NESTED,
    OTHER,
    OTHER_CARD,
    ROOT,
    SLOT_CONTROL,
    SURPRISE_DOWN,
    UP,
    Bench,
    Rig,
)
from .fabric_quarantining import lifted, quarantined
from .test_fabric_crash import Died, Mortal

SUCCESS, FAILURE = 0x80, 0x81
LINK_CAPABILITIES = EXPRESS + reg.LINK_CAPABILITIES.offset


@pytest.fixture
async def firmware(rig: Rig) -> Rig:
    """A rig whose host is firmware first, and whose ports could report Surprise Down."""
    for port in (ROOT, DOWN, OTHER):
        able = rig.bench.get(port, LINK_CAPABILITIES, 4) | reg.LinkCapabilities.SURPRISE_DOWN_REPORTING
        rig.bench.set(port, LINK_CAPABILITIES, able, 4)
    rig.bench.is_firmware_first = True
    await rig.restart()
    rig.bench.writes.clear()
    return rig


async def notify(rig: Rig, port: Address = ROOT) -> None:
    await rig.fabric.receive(Notified(port))


async def edr(rig: Rig) -> tuple[Address, ...]:
    listed: tuple[Address, ...] = (await rig.ask(Leases(), None)).edr
    return listed


def touched(bench: Bench) -> list[tuple[Address, int]]:
    """The writes to AER and DPC registers."""
    return [
        (address, offset)
        for address, offset, _, _ in bench.writes
        if AER <= offset < AER + 0x38 or DPC <= offset < DPC + 0x34
    ]


async def test_the_topology_tells_that_the_host_is_firmware_first_also_after_a_restart(firmware: Rig) -> None:
    assert (await firmware.ask(AskTopology(), None)).topology.firmware_first
    firmware.bench.away |= set(firmware.bench.spaces)
    await firmware.restart()
    assert (await firmware.ask(AskTopology(), None)).topology.firmware_first


THEIRS = {
    "aer mask": write(CARD, ERROR_MASK, 4, 0),
    "aer status": write(CARD, ERROR_STATUS, 4, 1 << 14),
    "root error command": write(ROOT, AER + 0x2C, 4, 0),
    "dpc control": modify(ROOT, DPC + 0x06, 2, mask=0x40, value=0x40),
    "dpc status": write(ROOT, DPC_STATUS, 2, TRIGGER),
    "a write that begins before": write(DOWN, DPC + 0x04, 4, 0),
}


@pytest.mark.parametrize("what", THEIRS)
@pytest.mark.parametrize("port", [None, ROOT])
async def test_error_registers_are_off_limits_outside_an_edr_event(
    firmware: Rig, what: str, port: Address | None
) -> None:
    if port is not None:
        await notify(firmware, port)
    lease = await opened(firmware, ROOT)
    reply = await do(firmware, lease, 1, THEIRS[what])
    if port is None:
        assert reason(reply) is Reason.POLICY
        assert touched(firmware.bench) == []
    else:
        assert isinstance(reply, Executed)


async def test_an_event_elsewhere_hands_nothing_over(firmware: Rig) -> None:
    await notify(firmware, OTHER)
    lease = await opened(firmware, ROOT)
    assert lease.firmware_owned
    assert reason(await do(firmware, lease, 1, THEIRS["dpc status"])) is Reason.POLICY


async def test_an_event_below_hands_over_what_is_below_only(firmware: Rig) -> None:
    await notify(firmware, DOWN)
    lease = await opened(firmware, ROOT)
    assert lease.firmware_owned
    assert isinstance(await do(firmware, lease, 1, THEIRS["aer mask"]), Executed)
    assert reason(await do(firmware, lease, 2, THEIRS["dpc status"])) is Reason.POLICY


async def test_from_open_to_close_outside_an_event_no_error_register_is_touched(firmware: Rig) -> None:
    lease = await opened(firmware, ROOT)
    assert {slot.surprise_down_masked for slot in lease.slots} == {None}
    assert lease.firmware_owned
    assert firmware.bench.enables(ROOT) == 0
    firmware.bench.take_down(ROOT, UP, DOWN, CARD, NESTED)
    firmware.bench.set(ROOT, ERROR_STATUS, SURPRISE_DOWN, 4)
    firmware.bench.bring_up(ROOT, UP, DOWN, CARD, NESTED)
    await firmware.restart()
    closed = await firmware.ask(Close(token=lease.token))
    assert {one.result for one in closed.outcomes} == {Result.RECOVERED}
    assert touched(firmware.bench) == []
    assert firmware.bench.get(ROOT, ERROR_STATUS, 4) == SURPRISE_DOWN
    assert {fact.data["verdict"] for fact in firmware.facts("lease.unmasked")} == {"restore"}, (
        "that is not ours to clear"
    )
    assert firmware.bench.answers == []


async def test_acknowledging_is_refused_outside_an_event(firmware: Rig) -> None:
    clear = Acknowledge(operations=(write(CARD, AER + 0x10, 4, 0x40),))
    assert reason(await firmware.ask(clear, Role.AER)) is Reason.POLICY
    device_status = Acknowledge(operations=(write(CARD, EXPRESS + reg.DEVICE_STATUS.offset, 2, 1),))
    assert isinstance(await firmware.ask(device_status, Role.AER), Executed)
    await notify(firmware)
    assert isinstance(await firmware.ask(clear, Role.AER), Executed)


# --- What may not be masked ---


@pytest.mark.parametrize("rank", [Rank.USER, Rank.EXTERNAL])
async def test_a_reset_whose_surprise_down_nobody_may_mask_is_refused(firmware: Rig, rank: Rank) -> None:
    refused = await firmware.ask(request(DOWN, rank))
    assert reason(refused) is Reason.POLICY
    assert str(DOWN) in refused.message
    assert isinstance(await firmware.ask(request(CARD, rank, Reach.NOTHING)), Opened), "an FLR takes no link down"


@pytest.mark.parametrize("why", ["not capable", "masked already", "handed over"])
async def test_it_is_not_refused_where_no_surprise_down_can_be_reported(firmware: Rig, why: str) -> None:
    for port in (ROOT, DOWN):
        if why == "not capable":
            firmware.bench.set(port, LINK_CAPABILITIES, int(reg.LinkCapabilities.LINK_ACTIVE_REPORTING), 4)
        elif why == "masked already":
            firmware.bench.set(port, ERROR_MASK, SURPRISE_DOWN, 4)
    if why == "handed over":
        await notify(firmware)
    assert isinstance(await firmware.ask(request(ROOT, Rank.EXTERNAL)), Opened)


async def test_a_port_that_does_not_answer_could_report_it(firmware: Rig) -> None:
    for port in (ROOT, DOWN):
        firmware.bench.set(port, ERROR_MASK, SURPRISE_DOWN, 4)
    firmware.bench.take_down(ROOT, UP, DOWN, CARD, NESTED)
    refused = await firmware.ask(request(ROOT, Rank.EXTERNAL))
    assert reason(refused) is Reason.POLICY
    assert str(DOWN) in refused.message


async def test_errors_cannot_be_kept_quiet_where_the_firmware_keeps_them(firmware: Rig) -> None:
    await notify(firmware)
    refused = await firmware.ask(request(ROOT, Rank.EXTERNAL, quiet_errors=True))
    assert reason(refused) is Reason.POLICY


async def test_a_host_without_firmware_first_refuses_nothing(rig: Rig) -> None:
    assert isinstance(await rig.ask(request(ROOT, Rank.EXTERNAL)), Opened)


# --- The answer ---


async def recovered(rig: Rig, port: Address = ROOT) -> Lease:
    lease = await opened(rig, port, cause="edr")
    assert not lease.firmware_owned
    return lease


async def test_the_firmware_is_told_that_all_recovered_once_the_lease_is_retired(firmware: Rig) -> None:
    await notify(firmware)
    assert await edr(firmware) == (ROOT,)
    lease = await recovered(firmware)
    assert firmware.bench.surprise_down_masked(ROOT)
    assert firmware.bench.answers == []
    assert isinstance(await firmware.ask(Close(token=lease.token)), Closed)
    assert firmware.bench.answers == [(ROOT, SUCCESS)]
    assert not firmware.bench.surprise_down_masked(ROOT)
    (fact,) = firmware.facts("lease.firmware_answered")
    assert (fact.port, fact.lease, fact.data) == (ROOT, lease.id, {"status": SUCCESS})
    assert await edr(firmware) == ()


async def test_the_hint_to_dpc_says_that_it_is_the_firmware(firmware: Rig) -> None:
    firmware.context.bus.published.clear()
    await notify(firmware)
    ((subject, hint),) = firmware.context.bus.published
    assert subject.endswith("irq.dpc")
    assert hint.edr  # type: ignore[attr-defined]


@pytest.mark.parametrize("what", ["a function failed", "still contained", "quarantined"])
async def test_the_firmware_is_told_what_did_not_recover(firmware: Rig, what: str) -> None:
    await notify(firmware, DOWN)
    lease = await recovered(firmware, DOWN)
    down: tuple[Address, ...] = ()
    if what == "a function failed":
        firmware.bench.away.add(NESTED)
    else:
        firmware.bench.set(DOWN, DPC_STATUS, TRIGGER)
    if what == "quarantined":
        firmware.bench.take_down(DOWN, CARD, NESTED)
        down = (DOWN,)
    assert isinstance(await firmware.ask(Close(token=lease.token, quarantine=down)), Closed)
    assert firmware.bench.answers == [(DOWN, FAILURE)]


async def test_each_event_in_the_domain_is_answered_for_itself(firmware: Rig) -> None:
    await notify(firmware, DOWN)
    await notify(firmware, ROOT)
    await notify(firmware, OTHER)
    lease = await recovered(firmware)
    await firmware.ask(Close(token=lease.token))
    assert firmware.bench.answers == [(ROOT, SUCCESS), (DOWN, SUCCESS)]
    assert await edr(firmware) == (OTHER,)


async def test_who_has_not_dealt_with_the_event_does_not_answer_it(firmware: Rig) -> None:
    before = await opened(firmware, OTHER_CARD, Rank.USER, Reach.NOTHING)
    await notify(firmware, OTHER)
    await firmware.ask(Close(token=before.token))
    slot = await opened(firmware, OTHER, Rank.SLOT_OPERATION)
    await firmware.ask(Close(token=slot.token), Role.HOTPLUG)
    assert firmware.bench.answers == []
    assert await edr(firmware) == (OTHER,)


async def test_a_port_that_nobody_knows_is_answered_at_once(firmware: Rig) -> None:
    await notify(firmware, Address.parse("77:00.0"))
    assert firmware.bench.answers == [(Address.parse("77:00.0"), FAILURE)]
    assert await edr(firmware) == ()


@pytest.mark.parametrize("port", [ROOT, DOWN, NESTED])
async def test_an_event_of_a_port_in_quarantine_is_answered_at_once(firmware: Rig, port: Address) -> None:
    """Nobody opens a lease there, so no lease would answer, and the firmware would wait for ever."""
    await notify(firmware, ROOT)
    await quarantined(firmware, ROOT)
    firmware.bench.answers.clear()
    await notify(firmware, port)
    assert firmware.bench.answers == [(port, FAILURE)]
    assert await edr(firmware) == ()


async def test_an_event_that_comes_too_late_for_the_lease_that_ends_in_quarantine_is_answered_with_it(
    firmware: Rig,
) -> None:
    await notify(firmware, DOWN)
    await quarantined(firmware, DOWN, by="link_disable")
    firmware.bench.answers.clear()
    again = (await lifted(firmware)).lease
    assert again.firmware_owned
    await notify(firmware, DOWN)  # the link fails once more while it is brought back
    assert firmware.bench.answers == []
    assert isinstance(await firmware.ask(Close(token=again.token, quarantine=(DOWN,))), Closed)
    assert firmware.bench.answers == [(DOWN, FAILURE)]
    assert await edr(firmware) == ()


async def test_an_answer_that_nobody_took_is_given_again(firmware: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    await notify(firmware)
    lease = await recovered(firmware)

    async def nobody(*_: Any) -> bool:
        return False

    with monkeypatch.context() as patched:
        patched.setattr(Bench, "answer_firmware", nobody)
        assert isinstance(await firmware.ask(Close(token=lease.token)), Closed)
    assert await edr(firmware) == (ROOT,)
    await notify(firmware)
    assert firmware.bench.answers == [(ROOT, SUCCESS)]
    assert await edr(firmware) == ()


POINTS = 40


@pytest.mark.parametrize("at", range(1, POINTS))
async def test_whoever_dies_the_firmware_is_answered(tmp_path: Path, at: int) -> None:
    rig = Mortal(tmp_path / "ledger", POINTS + 200)
    rig.bench.is_firmware_first = True
    await rig.start()
    await notify(rig)
    lease = await recovered(rig)
    rig.left = at
    with contextlib.suppress(Died):
        await rig.ask(Close(token=lease.token))
    rig.bench.before_write = lambda *_: None
    await rig.restart()
    if rig.ledger.book.leases:  # it had not begun
        await rig.ask(Close(token=lease.token))
    assert set(rig.bench.answers) == {(ROOT, SUCCESS)}
    assert rig.ledger.book.edr == rig.ledger.book.answers == ()
    assert rig.bench.get(ROOT, SLOT_CONTROL) & int(reg.SLOT_MASKED) == int(reg.SLOT_MASKED)
    rig.ledger.close()


async def test_an_open_event_outlives_the_fabric(firmware: Rig) -> None:
    await notify(firmware)
    await firmware.restart()
    assert await edr(firmware) == (ROOT,)
    lease = await recovered(firmware)
    operation: Operation = THEIRS["dpc status"]
    assert isinstance(await do(firmware, lease, 1, operation), Executed)


async def test_a_quarantine_that_begins_in_an_event_leaves_nothing_of_the_firmwares_to_be_restored(
    firmware: Rig,
) -> None:
    """Surprise Down is unmasked while that is allowed: neither lifting nor a restart may touch it afterwards."""
    await notify(firmware, DOWN)
    lease = await recovered(firmware, DOWN)
    assert firmware.bench.surprise_down_masked(DOWN)
    await do(firmware, lease, 1, modify(DOWN, LINK_CONTROL, 2, mask=DISABLE, value=DISABLE))
    firmware.bench.take_down(DOWN, CARD, NESTED)
    await firmware.ask(Close(token=lease.token, quarantine=(DOWN,)))
    assert firmware.bench.answers == [(DOWN, FAILURE)]
    assert not firmware.bench.surprise_down_masked(DOWN)
    firmware.bench.writes.clear()
    firmware.bench.set(DOWN, LINK_CONTROL, 0)
    await firmware.restart()
    lifted = (await firmware.ask(request(DOWN, lifts=True))).lease
    assert lifted.firmware_owned
    await do(firmware, lifted, 1, modify(DOWN, LINK_CONTROL, 2, mask=DISABLE, value=0))
    firmware.bench.bring_up(DOWN, CARD, NESTED)
    closed = await firmware.ask(Close(token=lifted.token))
    assert {one.result for one in closed.outcomes} == {Result.RECOVERED}
    assert touched(firmware.bench) == []
    assert firmware.bench.enables(DOWN) == int(reg.SLOT_MASKED)
