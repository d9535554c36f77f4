"""The root port's actor over a bench of config spaces: what it publishes, asks for and clears, and in which order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest

from services.aer.__main__ import wanted
from services.aer._actor import RootPortActor
from services.aer._counters import BURST, Counters
from shared.pcie import Address
from shared.pcie import registers as r
from shared.pcie.errors import Severity
from shared.protocol import Reason, Refused
from shared.protocol.fabric import Quarantine, Reach
from shared.protocol.facts import What
from shared.protocol.requests import Cause
from shared.runtime import NobodyListens, Wake
from tests.port_bench import (
    AER,
    COLLECTOR,
    DOWN_0,
    DOWN_1,
    DPC,
    EXPRESS,
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
    Bench,
    lease,
    without_aer,
)  # fmt: skip

FATAL = r.RootErrorStatus.UNCORRECTABLE_RECEIVED | r.RootErrorStatus.FATAL_RECEIVED | r.RootErrorStatus.FIRST_FATAL
NONFATAL = r.RootErrorStatus.UNCORRECTABLE_RECEIVED | r.RootErrorStatus.NONFATAL_RECEIVED
CORRECTABLE = r.RootErrorStatus.CORRECTABLE_RECEIVED
START, INTERRUPT = frozenset({Wake.START}), frozenset({Wake.INTERRUPT})
ENDED = frozenset({Wake.ENDED})


class Lab(Bench):
    """A bench with the actors of both root ports."""

    def __init__(self) -> None:
        super().__init__()
        self.counters = Counters()
        self.actors = {port: RootPortActor(port, self.ports, self.counters) for port in (ROOT, SWITCH_ROOT, COLLECTOR)}

    async def look(self, wakes: frozenset[Wake] = INTERRUPT, port: Address = ROOT) -> None:
        await self.actors[port].look(wakes)

    def root_status(self, port: Address = ROOT) -> int:
        return self.get(port, r.ROOT_ERROR_STATUS, AER)

    def uncorrectable(self, address: Address, bits: int) -> None:
        self.set_bits(address, r.UNCORRECTABLE_STATUS, bits)


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    lab = Lab()
    yield lab
    for actor in lab.actors.values():
        actor.rest()


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


async def test_every_function_with_a_correctable_error_is_found_counted_and_cleared(lab: Lab) -> None:
    for address in (ROOT, NVME, NVME_1):
        lab.set_bits(address, r.CORRECTABLE_STATUS, r.Correctable.BAD_TLP | r.Correctable.BAD_DLLP)
        lab.set_bits(address, r.DEVICE_STATUS, r.DeviceStatus.CORRECTABLE_DETECTED, EXPRESS)
    lab.put(NVME_1, r.CORRECTABLE_MASK, r.Correctable.BAD_DLLP, AER)
    lab.latch(ROOT, CORRECTABLE | r.RootErrorStatus.MULTIPLE_CORRECTABLE, correctable=NVME)
    await lab.look()
    told = {fact.data["function"]: fact.data for fact in lab.said(What.ERROR_CORRECTABLE)}
    assert sorted(told) == [str(ROOT), str(NVME), str(NVME_1)]
    assert told[str(NVME)]["names"] == ["BadTLP", "BadDLLP"]
    assert told[str(NVME)]["layer"] == "Data Link Layer"
    assert told[str(NVME_1)]["names"] == ["BadTLP"]
    assert lab.root_status() == 0
    assert lab.get(NVME, r.CORRECTABLE_STATUS, AER) == 0
    assert lab.get(NVME, r.DEVICE_STATUS, EXPRESS) == 0
    assert lab.get(NVME_1, r.CORRECTABLE_STATUS, AER) == r.Correctable.BAD_DLLP, "a masked bit was not reported"
    assert lab.counters.totals(NVME, Severity.CORRECTABLE) == {"BadTLP": 1, "BadDLLP": 1}
    assert not lab.recovers


async def test_scenario_11_an_error_between_read_and_clear_is_not_lost(lab: Lab) -> None:
    def meanwhile() -> None:
        """Let another function err after the survey; its message is lost in the write that clears the latch."""
        lab.set_bits(NVME_1, r.CORRECTABLE_STATUS, r.Correctable.RECEIVER_ERROR)

    lab.set_bits(NVME, r.CORRECTABLE_STATUS, r.Correctable.BAD_TLP)
    lab.latch(ROOT, CORRECTABLE, correctable=NVME)
    lab.after_acknowledge = meanwhile
    await lab.look()
    assert [fact.data["function"] for fact in lab.said(What.ERROR_CORRECTABLE)] == [str(NVME), str(NVME_1)]
    assert lab.get(NVME_1, r.CORRECTABLE_STATUS, AER) == 0


@pytest.mark.parametrize(
    "bit", [CORRECTABLE, r.RootErrorStatus.MULTIPLE_CORRECTABLE, FATAL, r.RootErrorStatus.MULTIPLE_UNCORRECTABLE]
)
async def test_scenario_21_any_latched_bit_is_cleared_even_without_a_source(lab: Lab, bit: int) -> None:
    lab.latch(ROOT, bit, correctable=NVME, fatal=NVME)
    await lab.look()
    assert lab.root_status() == 0
    assert len(lab.said(What.ERROR_IGNORED)) == 1
    assert "(no details found" in str(lab.said(What.ERROR_IGNORED)[0].data["text"])


async def test_counters_are_unlimited_and_facts_are_not(lab: Lab) -> None:
    floods = 3 * BURST
    for _ in range(floods):
        lab.set_bits(NVME, r.CORRECTABLE_STATUS, r.Correctable.RECEIVER_ERROR)
        lab.latch(ROOT, CORRECTABLE, correctable=NVME)
        await lab.look()
    assert lab.counters.totals(NVME, Severity.CORRECTABLE) == {"RxErr": floods}
    assert len(lab.said(What.ERROR_CORRECTABLE)) == BURST


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


async def test_p6_what_dpc_contains_is_not_recovered_twice(lab: Lab) -> None:
    lab.set_bits(DOWN_0, r.DPC_STATUS, r.DpcStatus.TRIGGER, DPC)
    lab.silent.add(GPU_0)
    lab.latch(SWITCH_ROOT, FATAL, fatal=GPU_0)
    await lab.look(port=SWITCH_ROOT)
    assert not lab.recovers
    assert lab.root_status(SWITCH_ROOT) == FATAL, "evidence stays until the lease is open"
    lab.leases = (lease(DOWN_0),)
    await lab.look(port=SWITCH_ROOT)
    assert not lab.recovers
    assert lab.root_status(SWITCH_ROOT) == 0
    [fact] = lab.said(What.ERROR_IGNORED)
    assert "contained" in fact.data["why"]


async def test_bits_that_a_reset_provokes_are_ignored_under_its_lease(lab: Lab) -> None:
    lab.uncorrectable(ROOT, r.Uncorrectable.SURPRISE_DOWN | r.Uncorrectable.COMPLETION_TIMEOUT)
    lab.latch(ROOT, FATAL, fatal=ROOT)
    lab.leases = (lease(ROOT),)
    await lab.look()
    assert not lab.recovers
    assert lab.root_status() == 0
    assert [fact.lease for fact in lab.said(What.ERROR_IGNORED)] == ["lease-1"]


async def test_p6_a_restart_in_the_middle_of_a_recovery_takes_nothing_for_stale(lab: Lab) -> None:
    lab.uncorrectable(NVME, r.Uncorrectable.INTERNAL)
    lab.leases = (lease(ROOT),)
    await lab.look(START)
    assert not lab.facts
    lab.leases = ()
    await lab.look(ENDED)
    assert [each.functions for each in lab.recovers] == [(NVME,)], "what the recovery left is a new cause"


async def test_other_bits_under_a_lease_are_a_new_cause(lab: Lab) -> None:
    lab.uncorrectable(ROOT, r.Uncorrectable.SURPRISE_DOWN | r.Uncorrectable.MALFORMED_TLP)
    lab.latch(ROOT, FATAL, fatal=ROOT)
    lab.leases = (lease(ROOT),)
    await lab.look()
    assert [each.port for each in lab.recovers] == [ROOT]


async def test_a_slot_operation_provokes_nothing(lab: Lab) -> None:
    lab.uncorrectable(NVME, r.Uncorrectable.COMPLETION_TIMEOUT)
    lab.latch(ROOT, NONFATAL, fatal=NVME)
    lab.leases = (lease(ROOT, reach=Reach.NOTHING),)
    await lab.look()
    assert [each.cause for each in lab.recovers] == [Cause.AER_NONFATAL]


async def test_scenario_18_a_surprise_removal_is_left_to_hotplug_after_a_grace(lab: Lab) -> None:
    lab.uncorrectable(ROOT, r.Uncorrectable.SURPRISE_DOWN)
    lab.latch(ROOT, FATAL, fatal=ROOT)
    lab.put(ROOT, r.SLOT_STATUS, 0, EXPRESS)
    lab.put(ROOT, r.LINK_STATUS, 0, EXPRESS)
    await lab.look()
    assert lab.root_status() == FATAL, "not believed at once"
    await asyncio.sleep(0.03)
    await lab.look()
    assert lab.root_status() == 0
    assert not lab.recovers
    assert "surprise removal" in lab.said(What.ERROR_IGNORED)[0].data["why"]


async def test_scenario_18_surprise_down_with_the_card_in_place_is_an_error(lab: Lab) -> None:
    lab.uncorrectable(ROOT, r.Uncorrectable.SURPRISE_DOWN)
    lab.latch(ROOT, FATAL, fatal=ROOT)
    lab.put(ROOT, r.LINK_STATUS, 0, EXPRESS)
    await lab.look()
    assert [each.cause for each in lab.recovers] == [Cause.AER_FATAL]


async def test_scenario_31_stale_status_is_published_cleared_and_never_blamed(lab: Lab) -> None:
    for address in (ROOT, NVME):
        lab.uncorrectable(address, r.Uncorrectable.MALFORMED_TLP)
        lab.set_bits(address, r.DEVICE_STATUS, 0xF, EXPRESS)
    await lab.look(START)
    told = lab.said(What.ERROR_IGNORED)
    assert [(fact.data["reason"], fact.data["functions"]) for fact in told] == [
        ("stale", [str(ROOT)]),
        ("stale", [str(NVME)]),
    ]
    for address in (ROOT, NVME):
        assert lab.get(address, r.UNCORRECTABLE_STATUS, AER) == 0, "hotplug would take it for an error that is pending"
        assert lab.get(address, r.DEVICE_STATUS, EXPRESS) == r.DeviceStatus.CORRECTABLE_DETECTED
    lab.uncorrectable(NVME_1, r.Uncorrectable.MALFORMED_TLP)
    lab.latch(ROOT, FATAL, fatal=NVME_1)
    await lab.look()
    await lab.look(ENDED)
    assert [each.functions for each in lab.recovers] == [(NVME_1,)]


async def test_scenario_31_the_first_message_is_not_blamed_on_old_status(lab: Lab) -> None:
    """Both are there at the start: the old one is only cleared when nothing is latched any more."""
    for address in (NVME, NVME_1):
        lab.uncorrectable(address, r.Uncorrectable.MALFORMED_TLP)
    lab.latch(ROOT, FATAL, fatal=NVME_1)
    await lab.look(START)
    assert [each.functions for each in lab.recovers] == [(NVME_1,)]
    assert [fact.data["functions"] for fact in lab.said(What.ERROR_IGNORED)] == [[str(NVME)]]
    assert lab.get(NVME, r.UNCORRECTABLE_STATUS, AER) == 0
    assert lab.get(NVME_1, r.UNCORRECTABLE_STATUS, AER) == r.Uncorrectable.MALFORMED_TLP, "cleared by its recovery"
    cleared = [(function, offset) for function, offset, _ in lab.acknowledged]
    latch, status = (ROOT, AER + r.ROOT_ERROR_STATUS.offset), (NVME, AER + r.UNCORRECTABLE_STATUS.offset)
    assert cleared.index(latch) < cleared.index(status)


async def test_stale_status_that_the_fabric_will_not_have_cleared_now_is_left(lab: Lab) -> None:
    lab.uncorrectable(NVME, r.Uncorrectable.MALFORMED_TLP)
    lab.refuses_acknowledgement = True
    await lab.look(START)
    assert lab.get(NVME, r.UNCORRECTABLE_STATUS, AER) == r.Uncorrectable.MALFORMED_TLP
    lab.refuses_acknowledgement = False
    lab.leases = (lease(ROOT),)
    await lab.look(frozenset({Wake.POLL}))
    assert not lab.acknowledged, "whoever holds the lease reads the same registers"
    lab.leases = ()
    await lab.look(frozenset({Wake.POLL}))
    assert lab.get(NVME, r.UNCORRECTABLE_STATUS, AER) == 0
    assert not lab.recovers
    assert len(lab.said(What.ERROR_IGNORED)) == 1


async def test_a_recovery_that_failed_leaves_no_status_that_is_blamed_later(lab: Lab) -> None:
    """What still hurts (linux-kernel.md, section 6): the next error is blamed on the device that stayed away."""
    await lab.look(START)
    lab.silent.add(NVME)
    await lab.look(ENDED)  # contained, released, failed: the device has not answered
    lab.silent.clear()
    lab.uncorrectable(NVME, r.Uncorrectable.MALFORMED_TLP)  # sticky: it had erred before it went silent
    await lab.look(frozenset({Wake.POLL}))
    assert not lab.recovers
    assert [fact.data["reason"] for fact in lab.said(What.ERROR_IGNORED)] == ["stale"]
    assert lab.get(NVME, r.UNCORRECTABLE_STATUS, AER) == 0


async def test_status_that_a_recovery_was_asked_for_and_could_not_clear_is_cleared_when_the_device_is_back(
    lab: Lab,
) -> None:
    await lab.look(START)
    lab.uncorrectable(NVME, r.Uncorrectable.MALFORMED_TLP)
    lab.latch(ROOT, FATAL, fatal=NVME)
    await lab.look()
    lab.silent.add(NVME)
    lab.leases = (lease(ROOT),)
    await lab.look(ENDED)
    lab.leases = ()
    await lab.look(ENDED)
    lab.silent.clear()
    await lab.look(frozenset({Wake.POLL}))
    assert len(lab.recovers) == 1
    assert lab.get(NVME, r.UNCORRECTABLE_STATUS, AER) == 0


async def test_what_a_function_shows_under_a_lease_is_not_stale(lab: Lab) -> None:
    await lab.look(START)
    lab.silent.add(NVME)
    await lab.look(ENDED)
    lab.silent.clear()
    lab.uncorrectable(NVME, r.Uncorrectable.INTERNAL)
    lab.leases = (lease(ROOT),)
    await lab.look(ENDED)
    assert lab.get(NVME, r.UNCORRECTABLE_STATUS, AER) == r.Uncorrectable.INTERNAL
    assert not lab.facts


async def test_an_error_found_at_the_start_with_its_message_latched_is_recovered(lab: Lab) -> None:
    lab.uncorrectable(NVME, r.Uncorrectable.MALFORMED_TLP)
    lab.latch(ROOT, FATAL, fatal=NVME)
    await lab.look(START)
    assert [each.functions for each in lab.recovers] == [(NVME,)]


async def test_an_advisory_error_is_counted_and_never_recovered_from(lab: Lab) -> None:
    lab.uncorrectable(NVME, r.Uncorrectable.UNSUPPORTED_REQUEST)
    lab.set_bits(NVME, r.CORRECTABLE_STATUS, r.Correctable.ADVISORY_NONFATAL)
    lab.latch(ROOT, CORRECTABLE, correctable=NVME)
    await lab.look()
    assert not lab.recovers
    [fact] = lab.said(What.ERROR_CORRECTABLE)
    assert fact.data["names"] == ["NonFatalErr"]
    assert fact.data["advisory"] == ["UnsupReq"]
    lab.uncorrectable(NVME_1, r.Uncorrectable.COMPLETER_ABORT)
    lab.latch(ROOT, NONFATAL, fatal=NVME_1)
    await lab.look()
    assert [each.functions for each in lab.recovers] == [(NVME_1,)], "nothing is blamed on the advisory error"


async def test_the_same_error_again_is_recovered_again(lab: Lab) -> None:
    for _ in range(2):
        lab.uncorrectable(NVME, r.Uncorrectable.MALFORMED_TLP)
        lab.latch(ROOT, FATAL, fatal=NVME)
        await lab.look()
    assert len(lab.recovers) == 2
    assert len(lab.said(What.ERROR_FATAL)) == 2


async def test_a_fatal_error_left_by_a_recovery_is_a_new_cause(lab: Lab) -> None:
    lab.uncorrectable(NVME, r.Uncorrectable.INTERNAL)
    lab.leases = (lease(ROOT),)
    await lab.look(ENDED)
    assert not lab.recovers, "whoever holds the lease reads the same registers"
    lab.leases = ()
    await lab.look(ENDED)
    assert [each.functions for each in lab.recovers] == [(NVME,)]


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


# --- Both AER and DPC ---


async def test_p6_a_port_that_reports_both_gives_one_recovery_also_if_aer_comes_too_late_to_see_its_lease(
    lab: Lab,
) -> None:
    lab.set_bits(DOWN_0, r.DPC_STATUS, r.DpcStatus.TRIGGER, DPC)
    lab.silent.add(GPU_0)
    lab.latch(SWITCH_ROOT, FATAL, fatal=GPU_0)
    await lab.look(port=SWITCH_ROOT)
    lab.put(DOWN_0, r.DPC_STATUS, 0, DPC)  # released, and the recovery has ended: the device has failed
    await lab.look(ENDED, port=SWITCH_ROOT)
    assert not lab.recovers
    assert lab.root_status(SWITCH_ROOT) == 0
    assert [fact.data["reason"] for fact in lab.said(What.ERROR_IGNORED)] == ["contained"]


async def test_p6_a_port_that_reports_both_and_recovers_leaves_no_message_without_a_trace(lab: Lab) -> None:
    lab.set_bits(DOWN_0, r.DPC_STATUS, r.DpcStatus.TRIGGER, DPC)
    lab.silent.add(GPU_0)
    lab.latch(SWITCH_ROOT, FATAL, fatal=GPU_0)
    await lab.look(port=SWITCH_ROOT)
    lab.put(DOWN_0, r.DPC_STATUS, 0, DPC)
    lab.silent.clear()
    await lab.look(ENDED, port=SWITCH_ROOT)
    assert lab.root_status(SWITCH_ROOT) == 0
    assert [fact.data["reason"] for fact in lab.said(What.ERROR_IGNORED)] == ["contained"]


async def test_a_new_error_after_a_containment_is_recovered_although_its_message_came_in_one_latch(lab: Lab) -> None:
    lab.set_bits(DOWN_0, r.DPC_STATUS, r.DpcStatus.TRIGGER, DPC)
    lab.silent.add(GPU_0)
    lab.latch(SWITCH_ROOT, FATAL, fatal=GPU_0)
    await lab.look(port=SWITCH_ROOT)
    lab.put(DOWN_0, r.DPC_STATUS, 0, DPC)
    lab.silent.clear()
    lab.uncorrectable(GPU_0, r.Uncorrectable.MALFORMED_TLP)
    lab.latch(SWITCH_ROOT, r.RootErrorStatus.MULTIPLE_UNCORRECTABLE)
    await lab.look(ENDED, port=SWITCH_ROOT)
    assert [each.port for each in lab.recovers] == [DOWN_0]


# --- Quarantine ---


@pytest.mark.parametrize("held", [DOWN_0, SWITCH_ROOT])
async def test_a_port_in_quarantine_is_not_asked_for_and_does_not_block_the_others(lab: Lab, held: Address) -> None:
    lab.quarantines = (Quarantine(port=held, lease="r-1", why="storm"),)
    lab.set_bits(held, r.DPC_STATUS, r.DpcStatus.TRIGGER, DPC)
    lab.uncorrectable(DOWN_0, r.Uncorrectable.DATA_LINK_PROTOCOL)
    lab.uncorrectable(GPU_1, r.Uncorrectable.MALFORMED_TLP)
    lab.latch(SWITCH_ROOT, FATAL | r.RootErrorStatus.MULTIPLE_UNCORRECTABLE, fatal=DOWN_0)
    for _ in range(3):
        await lab.look(port=SWITCH_ROOT)
    assert [each.port for each in lab.recovers] == ([DOWN_1] if held == DOWN_0 else [])
    assert {fact.data["reason"] for fact in lab.said(What.ERROR_IGNORED)} == {"quarantined"}
    assert lab.root_status(SWITCH_ROOT) == 0


async def test_a_refusal_for_quarantine_frees_the_latch_and_is_said_as_such(lab: Lab) -> None:
    lab.uncorrectable(NVME, r.Uncorrectable.MALFORMED_TLP)
    lab.latch(ROOT, FATAL, fatal=NVME)
    lab.replies = [Refused(reason=Reason.QUARANTINED, message="holdfast quarantine release 0000:00:01.0")]
    await lab.look()
    await lab.look(ENDED)
    assert [fact.data["reason"] for fact in lab.said(What.ERROR_IGNORED)] == ["quarantined"]
    assert lab.root_status() == 0
    assert len(lab.recovers) == 1


# --- Event collectors ---


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


# --- Firmware first ---


async def test_on_a_firmware_first_host_an_interrupt_is_said_to_be_the_firmwares_once(lab: Lab) -> None:
    lab.ports.topology = msgspec.structs.replace(lab.topology, firmware_first=True)
    lab.uncorrectable(NVME, r.Uncorrectable.MALFORMED_TLP)
    lab.latch(ROOT, FATAL, fatal=NVME)
    for wakes in (START, frozenset({Wake.POLL}), ENDED):
        await lab.look(wakes)
    assert not lab.facts
    assert not lab.reads
    for _ in range(2):
        await lab.look(INTERRUPT)
    [fact] = lab.said(What.ERROR_IGNORED)
    assert (fact.data["reason"], fact.data["severity"], fact.data["functions"]) == ("firmware", "fatal", [str(NVME)])
    assert not lab.recovers
    assert not lab.acknowledged
    lab.put(ROOT, r.ROOT_ERROR_STATUS, 0, AER)
    await lab.look(INTERRUPT)
    lab.latch(ROOT, CORRECTABLE, correctable=NVME_1)
    await lab.look(INTERRUPT)
    assert [fact.data["severity"] for fact in lab.said(What.ERROR_IGNORED)] == ["fatal", "correctable"]
