"""`audit` of files as a shell sees it: exit codes, what is said, and that no bus is asked."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from services.console._app import app
from services.console._exit import ExitCode, Failure
from shared.pcie import registers as reg
from tests.unit.console.audit.audit_images import EXPRESS, PORT, cut, drive, dumped, port

NOBODY = "nats://127.0.0.1:1"  # tcpmux: nothing listens there
MASKED = port({(reg.SLOT_CONTROL, EXPRESS): 0x0030})


class Ran(msgspec.Struct):
    """What a shell sees of a command."""

    returncode: int
    stdout: str
    stderr: str


def audit(*arguments: str, stdin: str = "") -> Ran:
    """Run the command line in this process: an expected failure is told as `guarded` tells it."""
    result = CliRunner().invoke(app, ["audit", "--nats", NOBODY, *arguments], input=stdin)
    if isinstance(result.exception, Failure):
        return Ran(result.exception.code, result.stdout, f"holdfast: {result.exception}")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return Ran(result.exit_code, result.stdout, result.stderr)


def write(directory: Path, text: str) -> str:
    file = directory / "dump.txt"
    file.write_text(text)
    return str(file)


def test_a_healthy_dump_is_clean_and_a_tampered_one_is_not(tmp_path: Path) -> None:
    ran = audit("--lspci", write(tmp_path, dumped(port(), drive())))
    assert (ran.returncode, ran.stderr) == (ExitCode.OK, "")
    assert "2 functions, no findings" in ran.stdout
    ran = audit("--lspci", write(tmp_path, dumped(MASKED, drive())))
    assert ran.returncode == ExitCode.FAILED
    assert f"{PORT}  error" in ran.stdout
    assert "Slot Control 0x0030" in ran.stdout
    assert "do not tell who holds a lease" in ran.stderr


def test_a_dump_comes_from_stdin_too_and_json_has_all_of_it() -> None:
    ran = audit("--lspci", "-", "--json", stdin=dumped(MASKED))
    assert ran.returncode == ExitCode.FAILED
    report = json.loads(ran.stdout)
    (finding,) = report["findings"]
    assert (report["source"], report["functions"], report["explained"]) == ("standard input", 1, [])
    assert (finding["function"], finding["check"], finding["severity"]) == (str(PORT), "masked", "error")
    assert (finding["register"], finding["value"]) == ("Slot Control", 0x30)
    assert finding["why"]
    assert finding["todo"]


def test_a_tree_is_audited(tmp_path: Path) -> None:
    for image in (MASKED, drive()):
        directory = tmp_path / str(image.address)
        directory.mkdir()
        (directory / "config").write_bytes(image.config)
    (tmp_path / "0000:7f:00.0").mkdir()
    ran = audit("--sysfs", str(tmp_path), "--json")
    assert ran.returncode == ExitCode.OK, "without a driver, a slot that is masked is nobody's"
    (tmp_path / str(PORT) / "driver").symlink_to(tmp_path)
    ran = audit("--sysfs", str(tmp_path), "--json")
    assert ran.returncode == ExitCode.FAILED
    found = {(one["function"], one["check"]) for one in json.loads(ran.stdout)["findings"]}
    assert found == {(str(PORT), "masked"), ("0000:7f:00.0", "unread")}


def test_what_is_noted_of_many_functions_is_said_once_and_json_names_each(tmp_path: Path) -> None:
    file = write(tmp_path, dumped(cut(port(), 256), cut(drive(), 256)))
    assert f"{PORT} and 1 more" in audit("--lspci", file).stdout
    assert len(json.loads(audit("--lspci", file, "--json").stdout)["findings"]) == 2


def test_notes_alone_leave_it_clean(tmp_path: Path) -> None:
    ran = audit("--lspci", write(tmp_path, dumped(cut(port(), 256))))
    assert ran.returncode == ExitCode.OK
    assert "not enough bytes to judge AER" in " ".join(ran.stdout.split())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param(dumped(port())[:-2], "line 257: ", id="cut in a byte"),
        pytest.param(dumped(MASKED, cut(drive(), 592)), "the dump is cut off", id="cut between rows"),
        pytest.param("garbage", "there is no function in it", id="garbage"),
        pytest.param(dumped(cut(port(), 64)), "only headers of 64 bytes", id="not as root"),
    ],
)
def test_a_dump_of_which_nothing_can_be_said_is_bad_input(tmp_path: Path, text: str, said: str) -> None:
    ran = audit("--lspci", write(tmp_path, text))
    assert (ran.returncode, ran.stdout) == (ExitCode.USAGE, "")
    assert said in ran.stderr
    assert "dump.txt" in ran.stderr


def test_what_even_a_header_shows_is_found(tmp_path: Path) -> None:
    header = cut(port({(reg.BRIDGE_CONTROL, 0): 0x0042}), 64)
    assert audit("--lspci", write(tmp_path, dumped(header))).returncode == ExitCode.FAILED


@pytest.mark.parametrize(
    "arguments",
    [("--lspci", "/nonexistent"), ("--lspci", "/"), ("--sysfs", "/nonexistent"), ("--lspci", "-", "--sysfs", "/")],
    ids=["no file", "a directory", "no tree", "both"],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(arguments: tuple[str, ...]) -> None:
    ran = audit(*arguments)
    assert ran.returncode == ExitCode.USAGE
    assert ran.stderr.startswith("holdfast: ")
    assert len(ran.stderr.splitlines()) == 1


def test_without_a_source_the_bus_is_asked() -> None:
    ran = audit()
    assert ran.returncode == ExitCode.UNREACHABLE
    assert NOBODY in ran.stderr
