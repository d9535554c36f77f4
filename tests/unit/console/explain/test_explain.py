"""`explain`: which known failure a log shows, by the lines that show it; and nothing where there is nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.console import kernel_log
from services.console._app import app
from services.console._exit import ExitCode, Failure
from services.console.explain import _command as explaining
from services.console.explain._failures import Fit
from services.console.explain._signatures import SIGNATURES, Kind
from tests.unit.console.logs import DATA, DMESG

LOGS = {
    "01": DATA / "01.txt",
    "03": DATA / "03.txt",
    "07": DMESG / "07.txt",
    "08": DMESG / "08.txt",
    "15": DMESG / "15.txt",
    "18": DMESG / "18.txt",
}
PORT = "pcieport 0000:00:01.0"
CONTAINED = f"{PORT}: DPC: containment event, status:0x1f01 source:0x0000"

Found = tuple[int | None, Fit, str | None]


def found(text: str) -> list[Found]:
    return named(explaining.matches(kernel_log.parse(text, "some.log")))


def named(matches: tuple[explaining.Match, ...]) -> list[Found]:
    return [(one.signature.scenario, one.evidence.fit, one.signature.fixed) for one in matches]


def of(log: str) -> tuple[explaining.Match, ...]:
    return explaining.matches(kernel_log.load(LOGS[log]))


def at(*lines: tuple[float, str]) -> str:
    return "\n".join(f"[{seconds:12.6f}] {line}" for seconds, line in lines)


# --- The six logs ---


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("01", [(3, Fit.CERTAIN, "6.16"), (2, Fit.POSSIBLE, "6.16")]),
        ("03", [(38, Fit.CERTAIN, None)]),
        ("07", [(5, Fit.LIKELY, "5.16"), (None, Fit.POSSIBLE, None)]),
        ("08", [(18, Fit.CERTAIN, "6.9")]),
        ("15", [(None, Fit.CERTAIN, None), (None, Fit.LIKELY, None)]),
        ("18", [(None, Fit.LIKELY, None), (None, Fit.POSSIBLE, None)]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_of_the_six_logs_shows_its_failures_the_surest_first(log: str, expected: list[Found]) -> None:
    assert named(of(log)) == expected


@pytest.mark.parametrize(
    ("log", "lines"),
    [
        ("01", (1, 4, 17, 18, 19, 20, 29, 43)),  # both latched, ignored, link active, and yet "Card not present"
        ("03", (1, 7, 15, 16, 21, 28, 32)),  # contained at 81.01, Link Down at 85.20, a callback still at work
        ("07", (2, 13, 14, 15, 18, 19, 30)),
        ("08", (1, 3, 4, 5, 7, 9, 10)),
        ("15", (2, 7, 11, 14, 18, 20, 24, 28, 30, 34)),
        ("18", (6, 7, 8, 10, 11)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_lines_that_show_it_are_quoted(log: str, lines: tuple[int, ...]) -> None:
    assert of(log)[0].evidence.lines == lines


def test_log_15_and_18_are_none_of_the_38_and_that_is_said() -> None:
    for log in ("15", "18"):
        first = of(log)[0].signature
        assert first.kind is Kind.OPEN
        assert "None of the 38" in first.wrong


def test_a_release_known_from_memory_alone_is_told_as_that() -> None:
    result = CliRunner().invoke(app, ["explain", str(LOGS["07"])])

    assert "solved in: 5.16 (from memory, not checked)" in result.stdout


# --- Other logs, one failure each ---


def test_scenario_4_hotplug_removes_what_dpc_recovers() -> None:
    text = at(
        (1.0, CONTAINED),
        (1.3, f"{PORT}: pciehp: Slot(4): Link Down"),
        (1.9, f"{PORT}: AER: device recovery successful"),
    )

    assert found(text) == [(4, Fit.CERTAIN, "5.14")]


def test_scenario_38_needs_its_four_seconds() -> None:
    """The same lines, 3 s after the containment, are scenario 4; without timestamps nobody can tell 38."""
    late = at((1.0, CONTAINED), (5.2, f"{PORT}: pciehp: Slot(4): Link Down"))
    soon = at((1.0, CONTAINED), (4.0, f"{PORT}: pciehp: Slot(4): Link Down"))

    assert found(late) == [(38, Fit.LIKELY, None)]
    assert found(soon) == [(4, Fit.LIKELY, "5.14")]
    assert found(f"{CONTAINED}\n{PORT}: pciehp: Slot(4): Link Down\n") == [(4, Fit.LIKELY, "5.14")]


def test_scenario_2_a_presence_change_by_itself_is_a_belated_one() -> None:
    text = at(
        (1.0, CONTAINED),
        (1.3, f"{PORT}: pciehp: Slot(4): Link Down/Up ignored (recovered by DPC)"),
        (1.4, f"{PORT}: pciehp: Slot(4): Card not present"),
        (1.5, f"{PORT}: AER: device recovery successful"),
    )

    assert found(text) == [(2, Fit.LIKELY, "6.16")]


def test_p10_an_ignored_link_change_without_a_removal_is_no_failure() -> None:
    text = at(
        (1.0, CONTAINED),
        (1.3, f"{PORT}: pciehp: Slot(4): Link Down/Up ignored"),
        (1.5, f"{PORT}: AER: device recovery successful"),
    )

    assert found(text) == []


def test_scenario_1_a_reset_on_request_removes_the_device() -> None:
    reset = "vfio-pci 0000:01:00.0: resetting"

    assert found(at((1.0, reset), (1.2, f"{PORT}: pciehp: Slot(4): Link Down"))) == [(1, Fit.LIKELY, "6.16")]
    assert found(at((1.0, reset), (9.0, f"{PORT}: pciehp: Slot(4): Link Down"))) == []
    assert found(at((1.0, reset), (1.2, "pcieport 0000:02:01.0: pciehp: Slot(4): Link Down"))) == []


def test_scenario_18_needs_a_recovery_that_failed() -> None:
    report = (
        (1.1, f"{PORT}: PCIe Bus Error: severity=Uncorrectable (Fatal), type=Transaction Layer, (Receiver ID)"),
        (1.1, f"{PORT}:   device [8086:6f04] error status/mask=00000020/00000000"),
    )

    failed = at((1.0, CONTAINED), *report, (1.9, f"{PORT}: AER: device recovery failed"))
    worked = at((1.0, CONTAINED), *report, (1.9, f"{PORT}: AER: device recovery successful"))

    assert found(failed) == [(18, Fit.LIKELY, "6.9")]
    assert found(worked) == []


@pytest.mark.parametrize(("pause", "expected"), [(0.1, [(10, Fit.LIKELY, "5.17")]), (5.0, [])], ids=["loop", "seldom"])
def test_scenario_10_many_power_faults_are_a_loop_and_few_are_not(pause: float, expected: list[Found]) -> None:
    text = at(*((1 + turn * pause, f"{PORT}: pciehp: Slot(4): Power fault") for turn in range(4)))

    assert found(text) == expected


def test_scenario_36_a_card_that_comes_goes_and_comes_within_a_second() -> None:
    words = ("Card present", "Link Down", "Card present")

    assert found(at(*((1 + n / 20, f"{PORT}: pciehp: Slot(4): {word}") for n, word in enumerate(words)))) == [
        (36, Fit.LIKELY, "4.19")
    ]
    assert found(at(*((1 + n * 20, f"{PORT}: pciehp: Slot(4): {word}") for n, word in enumerate(words)))) == []


def test_scenario_37_a_link_that_retrained_in_vain() -> None:
    tried = f"{PORT}: broken device, retraining non-functional downstream link at 2.5GT/s"

    assert found(f"{tried}\n{PORT}: retraining failed\n") == [(37, Fit.LIKELY, "6.17")]
    assert found(f"{tried}\n") == [(37, Fit.POSSIBLE, "6.17")]


def test_scenario_6_hotplug_that_hangs_with_another() -> None:
    hotplug = "INFO: task irq/57-pciehp:612 blocked for more than 122 seconds."
    other = "INFO: task qemu-kvm:901 blocked for more than 122 seconds."

    assert found(f"{hotplug}\n{other}\n") == [(6, Fit.LIKELY, "6.4")]
    assert found(f"{other}\n") == []


def test_scenario_28_a_slot_command_that_times_out_may_be_it() -> None:
    text = f"{PORT}: pciehp: Timeout on hotplug command 0x03c0 (issued 1020 msec ago)\n"

    assert found(text) == [(28, Fit.POSSIBLE, "6.15")]


def test_three_failures_of_one_port_within_a_minute_are_a_loop_and_two_or_slower_ones_are_not() -> None:
    def failures(count: int, pause: float) -> list[Found]:
        told = [
            (1 + turn * pause + late, line)
            for turn in range(count)
            for late, line in ((0.0, CONTAINED), (0.5, f"{PORT}: AER: device recovery failed"))
        ]
        return found(at(*told))

    assert failures(3, 2.0) == [(None, Fit.CERTAIN, None)]
    assert failures(2, 2.0) == []
    assert failures(3, 40.0) == []


def test_what_is_reported_of_one_failure_is_no_loop() -> None:
    report = f"{PORT}: PCIe Bus Error: severity=Uncorrectable (Fatal), type=Transaction Layer, (Receiver ID)"
    status = f"{PORT}:   device [8086:6f04] error status/mask=00040000/00000000"

    assert found(at((1.0, CONTAINED), *((2.0 + turn, line) for turn in range(4) for line in (report, status)))) == []


def test_the_surest_comes_first_whatever_its_number() -> None:
    told = (
        (0.0, CONTAINED),
        (0.1, f"{PORT}: pciehp: Slot(4): Link Down"),
        (0.5, f"{PORT}: AER: device recovery failed"),
    )

    text = at(*((1 + turn + late, line) for turn in range(3) for late, line in told))

    assert found(text) == [(None, Fit.CERTAIN, None), (4, Fit.LIKELY, "5.14")]


# --- Nothing known, and what is no log ---


@pytest.mark.parametrize(
    ("text", "summary"),
    [
        ("milk\nbread\n", "nothing known: 2 lines, and nothing said of PCIe"),
        ("[    1.0] igb 0000:01:00.0: added PHC on eth0\n",
         "nothing known: 1 line, with PCIe devices named, but nothing said of errors, links or slots"),
        (f"{PORT}: pciehp: Slot(4): Link Up\n",
         "nothing known: 1 line, 1 event of PCIe in them, and no failure that is known here"),
    ],
    ids=["groceries", "boot", "slot"],
)  # fmt: skip
def test_a_log_of_another_kind_is_told_so_honestly_and_that_is_no_error(
    tmp_path: Path, text: str, summary: str
) -> None:
    path = tmp_path / "other.log"
    path.write_text(text, encoding="utf-8")

    shown = CliRunner().invoke(app, ["explain", str(path)])
    document = json.loads(CliRunner().invoke(app, ["explain", "--json", str(path)]).stdout)

    assert shown.exit_code == 0
    assert shown.stdout == f"{path}: {summary}\n"
    assert (document["known"], document["matches"], document["summary"]) == (False, [], summary)


@pytest.mark.parametrize("content", [b"", b"\x7fELF\x00\x01\x02\x00"], ids=["empty", "binary"])
def test_a_file_that_is_no_text_is_a_usage_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "strange.bin"
    path.write_bytes(content)

    with pytest.raises(Failure, match=r"strange\.bin: .*expected the output of `dmesg`") as failed:
        explaining.explain(path)

    assert failed.value.code is ExitCode.USAGE


def test_a_file_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"absent\.txt: cannot be read") as failed:
        explaining.explain(tmp_path / "absent.txt")

    assert failed.value.code is ExitCode.USAGE


# --- What is printed ---


def test_json_quotes_every_line_with_its_number_and_says_what_to_do() -> None:
    result = CliRunner().invoke(app, ["explain", "--json", str(LOGS["08"])])
    document = json.loads(result.stdout)

    assert result.exit_code == 0
    assert list(document) == ["log", "known", "summary", "matches", "skipped"]
    (match,) = document["matches"]
    assert (match["kind"], match["scenario"], match["fixed"], match["commit"]) == (
        "scenario",
        18,
        "6.9",
        "2ae8fbbe1cd4",
    )
    assert match["evidence"][-1] == {"line": 10, "text": "pcieport 0000:00:01.4: pciehp: Slot(16): Link Down"}
    assert match["advice"].startswith("Go to 6.9 or newer")
    assert match["holdfast"]


def test_people_read_scenario_release_advice_and_the_lines() -> None:
    shown = CliRunner().invoke(app, ["explain", str(LOGS["03"])]).stdout

    assert "Scenario 38: Recovery takes longer than the 4 s that hotplug waits for DPC  (certain)" in shown
    assert "solved in: in no release so far" in shown
    assert "       21  [ 85.201433] pcieport 0004:00:00.0: pciehp: Slot(41): Link Down" in shown


def test_the_evidence_of_a_long_log_is_cut_for_people_and_whole_for_programs(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text(at(*((1 + turn / 100, f"{PORT}: pciehp: Slot(4): Power fault") for turn in range(30))))

    shown = CliRunner().invoke(app, ["explain", str(path)]).stdout
    document = json.loads(CliRunner().invoke(app, ["explain", "--json", str(path)]).stdout)

    assert shown.count("Power fault\n") == 12
    assert "and 18 more lines" in shown
    assert len(document["matches"][0]["evidence"]) == 30


def test_the_same_failure_is_found_behind_the_stamps_of_journalctl(tmp_path: Path) -> None:
    lines = LOGS["07"].read_text(encoding="utf-8").splitlines()
    path = tmp_path / "journal.txt"
    path.write_bytes("\r\n".join(f"Nov 22 10:00:00 host kernel: {line}" for line in lines).encode())

    assert named(explaining.matches(kernel_log.load(path))) == named(of("07"))


def test_each_signature_names_a_scenario_once_and_says_what_to_do() -> None:
    numbers = [signature.scenario for signature in SIGNATURES if signature.scenario is not None]

    assert len(numbers) == len(set(numbers))
    for signature in SIGNATURES:
        assert (signature.scenario is not None) is (signature.kind is Kind.SCENARIO)
        assert signature.fixed is None or signature.kind is Kind.SCENARIO
        assert all((signature.wrong, signature.advice, signature.holdfast))


def test_a_log_comes_from_stdin_too() -> None:
    log = "pcieport 0000:00:01.0: DPC: containment event, status:0x1f01 source:0x0000\n"
    ran = CliRunner().invoke(app, ["explain", "-", "--json"], input=log)
    assert ran.exit_code == ExitCode.OK
    assert json.loads(ran.stdout)["log"] == "standard input"
    empty = CliRunner().invoke(app, ["explain", "-"], input="")
    assert isinstance(empty.exception, Failure)
    assert str(empty.exception).startswith("standard input: empty; expected")
