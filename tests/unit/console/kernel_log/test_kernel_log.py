"""The parser: old wording and new, cut lines, clocks that run backward, and files that are no kernel log."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.console import kernel_log
from services.console.kernel_log import (
    BusRelease,
    Callback,
    Containment,
    Decided,
    Decision,
    Event,
    FirmwareAnswered,
    FirmwareEvent,
    HostLink,
    Hung,
    Latched,
    LinkLost,
    NoCallback,
    PowerFault,
    Report,
    Resetting,
    Retraining,
    RootPortError,
    SlowCommand,
    Unreachable,
)
from shared.pcie import Address
from shared.pcie.errors import Severity
from shared.pcie.registers import DpcReason
from shared.protocol.requests import DriverStep, Vote
from tests.unit.console.logs import DATA, DMESG

PORT = Address.parse("0000:00:01.0")


def read(text: str) -> kernel_log.KernelLog:
    return kernel_log.parse(text, "some.log")


def decisions(log: kernel_log.KernelLog) -> list[tuple[int, Decided]]:
    return [(event.line, event.what) for event in log.events if isinstance(event, Decision)]


def test_a_containment_is_read_with_its_status_source_and_reason() -> None:
    log = kernel_log.load(DATA / "03.txt")

    assert log.events[0] == Containment(
        line=1,
        at=81.012463,
        port=Address.parse("0004:00:00.0"),
        status=0x1F01,
        source=0,
        reason=DpcReason.UNCORRECTABLE,
    )


def test_the_lines_of_a_report_are_joined_and_its_registers_name_the_error() -> None:
    """Line 5 says `[ 0] ERCR`; status 00008000 is bit 15. Registers decide (P9)."""
    report = kernel_log.load(DATA / "03.txt").events[1]

    assert isinstance(report, Report)
    assert (report.line, report.severity, report.layer) == (3, Severity.NONFATAL, "Transaction Layer")
    assert (report.vendor, report.device, report.status, report.mask) == (0x0823, 0x0110, 0x8000, 0x04D40000)
    assert report.names == ("CmpltAbrt",)
    assert report.printed == ("[ 0] ERCR",)
    assert report.header == (0x60008010, 0x010000FF, 0x00001000, 0x9C4C0000)


def test_driver_callbacks_are_read_with_entry_exit_and_vote() -> None:
    log = kernel_log.load(DATA / "03.txt")
    callbacks = [event for event in log.events if isinstance(event, Callback)]

    assert [(c.line, c.entered, c.vote) for c in callbacks] == [
        (7, True, None),
        (15, False, Vote.NEED_RESET),
        (16, True, None),
        (28, False, Vote.NEED_RESET),
    ]
    assert {c.step for c in callbacks} == {DriverStep.ERROR_DETECTED}


def test_what_the_kernel_concluded_is_kept_apart_as_decisions() -> None:
    log = kernel_log.load(DATA / "03.txt")

    assert decisions(log) == [
        (21, Decided.LINK_DOWN),
        (29, Decided.REMOVED),
        (30, Decided.REMOVED),
        (31, Decided.RESET_FAILED),
        (32, Decided.FAILED),
        (33, Decided.REMOVED),
    ]


def test_firmware_first_and_an_ignored_link_change_are_read() -> None:
    log = kernel_log.load(DATA / "01.txt")

    assert [e.reported for e in log.events if isinstance(e, FirmwareEvent)] == [None, Address.parse("0000:a9:10.0")]
    assert (17, Decided.IGNORED) in decisions(log)
    assert (19, Decided.CARD_NOT_PRESENT) in decisions(log)


def test_a_clock_that_runs_backward_is_accepted_and_counted() -> None:
    log = kernel_log.load(DATA / "03.txt")

    assert log.backward == 2
    assert [event.line for event in log.events] == sorted(event.line for event in log.events)


def test_a_log_without_timestamps_is_read() -> None:
    log = kernel_log.load(DMESG / "08.txt")

    assert log.untimed == 12
    assert not log.broken
    assert [type(event) for event in log.events[:3]] == [Containment, Report, Callback]


def test_old_wording_is_read() -> None:
    """Log 18, kernel 3.x: `id=0010(Receiver ID)`, long names, no prefix."""
    log = kernel_log.load(DMESG / "18.txt")

    reports = [event for event in log.events if isinstance(event, Report)]
    assert [(r.severity, r.names) for r in reports] == [
        (Severity.CORRECTABLE, ("Timeout",)),
        (Severity.FATAL, ("SDES",)),
    ]
    assert any(isinstance(event, NoCallback) and event.driver == "nvidia" for event in log.events)


@pytest.mark.parametrize(
    ("line", "reason", "source"),
    [
        ("DPC: containment event, status:0x1f01: unmasked uncorrectable error detected", DpcReason.UNCORRECTABLE, 0),
        (
            "DPC: containment event, status:0x1f05, ERR_FATAL received from 0000:02:00.0",
            DpcReason.ERR_FATAL,
            0x0200,
        ),
        ("DPC: containment event, status:0x1f03 source:0x0208", DpcReason.ERR_NONFATAL, 0x0208),
        ("DPC: containment event, status:0x1f07 source:0x0000", DpcReason.RP_PIO, 0),
        ("DPC: containment event, status:0x1f27: software trigger detected", DpcReason.SOFTWARE, 0),
    ],
)
def test_containments_are_read_in_every_wording(line: str, reason: DpcReason, source: int) -> None:
    (event,) = read(f"[    1.5] pcieport {PORT}: {line}").events

    assert isinstance(event, Containment)
    assert (event.reason, event.source) == (reason, source)


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "[   81.012463] ",
        "[Fri Nov 22 10:20:00 2024] ",
        "<3>[   81.012463] ",
        "kern  :err   : [   81.012463] ",
        "Nov 22 10:20:00 host kernel: ",
        "Nov  2 10:20:00.012463 host kernel: ",
        "2024-11-22T10:20:00+0000 host kernel: [   81.012463] ",
        "2024-11-22T10:20:00,012463+00:00 ",
        "[   81.012463 <    0.000012>] ",
    ],
)
def test_every_usual_prefix_is_accepted(prefix: str) -> None:
    log = read(f"{prefix}pcieport {PORT}: pciehp: Slot(4): Link Down\r\n")

    assert decisions(log) == [(1, Decided.LINK_DOWN)]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("[   81.25] ", "[   85.75] "),
        ("[   81.25 <    0.000012>] ", "[   85.75 <    4.5>] "),
        ("Nov 22 10:20:00.25 host kernel: ", "Nov 22 10:20:04.75 host kernel: "),
        ("2024-11-22T10:20:00.250000+0000 host kernel: ", "2024-11-22T10:20:04.750000+0000 host kernel: "),
        ("2024-11-22T10:20:00,250000+00:00 ", "2024-11-22T10:20:04,750000+00:00 "),
        ("Nov 22 10:20:00 host kernel: [   81.25] ", "Nov 22 10:20:09 host kernel: [   85.75] "),
    ],
)
def test_times_are_read_from_every_stamp_and_the_kernels_own_before_others(first: str, second: str) -> None:
    said = f"pcieport {PORT}: pciehp: Slot(4): Link Down"

    one, other = read(f"{first}{said}\n{second}{said}\n").events

    assert one.at is not None
    assert other.at is not None
    assert other.at - one.at == pytest.approx(4.5)


@pytest.mark.parametrize(
    ("line", "event"),
    [
        (f"pcieport {PORT}: DPC: rp_pio_status: 0x00010000, rp_pio_mask: 0x00000303",
         RootPortError(line=1, port=PORT, status=0x10000, mask=0x303)),
        (f"pcieport {PORT}: pciehp: pending interrupts 0x0108 from Slot Status", Latched(line=1, port=PORT, status=0x108)),
        (f"pcieport {PORT}: pciehp: Slot(4): Power fault", PowerFault(line=1, port=PORT, slot="4")),
        (f"pcieport {PORT}: can't change power state from D3cold to D0 (config space inaccessible)",
         Unreachable(line=1, function=PORT)),
        (f"pcieport {PORT}: pciehp: pcie_do_write_cmd: no response from device",
         Unreachable(line=1, function=PORT, hotplug=True)),
        ("mpt3sas_cm0: _base_wait_for_doorbell_ack: failed due to timeout count(5000), int_status(ffffffff)!",
         Unreachable(line=1, instance="mpt3sas_cm0")),
        ("NVRM: Xid (PCI:0000:00:01): 79, GPU has fallen off the bus.", Unreachable(line=1, function=PORT)),
        (f"pcieport {PORT}: Recovering Root Port due to Link Down", LinkLost(line=1, port=PORT)),
        ("imx6q-pcie 4c300000.pcie: PCIe(LNK_STS:0x00000c00) link down detected",
         HostLink(line=1, controller="4c300000.pcie", up=False)),
        ("imx6q-pcie 4c300000.pcie: PCIe Gen.3 x1 link up",
         HostLink(line=1, controller="4c300000.pcie", up=True, speed=3, width=1)),
        (f"pcieport {PORT}: EDR: Status for 0000:a9:10.0: 0x80",
         FirmwareAnswered(line=1, port=Address.parse("0000:a9:10.0"), status=0x80)),
        (f"pcieport {PORT}: pciehp: Timeout on hotplug command 0x03c0 (issued 1020 msec ago)", SlowCommand(line=1, port=PORT)),
        (f"pci {PORT}: broken device, retraining non-functional downstream link at 2.5GT/s",
         Retraining(line=1, port=PORT, failed=False)),
        (f"pci {PORT}: retraining failed", Retraining(line=1, port=PORT, failed=True)),
        (f"vfio-pci {PORT}: resetting", Resetting(line=1, function=PORT, done=False)),
        (f"vfio-pci {PORT}: reset done", Resetting(line=1, function=PORT, done=True)),
        ("INFO: task irq/57-pciehp:612 blocked for more than 122 seconds.", Hung(line=1, task="irq/57-pciehp:612")),
        ("pci_bus 0000:66: busn_res: [bus 66-79] is released", BusRelease(line=1, domain=0, first=0x66, last=0x79)),
    ],
)  # fmt: skip
def test_what_links_slots_and_controllers_say_is_read(line: str, event: Event) -> None:
    assert read(line).events == (event,)


@pytest.mark.parametrize(
    "line",
    [
        "igb 0000:01:00.0: resetting the adapter",
        "usb1: New device of type hub, reset done",
        "EXT4-fs (sda1): mounted",
        "pci_bus 0000:01: busn_res: [bus 01] end is updated to 01",
        "eth0: link up detected, 1000 Mbps",
        "INFO: task backup:99 was blocked for more than enough",
    ],
)
def test_other_peoples_lines_are_no_events_and_not_cut(line: str) -> None:
    log = read(line)

    assert [event for event in log.events if not isinstance(event, HostLink)] == []
    assert log.broken == ()


def test_a_report_names_all_its_lines() -> None:
    (report,) = (e for e in kernel_log.load(DMESG / "08.txt").events if isinstance(e, Report))

    assert report.lines == (3, 4, 5)


@pytest.mark.parametrize(
    "cut",
    [
        "[   81.0124",
        "[   81.012463] pcieport 0000:00:0",
        "[   81.012463] pcieport 0000:00:01.0: DPC: containment event, status:0x1f",
        "[   81.012463] pcieport 0000:00:01.0: PCIe Bus Error: severity=Uncorrected (Fa",
        "[   81.012463] pcieport 0000:00:01.0: pciehp: Slot(4): Card not pre",
        "[   81.012463] pcieport 0000:00:01.0: AER: device recovery succ",
        "tainment event, status:0x1f01 source:0x0000",
    ],
)
def test_a_line_that_is_cut_is_reported_and_skipped(cut: str) -> None:
    whole = "[   81.000000] pcieport 0000:00:01.0: pciehp: Slot(4): Link Up"

    log = read(f"{whole}\n{cut}\n{whole}\n{whole}\n")

    assert [broken.line for broken in log.broken] == [2]
    assert decisions(log) == [(1, Decided.LINK_UP), (3, Decided.LINK_UP), (4, Decided.LINK_UP)]


def test_a_report_without_its_status_line_is_read_by_its_bits_or_reported() -> None:
    heading = f"pcieport {PORT}: PCIe Bus Error: severity=Uncorrected (Fatal), type=Transaction Layer, (Receiver ID)"

    named = read(f"{heading}\npcieport {PORT}:    [18] MalfTLP                (First)\n")
    alone = read(f"{heading}\n")

    assert [event.names for event in named.events if isinstance(event, Report)] == [("MalfTLP",)]
    assert [broken.line for broken in alone.broken] == [1]


def test_a_function_that_cannot_exist_is_a_cut_line() -> None:
    log = read(f"pcieport 0000:00:3f.0: pciehp: Slot(4): Link Up\npcieport {PORT}: pciehp: Slot(4): Link Up\n")

    assert [broken.line for broken in log.broken] == [1]


def test_a_log_of_another_kind_is_read_and_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "groceries.txt"
    path.write_text("milk\nbread\n", encoding="utf-8")

    log = kernel_log.load(path)

    assert not log.speaks
    assert log.lines == ("milk", "bread")


@pytest.mark.parametrize(
    ("content", "why"), [(b"", "empty"), (b" \n\r\n", "empty"), (b"\x7fELF\x02\x00\x00\n\x00\xff", "no text")]
)
def test_a_file_that_is_empty_or_no_text_is_refused_with_its_name_and_what_is_expected(
    tmp_path: Path, content: bytes, why: str
) -> None:
    path = tmp_path / "strange.txt"
    path.write_bytes(content)

    with pytest.raises(kernel_log.LogError, match=rf"strange\.txt: {why}.*expected the output of `dmesg`"):
        kernel_log.load(path)


def test_a_file_that_cannot_be_read_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(kernel_log.LogError, match=r"absent\.txt: cannot be read"):
        kernel_log.load(tmp_path / "absent.txt")


def test_bytes_that_are_no_text_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "binary.txt"
    path.write_bytes(b"\xff\xfe\x00\n" + f"pcieport {PORT}: pciehp: Slot(4): Link Up\n".encode())

    assert decisions(kernel_log.load(path)) == [(2, Decided.LINK_UP)]
