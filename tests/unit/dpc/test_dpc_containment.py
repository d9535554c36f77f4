"""What the DPC registers say, walked whole."""

from __future__ import annotations

from itertools import product

import msgspec
import pytest

from services.dpc._containment import (
    TABLE,
    Containment,
    Progress,
    Standing,
    Verdict,
    contained_above,
    decode,
    judge,
    progress,
    quarantined,
    reads,
)
from shared.pcie import NO_ANSWER, Address, error_wording
from shared.pcie.registers import DpcReason, DpcStatus
from shared.protocol.fabric import LeaseList, Quarantine, RetiredLease
from tests.port_bench import DOWN_0, DOWN_1, GPU_0, ROOT, SWITCH_ROOT, TOPOLOGY, lease


def contained(status: int, *, source_id: int = 0, above: bool = False) -> Containment:
    return Containment(port=DOWN_0, status=status, source_id=source_id, rp_pio=None, errors=None, above=above)


@pytest.mark.parametrize(
    ("trigger", "interrupt", "above", "handed_over", "held", "how_far"),
    list(product(*[(False, True)] * 5, Progress)),
)
def test_exactly_one_row_matches_every_input(
    *, trigger: bool, interrupt: bool, above: bool, handed_over: bool, held: bool, how_far: Progress
) -> None:
    status = (DpcStatus.TRIGGER if trigger else 0) | (DpcStatus.INTERRUPT if interrupt else 0)
    standing = Standing(how_far=how_far, quarantined=held, handed_over=handed_over)
    verdict = judge(contained(status, above=above), standing)
    due = trigger or handed_over
    assert (verdict in {Verdict.RECOVER, Verdict.WAIT, Verdict.QUARANTINED}) == due
    if above and due:
        assert verdict is Verdict.WAIT, "P6: the recovery above releases every trigger below it"
    elif due:
        assert (verdict is Verdict.QUARANTINED) == held


def test_every_verdict_is_in_the_table() -> None:
    assert {row[-1] for row in TABLE} == set(Verdict)


@pytest.mark.parametrize(
    ("status", "reason", "source", "text"),
    [
        (0x1F01, DpcReason.UNCORRECTABLE, DOWN_0, "status:0x1f01: unmasked uncorrectable error detected"),
        (0x1F03, DpcReason.ERR_NONFATAL, GPU_0, "status:0x1f03, ERR_NONFATAL received from 0000:08:00.0"),
        (0x1F05, DpcReason.ERR_FATAL, GPU_0, "status:0x1f05, ERR_FATAL received from 0000:08:00.0"),
        (0x1F07, DpcReason.RP_PIO, DOWN_0, "status:0x1f07: RP PIO error detected"),
        (0x1F27, DpcReason.SOFTWARE, DOWN_0, "status:0x1f27: software trigger detected"),
        (0x1F47, None, DOWN_0, "status:0x1f47: reserved error detected"),
    ],
)
def test_every_trigger_reason_is_worded_as_the_kernel_does(
    status: int, reason: DpcReason | None, source: Address, text: str
) -> None:
    seen = contained(status, source_id=GPU_0.requester_id)
    assert (seen.reason, seen.source) == (reason, source)
    assert error_wording.containment(status, seen.source) == f"DPC: containment event, {text}"


def test_rp_pio_errors_are_worded_as_the_kernel_does() -> None:
    assert error_wording.rp_pio(0x00010100, 0x100, 0x10000, 0, 0, 16, (1, 2, 3, 4)) == (
        "DPC: rp_pio_status: 0x00010100, rp_pio_mask: 0x00000100",
        "DPC: RP PIO severity=0x00010000, syserror=0x00000000, exception=0x00000000",
        "DPC: [16] Memory Request received UR Completion (First)",
        "DPC: TLP Header: 0x00000001 0x00000002 0x00000003 0x00000004",
    )


@pytest.mark.parametrize("port", [ROOT, DOWN_0])
def test_p9_a_port_that_does_not_answer_says_nothing(port: Address) -> None:
    function = TOPOLOGY.get(port)
    assert decode(function, [NO_ANSWER] * len(reads(function, contained_above(TOPOLOGY, port)))) is None


def test_rp_pio_is_read_of_root_ports_with_the_extension_alone() -> None:
    root, downstream = TOPOLOGY.get(ROOT), TOPOLOGY.get(DOWN_0)
    values = [0x20, *range(1, len(reads(root, ())))]
    with_extension = decode(root, values)
    assert with_extension is not None
    assert with_extension.rp_pio is not None
    assert with_extension.rp_pio.header == (8, 9, 10, 11)
    without = decode(root, [0, *values[1:]])
    assert without is not None
    assert without.rp_pio is None
    assert without.errors == with_extension.errors
    switch = decode(downstream, [0x20] * len(reads(downstream, contained_above(TOPOLOGY, DOWN_0))))
    assert switch is not None
    assert switch.rp_pio is None


def listed(*open_ids: str, **absorbed_by: str | None) -> LeaseList:
    return LeaseList(
        leases=tuple(lease(DOWN_0, each) for each in open_ids),
        retired=tuple(
            RetiredLease(lease=lease(DOWN_0, name).ref, absorbed_by=heir) for name, heir in absorbed_by.items()
        ),
    )


@pytest.mark.parametrize(
    ("lease_id", "leases", "expected"),
    [
        (None, listed("a"), Progress.NOT_ASKED),
        ("a", listed("a"), Progress.UNDER_WAY),
        ("a", listed("b"), Progress.UNKNOWN),
        ("a", listed(a=None), Progress.ENDED),
        ("a", listed("b", a="b"), Progress.UNDER_WAY),
        ("a", listed(a="b", b=None), Progress.ENDED),
        ("a", listed(a="b"), Progress.UNKNOWN),
        ("a", listed(a="b", b="a"), Progress.UNKNOWN),
    ],
)
def test_a_recovery_is_followed_through_the_leases_that_absorbed_it(
    lease_id: str | None, leases: LeaseList, expected: Progress
) -> None:
    assert progress(lease_id, leases) is expected


@pytest.mark.parametrize(
    ("held", "expected"), [((), False), ((DOWN_0,), True), ((SWITCH_ROOT,), True), ((DOWN_1, ROOT), False)]
)
def test_a_port_is_in_quarantine_with_those_above_it(held: tuple[Address, ...], *, expected: bool) -> None:
    listed = LeaseList(leases=(), quarantines=tuple(Quarantine(port=port, lease="q", why="") for port in held))
    assert quarantined(TOPOLOGY, DOWN_0, listed) is expected


def test_a_firmware_first_host_has_no_other_port_read_than_those_handed_over() -> None:
    kept = msgspec.structs.replace(TOPOLOGY, firmware_first=True)
    assert [port.address for port in contained_above(TOPOLOGY, DOWN_0)] == [SWITCH_ROOT]
    assert contained_above(kept, DOWN_0, (DOWN_0, ROOT)) == ()
    assert [port.address for port in contained_above(kept, DOWN_0, (SWITCH_ROOT,))] == [SWITCH_ROOT]
