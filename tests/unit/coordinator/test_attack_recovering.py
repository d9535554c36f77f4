"""What broke once: a topology that was a card behind, and a function that came to life after it was given up."""

from __future__ import annotations

from services.coordinator._journal import Journal, blank
from services.coordinator._recovering import RecoveryWork
from shared.pcie import Topology
from shared.protocol.records import Verdict
from shared.protocol.requests import Cause, DriverStep
from shared.runtime import LeaseHandle
from tests.unit.fabric.fabric_bench import CARD, NESTED, ROOT
from tests.unit.recovery.forward_bench import BAR0, BAR_VALUE

from .work_bench import InVirtualTime, WorkBench


def test_p3_a_card_that_was_seated_just_before_its_error_is_restored(in_virtual_time: InVirtualTime) -> None:
    async def story() -> None:
        rig = WorkBench(cause=Cause.AER_FATAL)
        journal = Journal(rig, blank(rig.lease))  # type: ignore[arg-type]
        before = Topology(tuple(one for one in rig.bench.topology if one.address not in {CARD, NESTED}))
        await RecoveryWork(rig, rig, before, LeaseHandle(rig.lease), journal).run()  # type: ignore[arg-type]
        assert rig.told(DriverStep.SLOT_RESET) == [CARD, NESTED]
        assert rig.bench.get(CARD, BAR0, 4) == BAR_VALUE
        assert set(rig.records[-1].verdicts.values()) == {Verdict.KEPT}

    in_virtual_time(story())


def test_p10_what_was_given_up_has_failed_although_it_answers_at_close(in_virtual_time: InVirtualTime) -> None:
    async def story() -> None:
        rig = WorkBench(cause=Cause.AER_FATAL)
        rig.bench.pull(ROOT)
        await rig.work().run()  # its close finds everybody there
        assert rig.records[-1].verdicts[str(CARD)] is Verdict.FAILED
        assert rig.records[-1].verdicts[str(ROOT)] is Verdict.KEPT

    in_virtual_time(story())
