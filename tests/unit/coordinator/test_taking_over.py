"""Going on with what somebody left, and giving up what fails the same way again and again: nobody is forgotten."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from services.coordinator._desk import Desk
from services.coordinator._journal import blank, inherit
from services.coordinator._resetting import FUNCTION, INSIDE, METHOD
from services.coordinator._works import ALIKE_MAX, Works
from shared.protocol import Reason, Refused, encode
from shared.protocol.fabric import LeaseList, Rank, Verb
from shared.protocol.records import RecoveryState, Verdict
from shared.protocol.requests import Cause, DriverStep, Vote
from shared.runtime import Entry, RefusedError
from tests.unit.fabric.fabric_bench import CARD, DPC_STATUS, NESTED, ROOT
from tests.unit.recovery.forward_bench import BRIDGE_CONTROL

from .ward_bench import Ward, adopt, hold_work, reset_work, sets_reset
from .work_bench import HANGS, InVirtualTime


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


@pytest.mark.parametrize("refused_for", [BRIDGE_CONTROL, DPC_STATUS], ids=["bus_reset", "release"])
def test_p2_what_the_fabric_refuses_again_and_again_ends_the_lease_all_the_same(
    in_virtual_time: InVirtualTime, refused_for: int
) -> None:
    async def story() -> None:
        rig = Ward()
        if refused_for == DPC_STATUS:
            rig.bench.trigger(ROOT)
        execute = rig.execute

        async def refuses(handle: Any, operations: Any, provided: Any = ()) -> Any:
            if any(one.verb is not Verb.READ and one.offset == refused_for for one in operations):
                raise RefusedError(Refused(reason=Reason.UNMASKED, message="02:00.0 does not take the mask"))
            return await execute(handle, operations, provided)

        rig.execute = refuses  # type: ignore[method-assign]
        rig.port.launch(rig.work())
        await rig.ends()
        for _ in range(ALIKE_MAX):
            assert "close" not in rig.story
            await adopt(rig)
        assert rig.story[-2:] == ["close", "journal closed"]
        assert rig.told(DriverStep.RESUME) == []
        last = rig.records[-1]
        assert (last.state, last.broken) == (RecoveryState.CLOSED, "holdfast")
        assert [last.verdicts[str(one)] for one in (CARD, NESTED)] == [Verdict.FAILED] * 2
        assert "does not take the mask" in rig.says("recovery.broken")[0]["by"]

    in_virtual_time(story())


def test_a_user_reset_that_is_refused_again_and_again_leaves_nobody_prepared_who_counts_as_kept(
    in_virtual_time: InVirtualTime,
) -> None:
    async def story() -> None:
        rig = Ward(cause=Cause.USER_RESET)
        rig.lease = msgspec.structs.replace(rig.lease, rank=Rank.USER)

        async def refuses(*_: Any) -> Any:
            raise RefusedError(Refused(reason=Reason.UNMASKED, message="02:00.0 does not take the mask"))

        rig.execute = refuses  # type: ignore[method-assign,assignment]
        rig.port.launch(reset_work(rig, details={FUNCTION: str(CARD), METHOD: "bus"}))
        await rig.ends()
        for _ in range(ALIKE_MAX):
            await adopt(rig)
        assert rig.told(DriverStep.RESET_PREPARE) == [CARD, NESTED]
        assert rig.records[-1].state is RecoveryState.CLOSED
        assert [rig.records[-1].verdicts[str(one)] for one in (CARD, NESTED)] == [Verdict.FAILED] * 2

    in_virtual_time(story())


def test_p3_who_dies_as_soon_as_a_quarantine_is_lifted_leaves_nobody_unbound(in_virtual_time: InVirtualTime) -> None:
    async def story() -> None:
        rig = Ward(cause=Cause.LIFT)
        rig.bench.trigger(ROOT)
        rig.lease = msgspec.structs.replace(rig.lease, id="l-1", lifted="r-0")
        told: dict[str, dict[str, Vote]] = {"unbind": {str(CARD): Vote.NONE}}
        begun = msgspec.structs.replace(
            blank(msgspec.structs.replace(rig.lease, id="r-0")), told=told, state=RecoveryState.CLOSED
        )
        rig.records = [begun]
        rig.kept = (Entry("recovery", encode(begun), 1),)
        await adopt(rig)
        assert rig.told(DriverStep.BIND) == [CARD]
        assert rig.told(DriverStep.SLOT_RESET) == [NESTED]
        assert rig.records[-1].verdicts[str(CARD)] is Verdict.REBOUND

    in_virtual_time(story())


def test_who_absorbs_a_hold_stops_the_reset_inside_and_ends_what_drivers_prepared_for(
    in_virtual_time: InVirtualTime,
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
        (left,) = await rig.works.absorbed((hold.id,), "r-2", ROOT)
        assert rig.works.find("u-inside") is None
        assert inherit(blank(rig.lease), (left,)).told == {DriverStep.RESET_PREPARE: {str(CARD): Vote.NONE}}
        closed = {data["absorbed_by"] for data in rig.says("recovery.closed")}
        assert closed == {hold.id, "r-2"}

    in_virtual_time(story())


def test_who_takes_over_a_hold_ends_what_drivers_prepared_for_in_a_reset_inside(in_virtual_time: InVirtualTime) -> None:
    async def story() -> None:
        rig = Ward(cause=Cause.HOLD)
        rig.lease = msgspec.structs.replace(rig.lease, rank=Rank.EXTERNAL)
        inner = msgspec.structs.replace(
            blank(rig.lease, **{INSIDE: rig.lease.id}),
            lease="u-inside",
            told={"reset_prepare": {str(CARD): Vote.NONE}},
        )
        rig.records = [inner]
        rig.kept = (Entry("recovery", encode(inner), 1),)
        await adopt(rig)
        assert rig.told(DriverStep.RESET_DONE) == [CARD]

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


@pytest.mark.parametrize("step", ["reset", "ready"])
def test_a_reset_that_may_not_have_been_done_is_done_and_one_that_was_is_not_done_again(
    in_virtual_time: InVirtualTime, step: str
) -> None:
    """The step is journalled before the bit is written: its asker must not hear of a success that never was."""

    async def story() -> None:
        rig = Ward(cause=Cause.USER_RESET)
        rig.lease = msgspec.structs.replace(rig.lease, rank=Rank.USER)
        told = {"reset_prepare": {str(one): Vote.NONE for one in (CARD, NESTED)}}
        begun = blank(rig.lease, **{FUNCTION: str(CARD), METHOD: "bus"})
        rig.records = [msgspec.structs.replace(begun, step=step, told=told)]
        await adopt(rig)
        assert sets_reset(rig) is (step == "reset")
        assert rig.told(DriverStep.RESET_PREPARE) == []
        assert rig.told(DriverStep.RESET_DONE) == [CARD, NESTED]

    in_virtual_time(story())


def test_p3_who_absorbs_a_lease_that_was_about_to_be_taken_over_inherits_what_its_drivers_were_told(
    in_virtual_time: InVirtualTime,
) -> None:
    async def story() -> None:
        rig = Ward()
        told: dict[str, dict[str, Vote]] = {"unbind": {str(CARD): Vote.NONE}}
        left = msgspec.structs.replace(blank(rig.lease), told=told)
        rig.kept = (Entry("recovery", encode(left), 1),)
        assert await rig.works.absorbed((rig.lease.id,), "r-2", ROOT) == (left,)

    in_virtual_time(story())


def test_what_the_fabric_refuses_ends_a_reset_inside_a_hold_and_the_hold_ends_what_drivers_prepared_for(
    in_virtual_time: InVirtualTime,
) -> None:
    async def story() -> None:
        rig = Ward(cause=Cause.HOLD)
        hold = hold_work(rig)
        rig.port.launch(hold)
        await asyncio.sleep(0.1)
        execute = rig.execute

        async def refuses(handle: Any, operations: Any, provided: Any = ()) -> Any:
            if any(one.verb is not Verb.READ and one.offset == BRIDGE_CONTROL for one in operations):
                raise RefusedError(Refused(reason=Reason.UNMASKED, message="00:01.0 does not take the mask"))
            return await execute(handle, operations, provided)

        rig.execute = refuses  # type: ignore[method-assign]
        inner = reset_work(rig, lease="u-inside", details={INSIDE: hold.id})
        rig.works.launch(inner, inner.run_inside(hold), lambda: None)
        await asyncio.sleep(1.0)
        assert rig.records[-1].lease == "u-inside"
        assert rig.records[-1].state is RecoveryState.CLOSED
        assert set(rig.records[-1].verdicts.values()) == {Verdict.FAILED}
        assert rig.told(DriverStep.RESET_DONE) == []
        hold.release()
        await rig.ends()
        assert rig.told(DriverStep.RESET_DONE) == [CARD, NESTED]

    in_virtual_time(story())


def test_a_reset_inside_a_hold_is_gone_on_with_by_who_takes_the_hold_over(in_virtual_time: InVirtualTime) -> None:
    """Its asker waits for an end of its own; and nobody hears the end of one preparation twice."""

    async def story() -> None:
        rig = Ward(cause=Cause.HOLD)
        rig.lease = msgspec.structs.replace(rig.lease, rank=Rank.EXTERNAL)
        details = {INSIDE: rig.lease.id, FUNCTION: str(CARD), METHOD: "bus"}
        told = {"reset_prepare": {str(CARD): Vote.NONE}}
        inner = msgspec.structs.replace(
            blank(rig.lease, **details), lease="u-inside", rank=Rank.USER, step="reset_prepare", told=told
        )
        rig.records = [inner]
        rig.kept = (Entry("recovery", encode(inner), 1),)
        await adopt(rig)
        closed = [record for record in rig.records if record.state is RecoveryState.CLOSED]
        assert [record.lease for record in closed] == ["u-inside", rig.lease.id]
        assert rig.told(DriverStep.RESET_PREPARE) == [NESTED]
        assert rig.told(DriverStep.RESET_DONE) == [CARD, NESTED]

    in_virtual_time(story())


@pytest.mark.parametrize(
    ("ended_s", "counted"), [(30.0, True), (60.0, False), (None, False)], ids=["lately", "long_ago", "who_knows_when"]
)
def test_a_successor_counts_the_recoveries_that_have_ended_by_the_fabric_s_clock(
    in_virtual_time: InVirtualTime, ended_s: float | None, counted: bool
) -> None:
    async def story() -> None:
        rig = Ward()
        rig.settings = msgspec.structs.replace(rig.settings, storm_recoveries=2, storm_s=60.0)
        works = Works(rig, rig, rig.bench.topology)  # type: ignore[arg-type]
        ended = msgspec.structs.replace(
            blank(rig.lease, took_s=5.0), state=RecoveryState.CLOSED, begun=(0.0, 20.0), step="closed"
        )
        rig.kept = (Entry("recovery", encode(ended), 1),)
        known = {} if ended_s is None else {rig.lease.id: ended_s}

        async def leases() -> LeaseList:
            return LeaseList(leases=(), ended_s=known)

        rig.leases = leases  # type: ignore[method-assign]
        assert await Desk(works)._survey()
        assert works.storms.is_over(ROOT, asyncio.get_running_loop().time()) is counted

    in_virtual_time(story())
