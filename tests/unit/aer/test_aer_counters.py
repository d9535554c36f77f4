"""Counting is unlimited; telling is not, and what was held back is owed."""

from __future__ import annotations

from services.aer._counters import BURST, INTERVAL_S, Counters, Limit
from shared.pcie.errors import Severity, decode_correctable
from shared.pcie.registers import Correctable
from tests.port_bench import NVME, NVME_1


def test_counters_count_every_error_by_function_and_kind() -> None:
    counters = Counters()
    report = decode_correctable(Correctable.BAD_TLP | Correctable.RECEIVER_ERROR, 0)
    assert report is not None
    for _ in range(3):
        counters.count(NVME, report)
    assert counters.totals(NVME, Severity.CORRECTABLE) == {"RxErr": 3, "BadTLP": 3}
    assert counters.totals(NVME_1, Severity.CORRECTABLE) == {}
    assert counters.statistics().errors == {str(NVME): {Severity.CORRECTABLE: {"RxErr": 3, "BadTLP": 3}}}


def test_a_burst_is_told_and_the_rest_is_owed_until_the_interval_is_over() -> None:
    limit = Limit()
    assert all(limit.admit(NVME, now=0.1 * n) for n in range(BURST))
    assert not limit.admit(NVME, now=2.0)
    assert not limit.admit(NVME, now=3.0)
    assert limit.admit(NVME_1, now=3.0), "each function has a limit of its own"
    assert limit.next_due() == INTERVAL_S
    assert limit.due(INTERVAL_S - 0.01) == ()
    assert limit.due(INTERVAL_S) == (NVME,)
    assert limit.admit(NVME, INTERVAL_S)
    assert limit.owed(NVME) == 2
    assert limit.next_due() is None
