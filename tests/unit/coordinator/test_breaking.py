"""Ending a lease against its holder's will: nobody is waited for, and nothing stays masked (P2, P7)."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from services.coordinator import _takeover
from services.coordinator._breaking import break_lease
from services.coordinator._holds import HoldWork
from services.coordinator._journal import Journal, blank
from services.coordinator._plan import Chosen
from services.coordinator._port import Port
from services.coordinator._resetting import FUNCTION, INSIDE, METHOD, ResetWork
from services.coordinator._works import ALIKE_MAX, Works
from shared.protocol import Reason, Refused, encode
from shared.protocol.fabric import LeaseList, Rank, Role
from shared.protocol.records import RecoveryState, Verdict
from shared.protocol.requests import Accepted, Break, Cause, DriverStep, ResetMethod
from shared.runtime import Entry, LeaseHandle
from tests.unit.fabric.fabric_bench import CARD, NESTED, ROOT
from tests.unit.recovery.forward_bench import BRIDGE_CONTROL, SBR

from .work_bench import HANGS, InVirtualTime, WorkBench


class Ward(WorkBench):
    """A bench with a whole coordinator's works on it: its fabric lists the one lease, and lets it be adopted."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.ownership = SimpleNamespace(held=True, tenure="t")
        self.listed = True
        self.adopted = 0
        self.works = Works(self, self, self.bench.topology)  # type: ignore[arg-type]
        self.port = Port(ROOT, self.works, lambda: None)

    async def leases(self) -> LeaseList:
        return LeaseList(leases=(self.lease,) if self.listed else ())

    async def adopt(self, lease_id: str) -> LeaseHandle:
        assert lease_id == self.lease.id
        self.adopted += 1
        self.story.append("adopt")
        self.lease = msgspec.structs.replace(self.lease, token=self.lease.token + 1)
        return LeaseHandle(self.lease)

    async def get(self, _key: str) -> Entry | None:
        if not self.records:
            return None
        return Entry("recovery", encode(self.records[-1]), 1)

    async def keys(self, _prefix: str) -> tuple[Entry, ...]:
        return ()

    async def breaks(self) -> Accepted | Refused:
        reply = await break_lease(self.port, Break(lease=self.lease.id, by="ann"))
        assert isinstance(reply, Accepted | Refused)
        return reply

    async def ends(self) -> None:
        """Wait until nothing is under way."""
        for _, task in tuple(self.works._running.values()):
            await asyncio.wait({task})

    def says(self, what: str) -> list[dict[str, Any]]:
        return [data for said, data in self.said if said == what]


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
        work = HoldWork(
            rig,  # type: ignore[arg-type]
            rig,  # type: ignore[arg-type]
            rig.bench.topology,
            LeaseHandle(rig.lease),
            Journal(rig, blank(rig.lease)),  # type: ignore[arg-type]
        )
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


def test_p2_a_work_that_fails_the_same_way_again_and_again_is_ended_without_callbacks(
    in_virtual_time: InVirtualTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        rig = Ward()
        rig.bench.trigger(ROOT)

        async def crashes(*_: Any) -> None:
            raise ZeroDivisionError("a bug")

        monkeypatch.setattr("services.coordinator._recovering.RecoveryWork._slot_reset", crashes)
        rig.port.launch(rig.work())
        await rig.ends()
        for _ in range(ALIKE_MAX):
            assert "close" not in rig.story
            rig.votes = {}
            await adopt(rig)
        assert rig.story[-2:] == ["close", "journal closed"]
        assert rig.told(DriverStep.SLOT_RESET) == rig.told(DriverStep.RESUME) == []
        assert rig.told(DriverStep.ERROR_DETECTED) == [CARD, NESTED]
        last = rig.records[-1]
        assert [last.verdicts[str(one)] for one in (CARD, NESTED)] == [Verdict.FAILED] * 2
        assert last.verdicts[str(ROOT)] is Verdict.KEPT
        assert "ZeroDivisionError" in rig.says("recovery.broken")[0]["by"]

    in_virtual_time(story())


async def adopt(rig: Ward) -> None:
    """Do as the survey does when a lease has fallen silent."""
    await _takeover.adopt(rig.works, rig.lease, lambda: None)
    await rig.ends()


def reset_work(rig: Ward, **fields: Any) -> ResetWork:
    chosen = Chosen(ResetMethod.BUS, ROOT, tuple(rig.bench.topology.get(one) for one in (CARD, NESTED)))
    record = msgspec.structs.replace(blank(rig.lease), rank=Rank.USER, cause=Cause.USER_RESET, **fields)
    journal = Journal(rig, record)  # type: ignore[arg-type]
    return ResetWork(rig, rig, rig.bench.topology, LeaseHandle(rig.lease), journal, chosen)  # type: ignore[arg-type]


def sets_reset(rig: Ward) -> bool:
    return any(line.endswith(f"{BRIDGE_CONTROL:#x} {SBR:#x}") for line in rig.story)


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
        hold = HoldWork(
            rig,  # type: ignore[arg-type]
            rig,  # type: ignore[arg-type]
            rig.bench.topology,
            LeaseHandle(rig.lease),
            Journal(rig, blank(rig.lease)),  # type: ignore[arg-type]
        )
        rig.port.launch(hold)
        await asyncio.sleep(1.0)
        rig.votes = {(CARD, DriverStep.RESET_PREPARE): HANGS}
        inner = reset_work(rig, lease="u-inside", details={INSIDE: hold.id})
        rig.works.launch(inner, inner.run_inside(hold.inside), lambda: None)
        await asyncio.sleep(1.0)
        refused = await break_lease(rig.port, Break(lease="u-inside"))
        assert isinstance(refused, Refused)
        assert hold.id in refused.message
        await rig.breaks()
        hold.release()
        await asyncio.sleep(5.0)
        assert rig.story[-2:] == ["close", "journal closed"]

    in_virtual_time(story())


def test_a_successor_goes_on_counting_the_recoveries_that_its_predecessor_has_begun(
    in_virtual_time: InVirtualTime,
) -> None:
    async def story() -> None:
        rig = Ward()
        rig.settings = msgspec.structs.replace(rig.settings, storm_recoveries=2, storm_s=60.0)
        rig.works = Works(rig, rig, rig.bench.topology)  # type: ignore[arg-type]
        rig.bench.trigger(ROOT)
        rig.stop_before = "slot_reset"
        await rig.work(msgspec.structs.replace(blank(rig.lease), begun=(0.0, 20.0))).run()
        rig.stop_before = ""
        rig.lease = msgspec.structs.replace(rig.lease, age_s=30.0)
        now = asyncio.get_running_loop().time()
        await adopt(rig)
        assert rig.works.storms.is_over(ROOT, now + 9)
        assert not rig.works.storms.is_over(ROOT, now + 11), "the lease is 30 s old, the recovery before it 50 s"

    in_virtual_time(story())
