"""Ending a lease against its holder's will: nobody is waited for, and nothing stays masked (P2, P7)."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from services.coordinator._breaking import break_lease
from services.coordinator._resetting import FUNCTION, INSIDE, METHOD
from shared.protocol import Reason, Refused
from shared.protocol.fabric import Role
from shared.protocol.records import RecoveryState, Verdict
from shared.protocol.requests import Accepted, Break, Cause, DriverStep
from tests.unit.fabric.fabric_bench import CARD, NESTED, ROOT

from .ward_bench import Ward, hold_work, reset_work, sets_reset
from .work_bench import HANGS, InVirtualTime


def test_a_driver_that_hangs_is_not_waited_for_any_more_and_the_others_go_on(in_virtual_time: InVirtualTime) -> None:
    async def story() -> None:
        rig = Ward()
        rig.bench.trigger(ROOT)
        rig.votes = {(CARD, DriverStep.ERROR_DETECTED): HANGS}
        rig.port.launch(rig.work())
        await asyncio.sleep(1.0)
        began = asyncio.get_running_loop().time()
        assert await rig.breaks() == Accepted(lease=rig.lease.id, joined=True)
        await rig.ends()
        assert asyncio.get_running_loop().time() - began < rig.settings.driver_s / 2
        last = rig.records[-1]
        assert (last.state, last.broken) == (RecoveryState.CLOSED, "ann")
        assert (last.verdicts[str(CARD)], last.verdicts[str(NESTED)]) == (Verdict.FAILED, Verdict.KEPT)
        assert rig.told(DriverStep.RESUME) == [NESTED]
        assert [(data["by"], data["step"]) for data in rig.says("recovery.broken")] == [("ann", "error_detected")]

    in_virtual_time(story())


def test_a_driver_that_hangs_later_is_waited_for_briefly(in_virtual_time: InVirtualTime) -> None:
    async def story() -> None:
        rig = Ward()
        rig.settings = msgspec.structs.replace(rig.settings, driver_s=3600.0)
        rig.bench.trigger(ROOT)
        rig.votes = {(CARD, DriverStep.ERROR_DETECTED): HANGS, (NESTED, DriverStep.SLOT_RESET): HANGS}
        rig.port.launch(rig.work())
        await asyncio.sleep(1.0)
        began = asyncio.get_running_loop().time()
        await rig.breaks()
        await rig.ends()
        assert asyncio.get_running_loop().time() - began < 10.0
        assert [rig.records[-1].verdicts[str(one)] for one in (CARD, NESTED)] == [Verdict.FAILED] * 2

    in_virtual_time(story())


def test_p7_a_successor_goes_on_under_a_new_token(in_virtual_time: InVirtualTime) -> None:
    async def story() -> None:
        rig = Ward()
        rig.bench.trigger(ROOT)
        rig.votes = {(CARD, DriverStep.ERROR_DETECTED): HANGS}
        first = rig.lease.token
        rig.port.launch(rig.work())
        await asyncio.sleep(1.0)
        await rig.breaks()
        await rig.ends()
        assert rig.adopted == 1
        tokens = {call.token for call in rig.calls if call.step is not DriverStep.ERROR_DETECTED}
        assert tokens == {first + 1}

    in_virtual_time(story())


def test_what_does_not_answer_is_waited_for_a_second_only_and_not_tried_again(in_virtual_time: InVirtualTime) -> None:
    async def story() -> None:
        rig = Ward()
        rig.settings = msgspec.structs.replace(rig.settings, ready_s=60.0)
        rig.bench.trigger(ROOT)
        rig.bench.ready_s = {CARD: 1e9, NESTED: 1e9}
        rig.port.launch(rig.work())
        await asyncio.sleep(5.0)
        began = asyncio.get_running_loop().time()
        await rig.breaks()
        await rig.ends()
        assert asyncio.get_running_loop().time() - began < 5.0
        assert rig.story[-2:] == ["close", "journal closed"]

    in_virtual_time(story())


def test_a_broken_hold_refuses_renewals_and_ends_when_its_holder_is_silent_or_releases(
    in_virtual_time: InVirtualTime,
) -> None:
    async def story(releases: bool) -> None:
        rig = Ward(cause=Cause.HOLD)
        work = hold_work(rig)
        rig.port.launch(work)
        await asyncio.sleep(1.0)
        await rig.breaks()
        await rig.breaks()
        assert not work.open
        await asyncio.sleep(1.0)
        assert "close" not in rig.story, "its program may still run (P7)"
        if releases:
            work.release()
            await asyncio.sleep(1.0)
        else:
            await asyncio.sleep(rig.lease.allowed_s)
        assert rig.story[-2:] == ["close", "journal closed"]
        assert rig.records[-1].broken == "ann"
        assert len(rig.says("recovery.broken")) == 1

    in_virtual_time(story(True))
    in_virtual_time(story(False))


def test_a_lease_that_nobody_works_under_is_adopted_and_closed(in_virtual_time: InVirtualTime) -> None:
    async def story() -> None:
        rig = Ward()
        rig.bench.trigger(ROOT)
        rig.stop_before = "slot_reset"
        await rig.work().run()
        rig.stop_before = ""
        assert await rig.breaks() == Accepted(lease=rig.lease.id, joined=True)
        await rig.ends()
        last = rig.records[-1]
        assert (last.state, last.broken) == (RecoveryState.CLOSED, "ann")
        assert set(last.verdicts.values()) == {Verdict.KEPT}
        assert [data["by"] for data in rig.says("recovery.broken")] == ["ann"]

    in_virtual_time(story())


@pytest.mark.parametrize(("role", "reason"), [(None, Reason.UNKNOWN_LEASE), (Role.HOTPLUG, Reason.POLICY)])
def test_slot_operations_and_leases_that_have_ended_are_not_broken(
    in_virtual_time: InVirtualTime, role: Role | None, reason: Reason
) -> None:
    async def story() -> None:
        rig = Ward()
        rig.listed = role is not None
        rig.lease = msgspec.structs.replace(rig.lease, role=role or rig.lease.role)
        reply = await rig.breaks()
        assert isinstance(reply, Refused)
        assert reply.reason is reason
        assert not rig.adopted

    in_virtual_time(story())


def test_a_reset_that_is_broken_before_it_began_resets_nothing_and_drivers_hear_its_end(
    in_virtual_time: InVirtualTime,
) -> None:
    async def story() -> None:
        rig = Ward()
        details = {FUNCTION: str(CARD), METHOD: "bus"}
        rig.votes = {(NESTED, DriverStep.RESET_PREPARE): HANGS}
        rig.port.launch(reset_work(rig, details=details))
        await asyncio.sleep(1.0)
        await rig.breaks()
        await rig.ends()
        assert not sets_reset(rig)
        assert rig.told(DriverStep.RESET_DONE) == [CARD]
        assert rig.records[-1].state is RecoveryState.CLOSED

    in_virtual_time(story())


def test_a_hold_is_broken_although_a_reset_hangs_inside_it_which_itself_is_not(in_virtual_time: InVirtualTime) -> None:
    async def story() -> None:
        rig = Ward(cause=Cause.HOLD)
        rig.settings = msgspec.structs.replace(rig.settings, driver_s=3600.0)
        hold = hold_work(rig)
        rig.port.launch(hold)
        await asyncio.sleep(1.0)
        rig.votes = {(CARD, DriverStep.RESET_PREPARE): HANGS}
        inner = reset_work(rig, lease="u-inside", details={INSIDE: hold.id})
        rig.works.launch(inner, inner.run_inside(hold), lambda: None)
        await asyncio.sleep(1.0)
        refused = await break_lease(rig.port, Break(lease="u-inside"))
        assert isinstance(refused, Refused)
        assert hold.id in refused.message
        await rig.breaks()
        hold.release()
        await asyncio.sleep(5.0)
        assert rig.story[-2:] == ["close", "journal closed"]

    in_virtual_time(story())


@pytest.mark.parametrize("released", [False, True])
def test_a_driver_that_prepared_for_a_reset_inside_a_broken_hold_hears_its_end_and_so_does_who_asked(
    in_virtual_time: InVirtualTime, released: bool
) -> None:
    async def story() -> None:
        rig = Ward(cause=Cause.HOLD)
        hold = hold_work(rig)
        rig.port.launch(hold)
        await asyncio.sleep(0.1)
        rig.votes = {(NESTED, DriverStep.RESET_PREPARE): HANGS}
        inner = reset_work(rig, lease="u-inside", details={INSIDE: hold.id})
        rig.works.launch(inner, inner.run_inside(hold), lambda: None)
        await asyncio.sleep(1.0)
        if released:
            hold.release()  # it waits for the reset
            await asyncio.sleep(0.1)
        await rig.breaks()
        hold.release()
        await rig.ends()
        assert rig.told(DriverStep.RESET_DONE) == [CARD]
        assert not sets_reset(rig)
        assert {"absorbed_by": hold.id, "verdicts": {}} in rig.says("recovery.closed")
        assert rig.records[-1].lease == hold.id

    in_virtual_time(story())
