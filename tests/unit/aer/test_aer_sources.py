"""The decision table walked whole, and whom a latch is about."""

from __future__ import annotations

from itertools import product

import msgspec
import pytest

from services.aer._sources import (
    BECAUSE,
    BOTH,
    TABLE,
    Signs,
    Verdict,
    cases,
    find_new,
    find_signalled,
    find_stale,
    first_severity,
    judge,
    recovery_port,
    signalled,
)
from services.aer._survey import RootLatch, Survey, decode_survey, reporters, survey_reads
from shared.pcie import NO_ANSWER, Address, ErrorRegisters, Topology
from shared.pcie.errors import Severity
from shared.pcie.registers import DeviceType, Uncorrectable
from shared.pcie.registers import RootErrorStatus as Latch
from tests.port_bench import COLLECTOR, GPU_0, INTEGRATED, INTEGRATED_3, NVME, NVME_1, ROOT, SWITCH_ROOT, TOPOLOGY

FATAL_SEVERITY = 0x0046_2030
ALL = [Signs(*cells) for cells in product((False, True), repeat=len(Signs.__struct_fields__))]
OTHER = frozenset(function.address for function in TOPOLOGY)


def survey(status: Latch, named: Address | None = None, **bits: int) -> Survey:
    """Return a survey in which `nvme`, `nvme_1` and `root` have these uncorrectable bits."""
    addresses = {"nvme": NVME, "nvme_1": NVME_1, "root": ROOT}
    errors = {
        addresses[name]: ErrorRegisters(
            function=addresses[name], uncorrectable_status=status_bits, uncorrectable_severity=FATAL_SEVERITY
        )
        for name, status_bits in bits.items()
    }
    source = 0 if named is None else named.requester_id << 16
    return Survey(latch=RootLatch(status=status, source=source), answering=OTHER, errors=errors, ports={})


@pytest.mark.parametrize("each", ALL, ids=repr)
def test_exactly_one_row_matches_every_input(each: Signs) -> None:
    verdict = judge(each)
    assert BECAUSE[verdict]
    assert (verdict is Verdict.QUARANTINED) == each.quarantined
    if not each.quarantined:
        assert (verdict is Verdict.CONTAINED) == each.contained, "P6: containment is DPC's, whatever else is true"
    if verdict is Verdict.GONE:
        assert each.gone, "never decided by Surprise Down alone"
        assert each.surprise
    if verdict is Verdict.PROVOKED:
        assert each.covered
        assert each.provoked


def test_every_row_is_reached() -> None:
    assert {judge(each) for each in ALL} == {row[-1] for row in TABLE} == set(Verdict)


FATAL, NONFATAL = (
    Latch.UNCORRECTABLE_RECEIVED | Latch.FATAL_RECEIVED,
    Latch.UNCORRECTABLE_RECEIVED | Latch.NONFATAL_RECEIVED,
)
FIRST = Latch.FIRST_FATAL


@pytest.mark.parametrize(
    ("status", "severities", "first"),
    [
        (Latch(0), frozenset(), Severity.FATAL),
        (Latch.CORRECTABLE_RECEIVED, frozenset(), Severity.FATAL),
        (FATAL, {Severity.FATAL}, Severity.FATAL),
        (FATAL | FIRST, {Severity.FATAL}, Severity.FATAL),
        (NONFATAL, {Severity.NONFATAL}, Severity.NONFATAL),
        (FATAL | NONFATAL, BOTH, Severity.NONFATAL),
        (FATAL | NONFATAL | FIRST, BOTH, Severity.FATAL),
        (Latch.UNCORRECTABLE_RECEIVED, BOTH, Severity.NONFATAL),
        (Latch.MULTIPLE_UNCORRECTABLE, BOTH, Severity.NONFATAL),
    ],
)
def test_the_latch_tells_which_severities_were_received(
    status: Latch, severities: frozenset[Severity], first: Severity
) -> None:
    latch = RootLatch(status=status, source=0)
    assert signalled(latch) == severities
    assert first_severity(latch) is first


def found(
    seen: Survey, known: dict[Address, int] | None = None, settled: frozenset[Address] = frozenset()
) -> list[Address]:
    return [source.function for source in find_signalled(TOPOLOGY, ROOT, seen, known or {}, settled)]


def test_new_bits_are_found_wherever_they_are() -> None:
    seen = survey(FATAL, NVME, nvme=Uncorrectable.MALFORMED_TLP, nvme_1=Uncorrectable.MALFORMED_TLP)
    assert found(seen) == [NVME, NVME_1]


def test_only_the_severities_received_are_blamed() -> None:
    seen = survey(NONFATAL, NVME, nvme=Uncorrectable.COMPLETER_ABORT, nvme_1=Uncorrectable.MALFORMED_TLP)
    assert found(seen) == [NVME]


def test_known_bits_are_not_blamed_for_another_function_s_message() -> None:
    seen = survey(FATAL, NVME, nvme=Uncorrectable.MALFORMED_TLP, nvme_1=Uncorrectable.MALFORMED_TLP)
    assert found(seen, {NVME_1: Uncorrectable.MALFORMED_TLP}) == [NVME]


def test_a_function_that_signals_its_known_bits_again_is_blamed_again() -> None:
    seen = survey(FATAL, NVME, nvme=Uncorrectable.MALFORMED_TLP)
    assert found(seen, {NVME: Uncorrectable.MALFORMED_TLP}) == [NVME]


def test_without_new_bits_or_a_name_all_that_fit_are_blamed() -> None:
    seen = survey(FATAL, None, nvme=Uncorrectable.MALFORMED_TLP, nvme_1=Uncorrectable.MALFORMED_TLP)
    assert found(seen, {NVME: 0xFFFF_FFFF, NVME_1: 0xFFFF_FFFF}) == [NVME, NVME_1]


def test_what_this_latch_was_settled_for_is_not_blamed_again() -> None:
    seen = survey(FATAL, NVME, nvme=Uncorrectable.MALFORMED_TLP, nvme_1=Uncorrectable.MALFORMED_TLP)
    assert found(seen, {NVME: Uncorrectable.MALFORMED_TLP}, frozenset({NVME})) == [NVME_1]


def test_a_virtual_function_is_blamed_on_the_port_of_its_bus() -> None:
    virtual = Address.parse("0000:01:1f.7")
    [source] = find_signalled(TOPOLOGY, ROOT, survey(FATAL, virtual), {}, frozenset())
    assert (source.function, source.port, source.reports) == (virtual, ROOT, ())


def test_a_sender_of_another_root_port_is_not_believed() -> None:
    assert found(survey(FATAL, GPU_0)) == []


def test_a_port_that_reports_itself_is_recovered_itself() -> None:
    [case] = cases(find_new(TOPOLOGY, survey(FATAL, root=Uncorrectable.DATA_LINK_PROTOCOL), BOTH, {}))
    assert (case.port, case.severity) == (ROOT, Severity.FATAL)


def test_fatal_beats_nonfatal_in_one_case() -> None:
    seen = survey(FATAL | NONFATAL, nvme=Uncorrectable.COMPLETER_ABORT, nvme_1=Uncorrectable.MALFORMED_TLP)
    [case] = cases(find_new(TOPOLOGY, seen, BOTH, {}))
    assert case.severity is Severity.FATAL
    assert len(case.sources) == 2


def test_p9_a_survey_of_a_silent_host_says_nothing() -> None:
    root = TOPOLOGY.get(SWITCH_ROOT)
    reads = survey_reads(TOPOLOGY, root)
    assert decode_survey(TOPOLOGY, root, [NO_ANSWER] * len(reads)) is None


def test_p9_functions_that_do_not_answer_have_no_errors() -> None:
    root = TOPOLOGY.get(SWITCH_ROOT)
    values = [0 if read.function == SWITCH_ROOT else NO_ANSWER for read in survey_reads(TOPOLOGY, root)]
    seen = decode_survey(TOPOLOGY, root, values)
    assert seen is not None
    assert set(seen.errors) == set(seen.answering) == {SWITCH_ROOT}
    assert not any(state.contained for state in seen.ports.values())


# --- Stale status ---


MALFORMED, ABORT = Uncorrectable.MALFORMED_TLP, Uncorrectable.COMPLETER_ABORT  # fatal, and not
BOTH_FRESH = frozenset({NVME, NVME_1})


def stale(seen: Survey, fresh: frozenset[Address] = BOTH_FRESH) -> list[Address]:
    return [source.function for source in find_stale(TOPOLOGY, ROOT, seen, fresh, {})]


def test_scenario_31_what_stands_without_a_message_is_stale_where_it_is_looked_at_first() -> None:
    seen = survey(Latch(0), nvme=MALFORMED, nvme_1=ABORT)
    assert stale(seen) == [NVME, NVME_1]
    assert stale(seen, frozenset({NVME_1})) == [NVME_1]
    assert stale(seen, frozenset()) == []


def test_scenario_31_one_message_is_about_one_function_and_the_rest_is_stale() -> None:
    assert stale(survey(FATAL, NVME, nvme=MALFORMED, nvme_1=MALFORMED)) == [NVME_1]


@pytest.mark.parametrize(
    ("status", "named"),
    [
        (FATAL | Latch.MULTIPLE_UNCORRECTABLE, NVME),  # another message came, from whomever
        (FATAL, GPU_0),  # from nobody here
        (FATAL, None),
    ],
)
def test_what_a_message_may_be_about_is_not_stale(status: Latch, named: Address | None) -> None:
    assert stale(survey(status, named, nvme=MALFORMED, nvme_1=MALFORMED)) == []
    assert stale(survey(status, named, nvme=MALFORMED, nvme_1=ABORT)) == [NVME_1], "of another severity"


def test_a_message_of_a_function_that_tells_nothing_may_be_about_any() -> None:
    seen = msgspec.structs.replace(survey(FATAL, NVME, nvme_1=MALFORMED), answering=OTHER - {NVME})
    assert found(seen) == [NVME, NVME_1]
    assert stale(seen) == []


@pytest.mark.parametrize(("kind", "blamed"), [("PCIE_TO_PCI_BRIDGE", [NVME]), ("ENDPOINT", [])])
def test_a_bridge_is_blamed_for_what_asserts_serr_behind_it_although_it_has_no_status_itself(
    kind: str, blamed: list[Address]
) -> None:
    """A conventional device has no error registers: nothing else would tell of its fault than the message."""
    bridge = msgspec.structs.replace(TOPOLOGY.get(NVME), kind=DeviceType[kind])
    topology = Topology(tuple(bridge if each.address == NVME else each for each in TOPOLOGY))
    for status, severity in ((FATAL, Severity.FATAL), (NONFATAL, Severity.NONFATAL)):
        sources = find_signalled(topology, ROOT, survey(status, NVME, nvme=0), {}, frozenset())
        assert [source.function for source in sources] == blamed
        assert {source.severity for source in sources} <= {severity}
        assert {source.port for source in sources} <= {ROOT}


# --- Event collectors ---


def test_a_collector_receives_what_the_integrated_endpoints_of_its_devices_send() -> None:
    assert [each.address for each in reporters(TOPOLOGY, COLLECTOR)] == [COLLECTOR, INTEGRATED, INTEGRATED_3]
    assert [each.address for each in reporters(TOPOLOGY, ROOT)] == [ROOT, NVME, NVME_1]


def test_what_is_integrated_is_recovered_itself() -> None:
    seen = survey(FATAL)
    assert recovery_port(TOPOLOGY, seen, INTEGRATED_3) == INTEGRATED_3
    assert recovery_port(TOPOLOGY, seen, Address.parse("0000:00:1f.7")) is None
