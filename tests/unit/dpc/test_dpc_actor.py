"""The actor of a port with containment: what it says, what it asks for, and that it writes nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
import pytest

from services.dpc._actor import ContainmentActor
from shared.pcie import Address
from shared.pcie import registers as r
from shared.protocol import Reason, Refused
from shared.protocol.fabric import Quarantine, RetiredLease
from shared.protocol.facts import What
from shared.protocol.requests import Accepted, Cause
from shared.runtime import NobodyListens, Wake
from tests.port_bench import AER, DOWN_0, DPC, EXPRESS, GPU_0, ROOT, SWITCH_ROOT, Bench, lease

START, INTERRUPT, ENDED = (frozenset({wake}) for wake in (Wake.START, Wake.INTERRUPT, Wake.ENDED))
TRIGGERED = r.DpcStatus.TRIGGER | r.DpcStatus.INTERRUPT


class Lab(Bench):
    """A bench with three actors."""

    def __init__(self) -> None:
        super().__init__()
        self.actors = {port: ContainmentActor(port, self.ports) for port in (ROOT, SWITCH_ROOT, DOWN_0)}
        self.actor = self.actors[DOWN_0]

    def trigger(self, status: int = TRIGGERED) -> None:
        self.put(DOWN_0, r.DPC_STATUS, 0x1F00 | status, DPC)

    def retire(self, lease_id: str) -> None:
        self.leases = ()
        self.retired = (RetiredLease(lease=lease(DOWN_0, lease_id).ref), *self.retired)


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    lab = Lab()
    yield lab
    for actor in lab.actors.values():
        actor.rest()
    assert not lab.acknowledged, "dpc writes nothing"


async def test_p9_a_port_that_does_not_answer_is_left_alone(lab: Lab) -> None:
    lab.trigger()
    lab.silent.add(DOWN_0)
    await lab.actor.look(START)
    assert not lab.facts
    assert not lab.recovers


async def test_p9_a_forged_interrupt_changes_nothing(lab: Lab) -> None:
    await lab.actor.look(INTERRUPT)
    assert not lab.facts
    assert not lab.recovers


async def test_an_interrupt_without_a_trigger_is_said_once(lab: Lab) -> None:
    lab.trigger(r.DpcStatus.INTERRUPT)
    await lab.actor.look(INTERRUPT)
    await lab.actor.look(INTERRUPT)
    assert len(lab.said(What.CONTAINMENT_IGNORED)) == 1
    assert not lab.recovers


async def test_a_containment_is_published_with_its_errors_and_recovered(lab: Lab) -> None:
    lab.trigger()
    lab.set_bits(DOWN_0, r.UNCORRECTABLE_STATUS, r.Uncorrectable.DATA_LINK_PROTOCOL)
    await lab.actor.look(INTERRUPT)
    [entered] = lab.said(What.CONTAINMENT_ENTERED)
    assert entered.port == DOWN_0
    assert entered.data["reason"] == "uncorrectable"
    assert entered.data["text"] == ["DPC: containment event, status:0x1f09: unmasked uncorrectable error detected"]
    [error] = lab.said(What.ERROR_FATAL)
    assert (error.data["names"], error.data["layer"]) == (["DLP"], "Data Link Layer")
    [request] = lab.recovers
    assert (request.port, request.cause, request.functions) == (DOWN_0, Cause.DPC, (DOWN_0,))


async def test_a_message_that_triggered_names_its_sender(lab: Lab) -> None:
    lab.trigger(TRIGGERED | r.DpcReason.ERR_FATAL << r.DPC_REASON_SHIFT)
    lab.put(DOWN_0, r.DPC_SOURCE, GPU_0.requester_id, DPC)
    await lab.actor.look(INTERRUPT)
    assert lab.said(What.CONTAINMENT_ENTERED)[0].data["source"] == str(GPU_0)
    assert lab.recovers[0].functions == (GPU_0,)
    assert not lab.said(What.ERROR_FATAL), "the port's own status is not what triggered"


async def test_an_rp_pio_error_is_published_as_the_kernel_prints_it(lab: Lab) -> None:
    lab.put(ROOT, r.DPC_STATUS, 0x1009 | 3 << r.DPC_REASON_SHIFT, DPC)
    lab.put(ROOT, r.RP_PIO_STATUS, 1 << 16, DPC)
    await lab.actors[ROOT].look(INTERRUPT)
    [entered] = lab.said(What.CONTAINMENT_ENTERED)
    assert (entered.data["reason"], entered.data["rp_pio_status"]) == ("rp_pio", 0x10000)
    assert "DPC: [16] Memory Request received UR Completion (First)" in entered.data["text"]


async def test_a_refused_recovery_is_asked_for_again_and_published_once(lab: Lab) -> None:
    lab.trigger()
    lab.replies = [NobodyListens(), Refused(reason=Reason.HELD, message="held")]
    for _ in range(3):
        await lab.actor.look(frozenset({Wake.AGAIN}))
    assert len(lab.recovers) == 3
    assert len(lab.said(What.CONTAINMENT_ENTERED)) == 1


async def test_p6_a_recovery_under_way_is_not_asked_for_again(lab: Lab) -> None:
    lab.trigger()
    await lab.actor.look(INTERRUPT)
    lab.leases = (lease(DOWN_0),)
    for wakes in (INTERRUPT, ENDED, frozenset({Wake.POLL})):
        await lab.actor.look(wakes)
    assert len(lab.recovers) == 1


async def test_a_port_still_contained_after_its_recovery_is_a_new_episode(lab: Lab) -> None:
    lab.trigger()
    await lab.actor.look(INTERRUPT)
    lab.retire("lease-1")
    lab.replies = [Accepted(lease="lease-2")]
    await lab.actor.look(ENDED)
    assert len(lab.recovers) == 2
    assert len(lab.said(What.CONTAINMENT_ENTERED)) == 2


async def test_an_accepted_recovery_that_the_fabric_does_not_know_is_asked_for_again(lab: Lab) -> None:
    """A coordinator that died between its answer and its open has forgotten."""
    lab.trigger()
    await lab.actor.look(INTERRUPT)
    await lab.actor.look(INTERRUPT)
    assert len(lab.recovers) == 1, "an interrupt alone does not say that it was forgotten"
    await lab.actor.look(frozenset({Wake.POLL}))
    assert len(lab.recovers) == 2
    assert len(lab.said(What.CONTAINMENT_ENTERED)) == 1


async def test_a_second_containment_after_the_first_is_told_again(lab: Lab) -> None:
    for _ in range(2):
        lab.trigger()
        await lab.actor.look(INTERRUPT)
        lab.put(DOWN_0, r.DPC_STATUS, 0, DPC)
        await lab.actor.look(ENDED)
    assert len(lab.said(What.CONTAINMENT_ENTERED)) == 2
    assert len(lab.recovers) == 2


async def test_p6_a_port_below_a_contained_one_waits(lab: Lab) -> None:
    lab.trigger()
    lab.put(SWITCH_ROOT, r.DPC_STATUS, TRIGGERED, DPC)
    await lab.actor.look(INTERRUPT)
    assert not lab.recovers
    lab.put(SWITCH_ROOT, r.DPC_STATUS, 0, DPC)
    await lab.actor.look(ENDED)
    assert [request.port for request in lab.recovers] == [DOWN_0]


async def test_scenario_18_surprise_down_alone_decides_nothing(lab: Lab) -> None:
    lab.trigger()
    lab.set_bits(DOWN_0, r.UNCORRECTABLE_STATUS, r.Uncorrectable.SURPRISE_DOWN)
    lab.put(DOWN_0, r.SLOT_STATUS, 0, EXPRESS)
    lab.put(DOWN_0, r.LINK_STATUS, 0, EXPRESS)
    await lab.actor.look(INTERRUPT)
    assert [request.port for request in lab.recovers] == [DOWN_0]
    assert lab.get(DOWN_0, r.UNCORRECTABLE_STATUS, AER) == r.Uncorrectable.SURPRISE_DOWN


async def test_a_refusal_by_policy_is_published_once(lab: Lab) -> None:
    lab.trigger()
    lab.replies = [Refused(reason=Reason.POLICY, message="the port is in quarantine")] * 2
    await lab.actor.look(INTERRUPT)
    await lab.actor.look(frozenset({Wake.POLL}))
    assert [fact.data["why"] for fact in lab.said(What.CONTAINMENT_IGNORED)] == ["the port is in quarantine"]


# --- Quarantine ---


POLL = frozenset({Wake.POLL})


@pytest.mark.parametrize("held", [DOWN_0, SWITCH_ROOT])
async def test_a_port_in_quarantine_is_not_asked_for_and_said_once(lab: Lab, held: Address) -> None:
    lab.trigger()
    lab.quarantines = (Quarantine(port=held, lease="r-1", why="storm"),)
    for wakes in (START, INTERRUPT, POLL, POLL):
        await lab.actor.look(wakes)
    assert not lab.recovers
    assert [fact.data["reason"] for fact in lab.said(What.CONTAINMENT_IGNORED)] == ["quarantined"]
    lab.quarantines = ()
    await lab.actor.look(ENDED)
    assert [request.port for request in lab.recovers] == [DOWN_0], "released, and contained still"


async def test_a_refusal_for_quarantine_is_said_once_and_not_retried_by_itself(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned: list[float] = []
    monkeypatch.setattr(lab.actor, "again", planned.append)
    lab.trigger()
    lab.replies = [Refused(reason=Reason.QUARANTINED, message="holdfast quarantine release 0000:07:00.0")] * 2
    await lab.actor.look(INTERRUPT)
    await lab.actor.look(POLL)
    assert [fact.data["reason"] for fact in lab.said(What.CONTAINMENT_IGNORED)] == ["quarantined"]
    assert not planned


async def test_a_lost_interrupt_is_made_up_for_by_the_poll(lab: Lab) -> None:
    await lab.actor.look(START)
    lab.trigger()
    await lab.actor.look(POLL)
    assert [(request.port, request.cause) for request in lab.recovers] == [(DOWN_0, Cause.DPC)]
    assert len(lab.said(What.CONTAINMENT_ENTERED)) == 1


# --- Firmware first ---


@pytest.fixture
def kept(lab: Lab) -> Lab:
    """Give a bench whose firmware keeps DPC."""
    lab.ports.topology = msgspec.structs.replace(lab.topology, firmware_first=True)
    return lab


async def test_on_a_firmware_first_host_nothing_is_read_outside_an_edr_event(kept: Lab) -> None:
    kept.trigger()
    kept.edr = (SWITCH_ROOT,)
    for wakes in (START, INTERRUPT, POLL):
        await kept.actor.look(wakes)
    assert not kept.reads
    assert not kept.recovers
    assert not kept.facts


async def test_an_edr_event_is_recovered_as_such_and_asked_for_once(kept: Lab) -> None:
    kept.trigger()
    kept.edr = (DOWN_0,)
    await kept.actor.look(INTERRUPT)
    kept.leases = (lease(DOWN_0),)
    await kept.actor.look(POLL)
    assert [(request.port, request.cause) for request in kept.recovers] == [(DOWN_0, Cause.EDR)]
    assert [fact.cause for fact in kept.said(What.CONTAINMENT_ENTERED)] == ["edr"]
    assert {operation.function for operation in kept.reads} == {DOWN_0}
    kept.leases, kept.edr = (), ()
    await kept.actor.look(ENDED)
    kept.edr = (DOWN_0,)
    kept.replies = [Accepted(lease="lease-2")]
    await kept.actor.look(INTERRUPT)
    assert len(kept.recovers) == 2, "another event is another episode"


async def test_an_edr_event_is_found_at_the_start_and_by_the_poll(kept: Lab) -> None:
    kept.edr = (DOWN_0, ROOT)
    await kept.actor.look(START)
    await kept.actors[ROOT].look(POLL)
    assert [(request.port, request.cause) for request in kept.recovers] == [(DOWN_0, Cause.EDR), (ROOT, Cause.EDR)]


async def test_an_edr_event_with_nothing_to_recover_is_asked_for_all_the_same(kept: Lab) -> None:
    """The recovery is what has the firmware answered; it is not told of a containment that has long been released."""
    kept.trigger(int(r.DpcReason.ERR_FATAL) << r.DPC_REASON_SHIFT)
    kept.put(DOWN_0, r.DPC_SOURCE, GPU_0.requester_id, DPC)
    kept.edr = (DOWN_0,)
    await kept.actor.look(INTERRUPT)
    (request,) = kept.recovers
    assert (request.cause, request.functions, request.evidence["reason"]) == (Cause.EDR, (DOWN_0,), "not_contained")
    assert not kept.said(What.CONTAINMENT_ENTERED), "nothing was contained"


async def test_p9_an_edr_event_of_a_port_that_does_not_answer_is_asked_for_all_the_same(kept: Lab) -> None:
    kept.edr = (DOWN_0,)
    kept.silent.add(DOWN_0)
    await kept.actor.look(INTERRUPT)
    assert [request.cause for request in kept.recovers] == [Cause.EDR]
    assert not kept.facts


async def test_p6_a_port_handed_over_below_a_contained_one_that_is_too_waits(kept: Lab) -> None:
    kept.trigger()
    kept.put(SWITCH_ROOT, r.DPC_STATUS, TRIGGERED, DPC)
    kept.edr = (DOWN_0, SWITCH_ROOT)
    await kept.actor.look(INTERRUPT)
    assert not kept.recovers
    kept.edr = (DOWN_0,)
    await kept.actor.look(ENDED)
    assert [request.port for request in kept.recovers] == [DOWN_0]
