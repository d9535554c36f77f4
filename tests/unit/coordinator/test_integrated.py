"""Recoveries of what is integrated into the root complex, and of what firmware reports: no link, or nothing at all."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from services.coordinator._journal import blank
from services.coordinator._need import still_needed
from shared.pcie import Address, Topology
from shared.pcie.registers import DeviceType
from shared.protocol.fabric import LeaseList, Operation, Reach
from shared.protocol.records import RecoveryState, Verdict
from shared.protocol.requests import Cause, Channel, DriverStep, Vote
from shared.runtime import RecoveryPolicy
from tests.unit.fabric.fabric_bench import CARD, ERROR_STATUS, EXPRESS, NESTED, ROOT
from tests.unit.recovery.forward_bench import BAR0, BAR_VALUE, BRIDGE_CONTROL, SBR

from .work_bench import InVirtualTime, WorkBench

FLR = f"write {CARD} {EXPRESS + 8:#x} "
COLLECTOR = Address.parse("00:1f.0")


class Integrated(WorkBench):
    """The function stands alone on the root bus, with FLR or without; its lease reaches nowhere (P1)."""

    def __init__(self, cause: Cause, *, flr: bool = True) -> None:
        super().__init__(cause=cause, reach=Reach.NOTHING)
        card = msgspec.structs.replace(
            self.bench.topology.get(CARD), parent=None, kind=DeviceType.ROOT_COMPLEX_ENDPOINT, flr=flr
        )
        others = tuple(one for one in self.bench.topology if one.address != CARD)
        self.bench.topology = Topology((*others, card))
        saved = next(one for one in self.lease.functions if one.address == CARD)
        self.lease = msgspec.structs.replace(self.lease, port=CARD, functions=(saved,), slots=())
        access = self.bench._access

        def resets(operation: Operation) -> Any:
            if operation.offset == EXPRESS + 8 and operation.value & 0x8000 and flr:
                self.bench.spaces[CARD].hot_reset()
            return access(operation)

        self.bench._access = resets  # type: ignore[method-assign]


@pytest.mark.parametrize("cause", [Cause.AER_FATAL, Cause.AER_NONFATAL])
def test_p1_an_integrated_endpoint_is_reset_by_flr_and_no_lease_is_widened(
    in_virtual_time: InVirtualTime, cause: Cause
) -> None:
    async def story() -> None:
        rig = Integrated(cause)
        await rig.work().run()
        steps = [call.step for call in rig.calls]
        assert steps == [DriverStep.ERROR_DETECTED, DriverStep.SLOT_RESET, DriverStep.RESUME]
        assert [line for line in rig.story if line.startswith(FLR)]
        assert not [line for line in rig.story if line.startswith("open")]
        assert rig.bench.get(CARD, BAR0, 4) == BAR_VALUE
        assert rig.records[-1].verdicts == {str(CARD): Verdict.KEPT}

    in_virtual_time(story())


def test_without_flr_its_driver_hears_that_it_is_lost(in_virtual_time: InVirtualTime) -> None:
    async def story() -> None:
        rig = Integrated(Cause.AER_FATAL, flr=False)
        await rig.work().run()
        assert [(call.step, call.channel) for call in rig.calls] == [
            (DriverStep.ERROR_DETECTED, Channel.FROZEN),
            (DriverStep.ERROR_DETECTED, Channel.PERM_FAILURE),
        ]
        assert not [line for line in rig.story if line.startswith(FLR)]
        assert rig.records[-1].verdicts == {str(CARD): Verdict.FAILED}

    in_virtual_time(story())


def test_without_flr_a_nonfatal_error_that_its_driver_handles_is_no_loss(in_virtual_time: InVirtualTime) -> None:
    async def story() -> None:
        rig = Integrated(Cause.AER_NONFATAL, flr=False)
        rig.votes = {(CARD, DriverStep.ERROR_DETECTED): Vote.RECOVERED}
        await rig.work().run()
        assert [call.step for call in rig.calls] == [DriverStep.ERROR_DETECTED, DriverStep.RESUME]
        assert rig.records[-1].verdicts == {str(CARD): Verdict.KEPT}

    in_virtual_time(story())


def test_firmware_that_speaks_of_no_containment_is_answered_and_nobody_is_disturbed(
    in_virtual_time: InVirtualTime,
) -> None:
    async def story() -> None:
        rig = WorkBench(cause=Cause.EDR)
        storm = msgspec.structs.replace(blank(rig.lease), quarantine=(ROOT,), why="firmware says so again and again")
        work = rig.work(storm)
        await work.run()
        assert not rig.calls
        assert not [line for line in rig.story if line.startswith("write")]
        assert (rig.records[-1].state, set(rig.records[-1].verdicts.values())) == (RecoveryState.CLOSED, {Verdict.KEPT})
        assert not work.running.joinable

    in_virtual_time(story())


def test_firmware_that_speaks_of_a_containment_is_a_recovery_like_any_other_also_for_a_successor(
    in_virtual_time: InVirtualTime,
) -> None:
    async def story() -> None:
        for step in ("release", "errors", "verify", "slot_reset"):
            rig = WorkBench(cause=Cause.EDR)
            rig.bench.trigger(ROOT)
            rig.stop_before = step
            await rig.work().run()
            rig.stop_before = ""
            await rig.work(rig.records[-1]).run()
            assert rig.told(DriverStep.RESUME) == [CARD, NESTED], f"after dying before {step}"

    in_virtual_time(story())


class Asked:
    """A fabric that lists its unanswered EDR events, and whose registers all read as `value`."""

    def __init__(self, *edr: Address, status: dict[tuple[Address, int], int] | None = None) -> None:
        self._edr = edr
        self._status = status or {}

    async def leases(self) -> LeaseList:
        return LeaseList(leases=(), edr=self._edr)

    async def read(self, operations: tuple[Operation, ...]) -> tuple[int, ...]:
        assert (CARD, BRIDGE_CONTROL) not in [(one.function, one.offset) for one in operations], "it is no bridge"
        return tuple(self._status.get((one.function, one.offset), 0) for one in operations)


def test_firmware_is_answered_as_long_as_it_waits_whatever_the_registers_hold() -> None:
    async def story() -> None:
        topology = WorkBench().bench.topology
        assert await still_needed(Asked(ROOT), topology, ROOT, Cause.EDR)  # type: ignore[arg-type]
        assert not await still_needed(Asked(), topology, ROOT, Cause.EDR)  # type: ignore[arg-type]

    asyncio.run(story())


def test_an_integrated_endpoint_needs_a_recovery_while_it_or_its_collector_says_so() -> None:
    async def story() -> None:
        rig = Integrated(Cause.AER_FATAL)
        collector = msgspec.structs.replace(
            rig.bench.topology.get(CARD),
            address=COLLECTOR,
            kind=DeviceType.ROOT_COMPLEX_EVENT_COLLECTOR,
            associated=(CARD,),
        )
        topology = Topology((collector, rig.bench.topology.get(CARD)))
        root_status = collector.capabilities.aer + 0x30
        for status, needed in (
            ({}, False),
            ({(CARD, ERROR_STATUS): 0x10}, True),
            ({(COLLECTOR, root_status): 0x4}, True),
        ):
            asked: Any = Asked(status=status)
            assert await still_needed(asked, topology, CARD, Cause.AER_FATAL) is needed, status

    asyncio.run(story())


def test_p3_by_policy_every_driver_is_unbound_before_the_reset_and_bound_again_after_it(
    in_virtual_time: InVirtualTime,
) -> None:
    async def story() -> None:
        rig = WorkBench(cause=Cause.AER_FATAL)
        rig.settings = msgspec.structs.replace(rig.settings, recovery=RecoveryPolicy.REENUMERATE)
        rig.votes = {(CARD, DriverStep.ERROR_DETECTED): Vote.DISCONNECT}
        await rig.work().run()
        both = [CARD, NESTED]
        assert rig.told(DriverStep.UNBIND) == rig.told(DriverStep.BIND) == both
        assert rig.told(DriverStep.SLOT_RESET) == rig.told(DriverStep.RESUME) == []
        assert not [call for call in rig.calls if call.channel is Channel.PERM_FAILURE]
        reset = rig.story.index(f"write {ROOT} {BRIDGE_CONTROL:#x} {SBR:#x}")
        assert rig.story.index(f"unbind {NESTED} normal") < reset < rig.story.index(f"bind {CARD} normal")
        assert [rig.records[-1].verdicts[str(one)] for one in both] == [Verdict.REBOUND] * 2

    in_virtual_time(story())


def test_p10_what_recovered_over_a_lesser_link_is_said_to_be_degraded(in_virtual_time: InVirtualTime) -> None:
    async def story() -> None:
        rig = WorkBench(cause=Cause.AER_FATAL)
        rig.degraded = {CARD}
        await rig.work().run()
        assert rig.records[-1].verdicts[str(CARD)] is Verdict.KEPT
        (closed,) = (data for what, data in rig.said if what == "recovery.closed")
        assert closed["degraded"] == (str(CARD),)

    in_virtual_time(story())
