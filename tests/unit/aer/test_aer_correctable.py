"""Correctable and advisory errors: counted without a limit, told with one, and cleared; nobody recovers from them."""

from __future__ import annotations

import pytest

from services.aer._counters import BURST
from shared.pcie import registers as r
from shared.pcie.errors import Severity
from shared.protocol.facts import What
from tests.port_bench import AER, EXPRESS, NVME, NVME_1, ROOT
from tests.unit.aer.aer_lab import CORRECTABLE, FATAL, NONFATAL, Lab


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
