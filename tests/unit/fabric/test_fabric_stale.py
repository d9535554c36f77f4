"""Stale error status: cleared without a lease, as long as nothing that is latched could be about it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
import pytest

from services.fabric._stale import is_stale
from shared.pcie import NO_ANSWER, Address, Value
from shared.pcie import registers as r
from shared.protocol import Reason
from shared.protocol.fabric import Acknowledge, Executed, Role
from shared.recovery import write
from tests.port_bench import COLLECTOR, DOWN_0, DOWN_1, GPU_0, INTEGRATED_3, NVME, ROOT, SWITCH_ROOT, TOPOLOGY

from .fabric_asking import BRIDGE_CONTROL, SBR, reason
from .fabric_bench import AER as BENCH_AER
from .fabric_bench import CARD, ERROR_STATUS, Rig
from .fabric_bench import ROOT as BENCH_ROOT

FATAL = r.RootErrorStatus.UNCORRECTABLE_RECEIVED | r.RootErrorStatus.FATAL_RECEIVED
MULTIPLE = r.RootErrorStatus.MULTIPLE_UNCORRECTABLE
CORRECTABLE = r.RootErrorStatus.CORRECTABLE_RECEIVED | r.RootErrorStatus.MULTIPLE_CORRECTABLE
ROOT_STATUS, DPC_STATUS = r.ROOT_ERROR_STATUS.offset, r.DPC_STATUS.offset


def judged(functions: Iterable[Address], held: dict[tuple[Address, int], Value], topology: Any = TOPOLOGY) -> bool:
    """Judge with these registers' values; every other register is zero."""
    judging = is_stale(functions, topology)
    asked: Any = next(judging)
    with pytest.raises(StopIteration) as done:
        judging.send(tuple(held.get((one.function, one.offset & 0xFF), 0) for one in asked.operations))
    return bool(done.value.value)


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        ({}, True),
        ({(SWITCH_ROOT, ROOT_STATUS): CORRECTABLE}, True),
        ({(SWITCH_ROOT, ROOT_STATUS): FATAL}, False),
        ({(SWITCH_ROOT, ROOT_STATUS): MULTIPLE}, False),
        ({(SWITCH_ROOT, ROOT_STATUS): NO_ANSWER}, False),
        ({(ROOT, ROOT_STATUS): FATAL}, True),  # a message below another root port
        ({(DOWN_0, DPC_STATUS): r.DpcStatus.TRIGGER}, False),
        ({(SWITCH_ROOT, DPC_STATUS): r.DpcStatus.TRIGGER}, False),
        ({(DOWN_0, DPC_STATUS): NO_ANSWER}, False),
        ({(DOWN_0, DPC_STATUS): r.DpcStatus.INTERRUPT}, True),
        ({(DOWN_1, DPC_STATUS): r.DpcStatus.TRIGGER}, True),  # containment beside it
    ],
    ids=map(str, range(11)),
)
def test_status_is_evidence_while_a_message_or_a_containment_could_be_about_it(
    held: dict[tuple[Address, int], Value], *, expected: bool
) -> None:
    assert judged((GPU_0,), held) is expected


def test_all_that_is_cleared_at_once_must_be_stale() -> None:
    assert judged((GPU_0, NVME), {})
    assert not judged((GPU_0, NVME), {(ROOT, ROOT_STATUS): FATAL})


def test_an_integrated_endpoint_reports_to_its_collector() -> None:
    assert judged((INTEGRATED_3, COLLECTOR), {(ROOT, ROOT_STATUS): FATAL})
    assert not judged((INTEGRATED_3,), {(COLLECTOR, ROOT_STATUS): FATAL})


def test_what_reports_to_nobody_is_never_cleared() -> None:
    without = msgspec.structs.replace(TOPOLOGY, functions=tuple(each for each in TOPOLOGY if each.address != COLLECTOR))
    with pytest.raises(StopIteration) as done:
        next(is_stale((INTEGRATED_3,), without))
    assert done.value.value is False


async def test_stale_status_is_cleared_for_aer_and_only_when_it_says_so(rig: Rig) -> None:
    rig.bench.set(CARD, ERROR_STATUS, 0x4000, 4)
    clear = Acknowledge(operations=(write(CARD, ERROR_STATUS, 4, 0x4000),), stale=True)
    rig.bench.set(BENCH_ROOT, BENCH_AER + ROOT_STATUS, int(FATAL), 4)
    assert reason(await rig.ask(clear, Role.AER)) is Reason.POLICY
    rig.bench.set(BENCH_ROOT, BENCH_AER + ROOT_STATUS, 0, 4)
    assert reason(await rig.ask(Acknowledge(operations=clear.operations), Role.AER)) is Reason.POLICY
    assert isinstance(await rig.ask(clear, Role.AER), Executed)
    assert rig.bench.get(CARD, ERROR_STATUS, 4) == 0


async def test_stale_is_no_way_to_clear_anything_else(rig: Rig) -> None:
    for operation in (write(BENCH_ROOT, BRIDGE_CONTROL, 2, SBR), write(CARD, r.COMMAND.offset, 2, 0)):
        assert reason(await rig.ask(Acknowledge(operations=(operation,), stale=True), Role.AER)) is Reason.POLICY
    nowhere = Acknowledge(operations=(write(Address.parse("77:00.0"), ERROR_STATUS, 4, 1),), stale=True)
    assert reason(await rig.ask(nowhere, Role.AER)) is Reason.UNKNOWN_PORT
