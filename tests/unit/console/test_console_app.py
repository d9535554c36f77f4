"""What people and scripts see of the command line, without any service."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime

import pytest

from services.console import _facts, _up
from services.console._exit import ExitCode
from services.console._output import plain
from shared.pcie import Address
from shared.protocol.facts import Fact, What

NOBODY = "nats://127.0.0.1:1"  # tcpmux: nothing listens there


def holdfast(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "services.console", *arguments], capture_output=True, text=True, check=False, timeout=30
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("status",),
        ("hold", "3b:00.0", "--", "true"),
        pytest.param(("doctor",), marks=pytest.mark.campaign),
        pytest.param(("logs", "r-1"), marks=pytest.mark.campaign),
    ],
)
def test_a_bus_that_does_not_answer_is_one_line_that_names_it(arguments: tuple[str, ...]) -> None:
    ran = holdfast(arguments[0], "--nats", NOBODY, *arguments[1:])
    assert ran.returncode == ExitCode.UNREACHABLE
    assert ran.stdout == ""
    assert ran.stderr.startswith("holdfast: ")
    assert NOBODY in ran.stderr
    assert len(ran.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("status", "--host", "a.b"),
        ("status", "--nats", "nonsense"),
        ("status", "--timeout", "0"),
        ("inject",),
        ("inject", "remove"),
        ("inject", "explode", "3b:00.0"),
        ("inject", "error", "3b:00.0", "--header", "1"),
        ("inject", "--file", "/nonexistent", "--nats", NOBODY),
        ("power", "sideways", "3b:00.0"),
        ("reset", "3b:00.0", "--method", "kick"),
        ("hold", "3b:00.0"),
        ("up", "--topology", "/nonexistent"),
        ("no-such-command",),
    ],
)
def test_a_wrong_command_line_is_a_usage_error_without_a_traceback(arguments: tuple[str, ...]) -> None:
    ran = holdfast(*arguments)
    assert ran.returncode == ExitCode.USAGE
    assert "Traceback" not in ran.stderr
    assert ran.stderr


def test_the_help_lists_the_commands_and_the_exit_codes() -> None:
    ran = holdfast("--help")
    assert ran.returncode == 0
    for command in ("up", "status", "topology", "watch", "leases", "reset", "hold", "power", "inject", "history",
                    "dump", "doctor", "replay", "demo", "timeline", "logs", "asyncapi", "audit", "lease", "quarantine"):  # fmt: skip
        assert f" {command} " in ran.stdout
    assert "8 bus or service unreachable" in " ".join(ran.stdout.split())


def test_a_fact_is_one_line_with_who_which_lease_and_why() -> None:
    fact = Fact(
        what=What.RECOVERY_STEP, host="lab", port=Address.parse("00:01.0"), service="coordinator", seq=1,
        at=datetime(2026, 1, 1, tzinfo=UTC), lease="r-1", cause="dpc", data={"step": "reset", "waited_s": 0.5},
    )  # fmt: skip
    text = _facts.line(fact).plain
    assert "0000:00:01.0  recovery.step" in text
    assert text.endswith("  service=coordinator  lease=r-1  cause=dpc  step=reset  waited_s=0.5")


def test_a_long_value_is_cut_for_people() -> None:
    assert len(plain("x" * 1000)) == 160
    assert plain({"a": (1, Address.parse("00:01.0"))}) == '{"a":[1,"0000:00:01.0"]}'


def test_up_merges_json_lines_and_shows_anything_else_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    _up._line("fabric", '{"at":"2026-01-01T10:11:12.131415Z","level":"info","event":"ready","host":"lab","n":1}')
    _up._line("aer", "Traceback (most recent call last):")
    _up._line("nats", "[1] 2026/01/01 [INF] Server is ready")
    _up._line("nats", "[1] 2026/01/01 [WRN] slow")
    assert capsys.readouterr().out.splitlines() == [
        "fabric      10:11:12.131 ready  host=lab  n=1",
        "aer         Traceback (most recent call last):",
        "nats        [1] 2026/01/01 [WRN] slow",
    ]


def test_up_with_json_stays_ndjson_whatever_a_service_writes(capsys: pytest.CaptureFixture[str]) -> None:
    _up._json_line("fabric", '{"event":"ready","service":"fabric"}')
    _up._json_line("aer", "Traceback")
    assert capsys.readouterr().out.splitlines() == [
        '{"event":"ready","service":"fabric"}',
        '{"service":"aer","event":"Traceback"}',
    ]


# --- stdout that takes nothing ---


def into(stdout: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `holdfast` by a shell that redirects stdout."""
    line = f'"{sys.executable}" -m services.console "$@" {stdout}'
    return subprocess.run(
        ["bash", "-c", line, "bash", *arguments], stderr=subprocess.PIPE, text=True, check=False, timeout=30
    )


SAYS_MUCH = (("asyncapi",), ("explain", "services/console/data/03.txt"))


@pytest.mark.parametrize("arguments", SAYS_MUCH)
def test_a_disk_that_is_full_is_one_line_that_says_so(arguments: tuple[str, ...]) -> None:
    ran = into("> /dev/full", *arguments)
    assert ran.stderr == "holdfast: standard output cannot be written: No space left on device\n"
    assert ran.returncode == ExitCode.USAGE


@pytest.mark.parametrize("arguments", SAYS_MUCH)
def test_a_closed_stdout_is_nobody_who_wants_to_read(arguments: tuple[str, ...]) -> None:
    ran = into(">&-", *arguments)
    assert (ran.returncode, ran.stderr) == (ExitCode.OK, "")


@pytest.mark.parametrize("arguments", SAYS_MUCH)
def test_a_reader_that_has_gone_ends_the_command_as_sigpipe_would(arguments: tuple[str, ...]) -> None:
    ran = into("| true; exit ${PIPESTATUS[0]}", *arguments)
    assert (ran.returncode, ran.stderr) == (141, "")
