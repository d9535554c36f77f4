"""Counting is unlimited; telling is not, and what was held back is owed."""

from __future__ import annotations

from services.aer._correctable import Correctables
from services.aer._counters import BURST, INTERVAL_S, Counters, Limit
from services.aer._survey import RootLatch, Survey
from shared.pcie import ErrorRegisters
from shared.pcie.errors import Severity, decode_correctable
from shared.pcie.registers import Correctable, RootErrorStatus
from shared.protocol.facts import What
from tests.port_bench import NVME, NVME_1, ROOT, TOPOLOGY, Bench


def test_counters_count_every_error_by_function_and_kind() -> None:
    counters = Counters()
    report = decode_correctable(Correctable.BAD_TLP | Correctable.RECEIVER_ERROR, 0)
    assert report is not None
    for _ in range(3):
        counters.count(NVME, report)
    assert counters.totals(NVME, Severity.CORRECTABLE) == {"RxErr": 3, "BadTLP": 3}
    assert counters.totals(NVME_1, Severity.CORRECTABLE) == {}


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


FLOOD = 10_000
SPACING_S = 0.01


def flood(bench: Bench, counters: Counters, *, traced: bool) -> Correctables:
    """Have one error after the other found, with their messages; `traced`: a function has the status of it."""
    handling = Correctables(bench.context.facts, ROOT, counters)
    errors = {NVME: ErrorRegisters(function=NVME, correctable_status=Correctable.BAD_DLLP)} if traced else {}
    seen = Survey(
        latch=RootLatch(status=RootErrorStatus.CORRECTABLE_RECEIVED, source=NVME.requester_id),
        answering=frozenset({ROOT, NVME}),
        errors=errors,
        ports={},
    )
    for n in range(FLOOD):
        assert handling.handle(TOPOLOGY, seen, n * SPACING_S), "every message is acknowledged"
    return handling


def test_a_flood_is_counted_to_the_last_error_and_told_ten_times_in_five_seconds() -> None:
    bench, counters = Bench(), Counters()
    handling = flood(bench, counters, traced=True)
    told = len(bench.said(What.ERROR_CORRECTABLE))
    assert told == BURST * FLOOD * SPACING_S / INTERVAL_S
    end = FLOOD * SPACING_S + INTERVAL_S
    assert handling.tell_owed(TOPOLOGY, end) is None
    facts = bench.said(What.ERROR_CORRECTABLE)
    assert len(facts) == told + 1
    assert facts[-1].data["counts"] == {"BadDLLP": FLOOD}
    assert sum(fact.data["held_back"] for fact in facts) + told == FLOOD, "each is told, or held back and owed"
    assert counters.totals(NVME, Severity.CORRECTABLE) == {"BadDLLP": FLOOD}


def test_a_flood_of_messages_that_nobody_has_the_status_of_is_limited_too() -> None:
    bench = Bench()
    flood(bench, Counters(), traced=False)
    told = bench.said(What.ERROR_IGNORED)
    assert len(told) == BURST * FLOOD * SPACING_S / INTERVAL_S
    assert "as of 490 before it that were not told" in told[BURST].data["why"]
