"""Must show 5: real changes in each phase of a recovery are acted on exactly once, and after it (P4)."""

from __future__ import annotations

import asyncio
import signal
from typing import Final

import pytest

from shared.pcie import Address
from shared.pcie.registers import COMMAND, Command
from shared.protocol import Reason, Refused, subjects
from shared.protocol.facts import What
from shared.protocol.requests import SlotReply, SlotReport, SlotRequest
from tests.integration.campaign import some_of
from tests.integration.fleet import Bench
from tests.integration.promises import config, keeps, promises, quiet, verdicts
from tests.integration.slots import (
    NEVER_S,
    PHASES,
    SETTLE_S,
    after_close,
    becomes,
    closed_after,
    contained_in,
    of,
    once,
    once_at,
    state_of,
    until,
)

PORT: Final = "00:0f.0"
CARD: Final = "0000:0f:00.0"
FULL: Final = "00:10.0"  # a slot with everything
IN_FULL: Final = "0000:10:00.0"
BUTTON_S: Final = 2.0  # the grace of the bench

pytestmark = pytest.mark.asyncio(loop_scope="session")


# --- The card ---


async def answers(bench: Bench, phase: str) -> None:
    """Wait until the card that was seated answers, in a phase in which the port lets it: it is not set up."""

    async def seated() -> bool | None:
        command = await bench.read(CARD, COMMAND)
        return (command is not None and not command & Command.MEMORY_SPACE) or None

    if phase in {"slot_reset", "resume"}:
        await bench.eventually(seated, f"a card that is not set up behind {PORT}")


@pytest.mark.parametrize("phase", some_of(PHASES, 0, 1, 3))
async def test_p4_p8_a_removal_in_each_phase_is_acted_on_once_after_it_and_not_waited_for(
    bench: Bench, phase: str
) -> None:
    since = bench.mark()
    async with promises(bench):
        lease = await contained_in(bench, PORT, CARD, phase)
        await bench.inject("remove", PORT)
        record = await closed_after(bench, PORT, CARD, lease)
        assert verdicts(record) == {CARD: "removed"}
        await until(bench, PORT, "off")
        assert after_close(bench, await once(bench, What.DEVICE_REMOVED, CARD, since), lease)
        await bench.inject("insert", PORT)
        await until(bench, PORT, "on")
    await once(bench, What.DEVICE_ADDED, CARD, since)


@pytest.mark.parametrize("phase", some_of(PHASES, 0, 2, 4))
async def test_p4_a_swap_in_each_phase_is_a_removal_and_an_insertion_after_it(bench: Bench, phase: str) -> None:
    since, serial = bench.mark(), f"00-00-00-00-00-00-0f-{PHASES.index(phase):02}"
    async with promises(bench):
        lease = await contained_in(bench, PORT, CARD, phase)
        await bench.inject("swap", PORT, card={"0": {"serial": serial}})
        await answers(bench, phase)
        record = await closed_after(bench, PORT, CARD, lease)
        assert verdicts(record) == {CARD: "replaced"}
        added = await once(bench, What.DEVICE_ADDED, CARD, since)
        removed = await once(bench, What.DEVICE_REMOVED, CARD, since)
        assert after_close(bench, removed, lease)
        assert after_close(bench, added, lease)
        await until(bench, PORT, "on")
    assert (await bench.registry())[CARD].identity.serial == int(serial.replace("-", ""), 16)


@pytest.mark.parametrize("phase", some_of(PHASES[:3], 0, 2))
async def test_p4_the_same_card_out_and_in_again_before_it_is_restored_counts_as_unchanged(
    bench: Bench, phase: str
) -> None:
    async with keeps(bench, PORT, resets=True):
        lease = await contained_in(bench, PORT, CARD, phase)
        await bench.inject("swap", PORT)
        record = await closed_after(bench, PORT, CARD, lease)
        assert verdicts(record) == {CARD: "kept"}


@pytest.mark.parametrize("phase", PHASES[3:])
async def test_p4_the_same_card_out_and_in_again_after_it_was_restored_is_set_up_once_more(
    bench: Bench, phase: str
) -> None:
    """Its driver has been told to go on with a card that has since lost its configuration: that is a real change."""
    since = bench.mark()
    before = await config(bench, (await bench.topology()).get(Address.parse(CARD)))
    async with promises(bench):
        lease = await contained_in(bench, PORT, CARD, phase)
        await bench.inject("swap", PORT)
        await answers(bench, phase)
        record = await closed_after(bench, PORT, CARD, lease)
        assert verdicts(record) == {CARD: "failed"}
        assert after_close(bench, await once(bench, What.DEVICE_REMOVED, CARD, since), lease)
        assert after_close(bench, await once(bench, What.DEVICE_ADDED, CARD, since), lease)
        await until(bench, PORT, "on")
    assert await config(bench, (await bench.topology()).get(Address.parse(CARD))) == before


# --- Button, latch, power ---


async def power(bench: Bench, port: str, *, on: bool) -> SlotReport | Refused:
    """Ask hotplug to switch a slot on or off."""
    subject = subjects.slot(bench.host, Address.parse(port), "power_on" if on else "power_off")
    reply: SlotReport | Refused = await bench.request(subject, SlotRequest(), SlotReply)
    return reply


@pytest.mark.parametrize("phase", some_of(PHASES, 0, 4))
async def test_p4_button_latch_and_power_fault_in_each_phase_are_acted_on_once_after_it_and_power_off_is_refused(
    bench: Bench, phase: str
) -> None:
    since = bench.mark()
    async with promises(bench):
        lease = await contained_in(bench, FULL, IN_FULL, phase)
        await bench.inject("button", FULL)
        await bench.inject("mrl", FULL, state=True)
        await bench.inject("power_fault", FULL)
        refused = await power(bench, FULL, on=False)
        assert isinstance(refused, Refused), refused
        assert refused.reason is Reason.HELD
        assert refused.lease is not None
        assert refused.lease.id == lease
        record = await closed_after(bench, FULL, IN_FULL, lease)
        assert verdicts(record) == {IN_FULL: "kept"}
        await bench.wait_fact(What.SLOT_BUTTON, FULL, since=since)
        await bench.inject("button", FULL)
        await until(bench, FULL, "on")
        for what in (What.SLOT_LATCH, What.SLOT_POWER_FAULT):
            assert after_close(bench, await once_at(bench, what, FULL, since), lease), what
        pressed = bench.facts(What.SLOT_BUTTON, FULL, since)
        assert [fact.data["state"] for fact in pressed] == ["blinking_off", "on"]
        assert after_close(bench, pressed[0], lease)
        mark = bench.mark()
        await bench.inject("mrl", FULL, state=False)
        await once_at(bench, What.SLOT_LATCH, FULL, mark)
    assert not of(bench.facts(since=since), What.DEVICE_REMOVED, IN_FULL)


async def test_p4_a_button_cancelled_during_a_recovery_cancels_though_its_grace_ended_meanwhile(bench: Bench) -> None:
    since = bench.mark()
    async with keeps(bench, FULL):
        await bench.inject("button", FULL)
        await becomes(bench, FULL, "blinking_off", since)
        bench.kill("hotplug", signal.SIGSTOP)  # or the grace might end before the containment
        try:
            lease = await contained_in(bench, FULL, IN_FULL, "error_detected")
        finally:
            bench.kill("hotplug", signal.SIGCONT)
        await asyncio.sleep(BUTTON_S)
        await bench.inject("button", FULL)
        await closed_after(bench, FULL, IN_FULL, lease)
        await until(bench, FULL, "on")
    assert len(bench.facts(What.SLOT_BUTTON, FULL, since)) == 2


async def test_p4_a_power_fault_that_lasts_through_a_recovery_switches_off_once_after_it(bench: Bench) -> None:
    since = bench.mark()
    async with promises(bench):
        lease = await contained_in(bench, FULL, IN_FULL, "slot_reset")
        await bench.inject("power_fault", FULL, for_s=NEVER_S)
        await closed_after(bench, FULL, IN_FULL, lease)
        await until(bench, FULL, "off")
        assert after_close(bench, await once(bench, What.DEVICE_REMOVED, IN_FULL, since), lease)
        await bench.wait_fact(What.SLOT_POWER_FAULT, FULL, since=since)
        await bench.inject("power_fault", FULL)  # the last one
        await bench.inject("button", FULL)
        await until(bench, FULL, "on")


async def test_p5_a_power_off_that_recovery_absorbed_is_parked_and_done_once_after_it(bench: Bench) -> None:
    await bench.hang(CARD, "unbind")
    since = bench.mark()
    async with promises(bench):
        assert isinstance(await power(bench, PORT, on=False), SlotReport)
        await bench.inject("dpc", PORT, reason="uncorrectable")
        absorbed = await bench.wait_fact(What.LEASE_ABSORBED, PORT, since=since)
        heir = absorbed.data["heir"]
        await closed_after(bench, PORT, CARD, heir)
        await until(bench, PORT, "off")
        assert after_close(bench, await once(bench, What.DEVICE_REMOVED, CARD, since), heir)
        await asyncio.sleep(SETTLE_S)
        await quiet(bench, PORT)
        assert (await state_of(bench, PORT)).state == "off"
        assert isinstance(await power(bench, PORT, on=True), SlotReport)
        await until(bench, PORT, "on")
    await once(bench, What.DEVICE_ADDED, CARD, since)
