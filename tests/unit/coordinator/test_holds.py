from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from services.coordinator._hold_requests import take_hold
from services.coordinator._holds import HELD, HoldWork
from services.coordinator._journal import Journal, blank
from services.coordinator._port import Port
from shared.pcie import IdentityField, Topology
from shared.protocol import Reason, Refused
from shared.protocol.fabric import Open
from shared.protocol.records import RecoveryState, Verdict
from shared.protocol.requests import Cause, Hold
from shared.runtime import LeaseHandle, Settings
from tests.unit.fabric.fabric_bench import CARD, ROOT
from tests.unit.recovery.forward_bench import BAR0, BAR_VALUE

from .work_bench import InVirtualTime, WorkBench


def hold(rig: WorkBench) -> HoldWork:
    journal = Journal(rig, blank(rig.lease))  # type: ignore[arg-type]
    return HoldWork(rig, rig, rig.bench.topology, LeaseHandle(rig.lease), journal)  # type: ignore[arg-type]


def test_a_hold_lasts_while_its_user_speaks_and_ends_when_he_is_silent(in_virtual_time: InVirtualTime) -> None:
    async def story() -> None:
        rig = WorkBench(cause=Cause.HOLD)
        work = hold(rig)
        running = asyncio.create_task(work.run())
        for _ in range(10):
            await asyncio.sleep(rig.lease.allowed_s * 0.9)
            work.renew()
        held_on = work.open
        assert held_on
        assert rig.records[-1].step == HELD
        await asyncio.sleep(rig.lease.allowed_s * 1.1)
        assert not work.open
        await running
        assert rig.records[-1].state is RecoveryState.CLOSED

    in_virtual_time(story())


def test_p2_whatever_the_program_left_is_rolled_forward(in_virtual_time: InVirtualTime) -> None:
    async def story() -> None:
        rig = WorkBench(cause=Cause.HOLD)
        work = hold(rig)
        running = asyncio.create_task(work.run())
        await asyncio.sleep(1.0)
        rig.bench.trigger(ROOT)
        work.release()
        await running
        assert rig.bench.get(CARD, BAR0, 4) == BAR_VALUE
        assert set(rig.records[-1].verdicts.values()) == {Verdict.KEPT}
        assert rig.story[-2:] == ["close", "journal closed"]

    in_virtual_time(story())


def test_what_a_hold_accepts_and_silences_is_the_fabrics_to_grant_and_its_refusal_is_passed_on(
    in_virtual_time: InVirtualTime,
) -> None:
    async def story() -> None:
        asked: list[Open] = []

        async def refuses(command: Open) -> Refused:
            asked.append(command)
            return Refused(reason=Reason.POLICY, message="the firmware owns Surprise Down")

        works: Any = SimpleNamespace(
            context=SimpleNamespace(settings=Settings(instance="test")),
            fabric=SimpleNamespace(open=refuses),
            topology=Topology(),
            new_id=lambda kind, _: kind,
        )
        accept = (IdentityField.REVISION, IdentityField.SERIAL)
        request = Hold(port=ROOT, holder="ann", accept=accept, quiet_errors=True)
        reply = await take_hold(Port(ROOT, works, lambda: None), request)
        assert isinstance(reply, Refused)
        assert reply.reason is Reason.POLICY
        (command,) = asked
        assert (command.accept, command.quiet_errors, command.holder) == (accept, True, "ann")

    in_virtual_time(story())
