"""Status that is older than the service, or than the last look at its function: told, cleared and never blamed."""

from __future__ import annotations

from shared.pcie import registers as r
from shared.protocol.facts import What
from shared.runtime import Wake
from tests.port_bench import AER, EXPRESS, NVME, NVME_1, ROOT, lease
from tests.unit.aer.aer_lab import ENDED, FATAL, START, Lab


async def test_p6_a_restart_in_the_middle_of_a_recovery_takes_nothing_for_stale(lab: Lab) -> None:
    lab.uncorrectable(NVME, r.Uncorrectable.INTERNAL)
    lab.leases = (lease(ROOT),)
    await lab.look(START)
    assert not lab.facts
    lab.leases = ()
    await lab.look(ENDED)
    assert [each.functions for each in lab.recovers] == [(NVME,)], "what the recovery left is a new cause"


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
