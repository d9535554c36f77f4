from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from shared.pcie import Value
from shared.protocol import Reason, Refused
from shared.protocol.fabric import Condition, Operation
from shared.protocol.requests import Cause
from shared.recovery import Step
from shared.runtime import LeaseHandle, RefusedError
from tests.unit.fabric.fabric_bench import ROOT
from tests.unit.recovery.forward_bench import BRIDGE_CONTROL, SBR

from .work_bench import InVirtualTime, WorkBench


def test_p8_a_card_that_goes_between_the_look_and_the_reset_is_not_reset(
    in_virtual_time: InVirtualTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look that came before proves nothing: presence is asked in the very step that writes the bit."""

    async def story() -> None:
        rig = WorkBench(cause=Cause.AER_FATAL)
        execute = rig.execute

        async def pulled_just_now(
            handle: LeaseHandle, operations: Sequence[Operation], provided: Sequence[Condition] = ()
        ) -> tuple[Value, ...]:
            if any(one.offset == BRIDGE_CONTROL and one.value & SBR for one in operations):
                rig.bench.pull(ROOT)
                if Condition(port=ROOT, present=True) in provided:
                    raise RefusedError(Refused(reason=Reason.CONDITION, message="present is False"))
            return await execute(handle, operations, provided)

        monkeypatch.setattr(rig, "execute", pulled_just_now)
        await rig.work().run()
        assert f"write {ROOT} {BRIDGE_CONTROL:#x} {SBR:#x}" not in rig.story
        skipped: list[Any] = [data["skipped"] for _, data in rig.said if "skipped" in data]
        assert skipped == ["no card is present"]
        assert rig.records[-1].step == Step.CLOSED

    in_virtual_time(story())
