"""What the audit finds in registers, and what it leaves alone."""

from __future__ import annotations

import pytest

from services.console.audit._checks import RULES, Image, Severity, judge, only_headers
from shared.pcie import registers as reg
from tests.unit.console.audit.audit_images import AER, DPC, DRIVE, EXPRESS, PORT, Changes, cut, drive, port

SLOT = (reg.SLOT_CONTROL, EXPRESS)
BUTTON = reg.SlotCapabilities.HOTPLUG_CAPABLE | reg.SlotCapabilities.ATTENTION_BUTTON
EVERYTHING = 0xFFFF_FFFF
DEFINED = reg.UNCORRECTABLE_MASK.rw  # what hardware keeps of a write of all ones


def checks(image: Image, *, live: bool = False) -> dict[str, Severity]:
    return {finding.check: finding.severity for finding in judge(image, live=live)}


def test_a_healthy_port_and_a_healthy_drive_are_clean() -> None:
    assert judge(port()) == ()
    assert judge(drive()) == ()
    assert judge(port(), live=True) == ()


@pytest.mark.parametrize(
    ("changes", "check", "severity"),
    [
        pytest.param({SLOT: 0x1018}, "interrupts_off", Severity.ERROR, id="HPIE off"),
        pytest.param({SLOT: 0x0030}, "masked", Severity.ERROR, id="PDCE and DLLSCE off"),
        pytest.param({SLOT: 0x0038}, "half_masked", Severity.ERROR, id="DLLSCE off"),
        pytest.param({SLOT: 0x1030}, "half_masked", Severity.ERROR, id="PDCE off"),
        pytest.param({(reg.LINK_CONTROL, EXPRESS): 0x0010}, "link_disabled", Severity.ERROR, id="Link Disable"),
        pytest.param({(reg.BRIDGE_CONTROL, 0): 0x0042}, "in_reset", Severity.ERROR, id="Secondary Bus Reset"),
        pytest.param({(reg.DPC_STATUS, DPC): 0x0001}, "contained", Severity.ERROR, id="DPC triggered"),
        pytest.param(
            {(reg.UNCORRECTABLE_MASK, AER): EVERYTHING}, "uncorrectable_masked", Severity.ERROR, id="UE all ones"
        ),
        pytest.param(
            {(reg.UNCORRECTABLE_MASK, AER): DEFINED}, "uncorrectable_masked", Severity.ERROR, id="UE all that is there"
        ),
        pytest.param(
            {(reg.CORRECTABLE_MASK, AER): EVERYTHING}, "correctable_masked", Severity.WARNING, id="CE all ones"
        ),
        pytest.param(
            {(reg.COMMAND, 0): 0x0406, (reg.DEVICE_CONTROL, EXPRESS): 0x0001},
            "fatal_unreported", Severity.WARNING, id="SERR and fatal reporting off",
        ),
        pytest.param({(reg.BRIDGE_CONTROL, 0): 0}, "errors_not_forwarded", Severity.WARNING, id="bridge SERR off"),
    ],
)  # fmt: skip
def test_each_thing_that_is_wrong_is_found_and_nothing_else(changes: Changes, check: str, severity: Severity) -> None:
    (finding,) = judge(port(changes))
    assert (finding.check, finding.severity, finding.function) == (check, severity, str(PORT))
    assert (finding.register, finding.value) == next(
        (register.name, value)
        for (register, _), value in reversed(changes.items())
        if register.name == finding.register
    )
    assert finding.why
    assert "{" not in finding.todo
    assert finding.todo


def test_every_row_says_why_and_no_two_rows_have_one_name() -> None:
    assert len({rule.check for rule in RULES}) == len(RULES)
    assert all(rule.why and rule.linux for rule in RULES)


def test_a_slot_with_a_button_has_pdce_off_by_linux_own_choice_but_not_by_ours() -> None:
    """prior-art/linux-kernel.md 1.1: ABPE if the slot has a button, otherwise PDCE."""
    with_button = port({SLOT: 0x1031}, slot=BUTTON)
    assert judge(with_button) == ()
    assert checks(with_button, live=True) == {"half_masked": Severity.ERROR}
    assert checks(port({SLOT: 0x0031}, slot=BUTTON)) == {"masked": Severity.ERROR}


def test_a_port_without_link_active_reporting_has_no_dllsce_to_miss() -> None:
    assert judge(port({SLOT: 0x0038, (reg.LINK_CAPABILITIES, EXPRESS): 0x43})) == ()


def test_a_slot_without_hotplug_is_nobodys_business() -> None:
    assert judge(port({SLOT: 0}, slot=0)) == ()


def test_without_a_hotplug_driver_interrupts_that_are_off_are_a_note() -> None:
    assert checks(port({SLOT: 0}, driver=False)) == {"interrupts_off_undriven": Severity.NOTE}
    assert checks(port({SLOT: 0}, driver=True)) == {"interrupts_off": Severity.ERROR, "masked": Severity.ERROR}
    assert checks(port({SLOT: 0})) == {"interrupts_off": Severity.ERROR, "masked": Severity.ERROR}


def test_fatal_errors_are_reported_by_either_of_two_enables() -> None:
    assert judge(port({(reg.COMMAND, 0): 0x0406})) == ()
    assert judge(port({(reg.DEVICE_CONTROL, EXPRESS): 0})) == ()
    silent: Changes = {(reg.COMMAND, 0): 0x0406, (reg.DEVICE_CONTROL, EXPRESS): 0}
    assert checks(drive(silent)) == {"fatal_unreported_device": Severity.NOTE}


@pytest.mark.parametrize("mask", [0, 0x2000, 0x0010_8000], ids=hex)
def test_a_mask_of_some_errors_is_somebodys_choice(mask: int) -> None:
    assert judge(port({(reg.UNCORRECTABLE_MASK, AER): mask, (reg.CORRECTABLE_MASK, AER): mask})) == ()


def test_p9_all_ones_are_no_answer_and_no_finding() -> None:
    ones: Changes = {
        (reg.LINK_CONTROL, EXPRESS): 0xFFFF,
        (reg.DPC_STATUS, DPC): 0xFFFF,
        (reg.BRIDGE_CONTROL, 0): 0xFFFF,
    }
    (note,) = judge(port(ones))
    assert (note.check, note.severity) == ("unanswered", Severity.NOTE)
    assert "Link Control" in note.why
    assert "DPC Status" in note.why


def test_p9_a_mask_of_all_ones_among_registers_of_all_ones_is_no_answer_either() -> None:
    aer = {(row, AER): EVERYTHING for row in (reg.UNCORRECTABLE_MASK, reg.UNCORRECTABLE_SEVERITY, reg.CORRECTABLE_MASK)}
    assert checks(port(aer)) == {"unanswered": Severity.NOTE}


@pytest.mark.parametrize("byte", [b"\xff", b"\0"], ids=["ones", "zeros"])
def test_p9_a_function_that_does_not_answer_is_a_note(byte: bytes) -> None:
    assert checks(Image(DRIVE, byte * 4096)) == {"unanswered": Severity.NOTE}


def test_a_virtual_function_reads_ffff_for_its_vendor_and_is_no_dead_one() -> None:
    assert judge(drive({(reg.VENDOR_ID, 0): 0xFFFF, (reg.DEVICE_ID, 0): 0xFFFF})) == ()


def test_of_256_bytes_slot_and_link_are_judged_and_aer_is_said_not_to_be() -> None:
    tampered = cut(port({SLOT: 0x0030, (reg.UNCORRECTABLE_MASK, AER): EVERYTHING}), 256)
    masked, note = judge(tampered)
    assert (masked.check, note.check, note.severity) == ("masked", "cut", Severity.NOTE)
    assert "not enough bytes to judge AER" in note.why
    assert "lspci -xxxx" in note.why


def test_of_64_bytes_only_the_header_is_judged() -> None:
    header = cut(port({(reg.BRIDGE_CONTROL, 0): 0x0042}), 64)
    assert checks(header) == {"in_reset": Severity.ERROR, "cut": Severity.NOTE}
    assert only_headers([header])
    assert not only_headers([header, port()])


@pytest.mark.parametrize("length", [1, 2, 16, 63, 65, 0x102, 0x107, 0x10C, 0x158])
def test_an_image_that_ends_anywhere_is_judged_as_far_as_it_goes(length: int) -> None:
    judge(cut(port({SLOT: 0x0030}), length))
    judge(cut(Image(PORT, bytes(range(256)) * 16), length))


def test_chains_of_garbage_end() -> None:
    judge(Image(PORT, b"\x10" * 4096))
    judge(Image(PORT, bytes(range(256)) * 16))
