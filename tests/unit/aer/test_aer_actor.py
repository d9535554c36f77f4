"""What a root port's actor publishes, asks for and clears for an uncorrectable error, and in which order."""

from __future__ import annotations

import asyncio

from services.aer.__main__ import wanted
from shared.pcie import registers as r
from shared.protocol import Reason, Refused
from shared.protocol.facts import What
from shared.protocol.requests import Cause
from shared.runtime import NobodyListens, Wake
from tests.port_bench import (
    AER,
    COLLECTOR,
    DOWN_0,
    DOWN_1,
    GPU_0,
    GPU_1,
    INTEGRATED,
    INTEGRATED_3,
    NVME,
    NVME_1,
    ROOT,
    SWITCH_ROOT,
    TOPOLOGY,
    UPSTREAM,
    without_aer,
)
from tests.unit.aer.aer_lab import CORRECTABLE, ENDED, FATAL, INTERRUPT, NONFATAL, START, Lab


async def test_p9_a_root_port_that_does_not_answer_reports_nothing(lab: Lab) -> None:
    lab.latch(ROOT, FATAL, fatal=NVME)
    lab.silent.add(ROOT)
    await lab.look(START)
    assert not lab.facts
    assert not lab.recovers


async def test_p9_a_forged_interrupt_changes_nothing(lab: Lab) -> None:
    lab.uncorrectable(NVME, r.Uncorrectable.MALFORMED_TLP)
    await lab.look(INTERRUPT)
    assert not lab.facts
    assert not lab.recovers
    assert not lab.acknowledged


async def test_a_fatal_error_is_decoded_published_and_recovered_once(lab: Lab) -> None:
    lab.uncorrectable(NVME, r.Uncorrectable.MALFORMED_TLP)
    lab.put(NVME, r.AER_CONTROL, 18, AER)
    for register, value in zip(r.HEADER_LOG, (0x40000001, 0x0000000F, 0xFFFFFFFF, 0x0), strict=True):
        lab.put(NVME, register, value, AER)
    lab.latch(ROOT, FATAL, fatal=NVME)
    await lab.look()
    [fact] = lab.said(What.ERROR_FATAL)
    assert fact.port == ROOT
    assert fact.data["function"] == str(NVME)
    assert fact.data["names"] == ["MalfTLP"]
    assert fact.data["first"] == "MalfTLP"
    assert fact.data["header"] == [0x40000001, 0x0000000F, 0xFFFFFFFF, 0x0]
    assert fact.data["text"] == [
        "AER: Uncorrectable (Fatal) error message received from 0000:01:00.0",
        "PCIe Bus Error: severity=Uncorrectable (Fatal), type=Transaction Layer, (Receiver ID)",
        "  device [8086:2030] error status/mask=00040000/00000000",
        "   [18] MalfTLP                (First)",
        "AER:   TLP Header: 0x40000001 0x0000000f 0xffffffff 0x00000000",
    ]
    [request] = lab.recovers
    assert (request.port, request.cause, request.functions) == (ROOT, Cause.AER_FATAL, (NVME,))
    assert lab.root_status() == 0
    assert lab.get(NVME, r.UNCORRECTABLE_STATUS, AER) == r.Uncorrectable.MALFORMED_TLP, "cleared by the recovery alone"
    await lab.look(ENDED)
    assert len(lab.recovers) == 1, "what was handed over is not asked for again"


async def test_no_evidence_is_cleared_before_the_recovery_is_accepted(lab: Lab) -> None:
    lab.uncorrectable(NVME, r.Uncorrectable.MALFORMED_TLP)
    lab.latch(ROOT, FATAL, fatal=NVME)
    lab.replies = [
        NobodyListens(),
        Refused(reason=Reason.HELD, message="held"),
        Refused(reason=Reason.NOT_OWNER, message=""),
    ]
    for _ in range(3):
        await lab.look(frozenset({Wake.AGAIN}))
        assert lab.root_status() == FATAL
        assert not lab.acknowledged
    await lab.look(frozenset({Wake.AGAIN}))
    assert len(lab.recovers) == 4
    assert lab.root_status() == 0
    assert len(lab.said(What.ERROR_FATAL)) == 1, "published once, asked four times"


async def test_a_refused_recovery_is_asked_for_again_by_itself(lab: Lab) -> None:
    lab.uncorrectable(NVME, r.Uncorrectable.MALFORMED_TLP)
    lab.latch(ROOT, FATAL, fatal=NVME)
    lab.replies = [NobodyListens(), Refused(reason=Reason.HELD, message="held")]
    cleared = asyncio.Event()
    lab.after_acknowledge = cleared.set
    running = asyncio.create_task(lab.actors[ROOT].run())
    await asyncio.wait_for(cleared.wait(), 5)
    running.cancel()
    await asyncio.wait({running})
    assert len(lab.recovers) == 3


async def test_a_refusal_by_policy_is_published_and_frees_the_latch(lab: Lab) -> None:
    lab.uncorrectable(NVME, r.Uncorrectable.MALFORMED_TLP)
    lab.latch(ROOT, FATAL, fatal=NVME)
    lab.replies = [Refused(reason=Reason.POLICY, message="the port is in quarantine")]
    await lab.look()
    assert [fact.data["why"] for fact in lab.said(What.ERROR_IGNORED)] == ["the port is in quarantine"]
    assert lab.root_status() == 0


async def test_a_named_function_that_does_not_answer_is_recovered_all_the_same(lab: Lab) -> None:
    lab.silent.add(NVME)
    lab.latch(ROOT, FATAL, fatal=NVME)
    await lab.look()
    [fact] = lab.said(What.ERROR_FATAL)
    assert "type=Inaccessible" in str(fact.data["text"])
    assert [(each.port, each.functions) for each in lab.recovers] == [(ROOT, (NVME,))]


async def test_a_function_without_aer_is_recovered_when_it_is_named(lab: Lab) -> None:
    lab.ports.topology = without_aer(lab.topology, NVME)
    lab.latch(ROOT, NONFATAL, fatal=NVME)
    await lab.look()
    assert [(each.cause, each.functions) for each in lab.recovers] == [(Cause.AER_NONFATAL, (NVME,))]


async def test_a_dead_switch_is_recovered_from_the_nearest_port_that_answers(lab: Lab) -> None:
    lab.silent |= {each.address for each in lab.topology.below(SWITCH_ROOT)}
    lab.latch(SWITCH_ROOT, FATAL, fatal=GPU_0)
    await lab.look(port=SWITCH_ROOT)
    assert [each.port for each in lab.recovers] == [SWITCH_ROOT]


async def test_different_ports_are_different_requests(lab: Lab) -> None:
    lab.uncorrectable(GPU_0, r.Uncorrectable.MALFORMED_TLP)
    lab.uncorrectable(GPU_1, r.Uncorrectable.COMPLETER_ABORT)
    lab.uncorrectable(DOWN_1, r.Uncorrectable.DATA_LINK_PROTOCOL)
    lab.latch(SWITCH_ROOT, FATAL | NONFATAL | r.RootErrorStatus.MULTIPLE_UNCORRECTABLE, fatal=GPU_0)
    await lab.look(port=SWITCH_ROOT)
    assert [(each.port, each.cause, each.functions) for each in lab.recovers] == [
        (DOWN_0, Cause.AER_FATAL, (GPU_0,)),
        (DOWN_1, Cause.AER_FATAL, (DOWN_1, GPU_1)),
    ]


async def test_a_port_accepted_is_not_asked_again_while_another_is_refused(lab: Lab) -> None:
    lab.uncorrectable(GPU_0, r.Uncorrectable.MALFORMED_TLP)
    lab.uncorrectable(GPU_1, r.Uncorrectable.MALFORMED_TLP)
    lab.latch(SWITCH_ROOT, FATAL, fatal=GPU_1)
    lab.replies = [Refused(reason=Reason.HELD, message="held")]
    await lab.look(port=SWITCH_ROOT)
    await lab.look(port=SWITCH_ROOT)
    assert [each.port for each in lab.recovers] == [DOWN_0, DOWN_1, DOWN_0]
    assert lab.root_status(SWITCH_ROOT) == 0


async def test_the_same_error_again_is_recovered_again(lab: Lab) -> None:
    for _ in range(2):
        lab.uncorrectable(NVME, r.Uncorrectable.MALFORMED_TLP)
        lab.latch(ROOT, FATAL, fatal=NVME)
        await lab.look()
    assert len(lab.recovers) == 2
    assert len(lab.said(What.ERROR_FATAL)) == 2


async def test_a_nonfatal_bit_that_nobody_signalled_says_nothing(lab: Lab) -> None:
    lab.uncorrectable(NVME, r.Uncorrectable.UNSUPPORTED_REQUEST)
    await lab.look(frozenset({Wake.POLL}))
    assert not lab.recovers
    assert not lab.facts


async def test_masked_bits_are_no_errors(lab: Lab) -> None:
    lab.uncorrectable(NVME, r.Uncorrectable.MALFORMED_TLP)
    lab.put(NVME, r.UNCORRECTABLE_MASK, r.Uncorrectable.MALFORMED_TLP, AER)
    lab.uncorrectable(NVME_1, r.Uncorrectable.MALFORMED_TLP)
    lab.latch(ROOT, FATAL, fatal=NVME_1)
    await lab.look()
    assert [each.functions for each in lab.recovers] == [(NVME_1,)]


async def test_more_than_five_sources_are_all_found(lab: Lab) -> None:
    """The kernel looks at five devices at most."""
    sources = [SWITCH_ROOT, UPSTREAM, DOWN_0, DOWN_1, GPU_0, GPU_1]
    for address in sources:
        lab.uncorrectable(address, r.Uncorrectable.MALFORMED_TLP)
    lab.latch(SWITCH_ROOT, FATAL | r.RootErrorStatus.MULTIPLE_UNCORRECTABLE, fatal=GPU_0)
    await lab.look(port=SWITCH_ROOT)
    assert sorted(fact.data["function"] for fact in lab.said(What.ERROR_FATAL)) == [str(each) for each in sources]
    assert sorted(function for each in lab.recovers for function in each.functions) == sources


async def test_an_error_of_an_integrated_endpoint_is_recovered_at_itself(lab: Lab) -> None:
    lab.uncorrectable(INTEGRATED_3, r.Uncorrectable.MALFORMED_TLP)
    lab.latch(COLLECTOR, FATAL, fatal=INTEGRATED_3)
    await lab.look(port=COLLECTOR)
    [request] = lab.recovers
    assert (request.port, request.functions) == (INTEGRATED_3, (INTEGRATED_3,))
    [fact] = lab.said(What.ERROR_FATAL)
    assert (fact.port, fact.data["function"]) == (INTEGRATED_3, str(INTEGRATED_3))
    assert lab.root_status(COLLECTOR) == 0


async def test_integrated_endpoints_have_correctable_errors_of_their_own(lab: Lab) -> None:
    lab.set_bits(INTEGRATED, r.CORRECTABLE_STATUS, r.Correctable.INTERNAL)
    lab.latch(COLLECTOR, CORRECTABLE, correctable=INTEGRATED)
    await lab.look(port=COLLECTOR)
    [fact] = lab.said(What.ERROR_CORRECTABLE)
    assert (fact.port, fact.data["names"]) == (INTEGRATED, ["CorrIntErr"])
    assert lab.get(INTEGRATED, r.CORRECTABLE_STATUS, AER) == 0
    assert lab.root_status(COLLECTOR) == 0


async def test_p9_an_integrated_endpoint_that_does_not_answer_is_recovered_when_it_is_named(lab: Lab) -> None:
    lab.silent.add(INTEGRATED)
    lab.latch(COLLECTOR, FATAL, fatal=INTEGRATED)
    await lab.look(port=COLLECTOR)
    assert [each.port for each in lab.recovers] == [INTEGRATED]


def test_root_ports_and_event_collectors_have_an_actor_each() -> None:
    assert tuple(wanted(TOPOLOGY)) == (ROOT, SWITCH_ROOT, COLLECTOR)
