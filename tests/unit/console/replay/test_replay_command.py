"""The commands' edges: files that are no kernel log, and what travels in the wheel."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from importlib import resources
from pathlib import Path

import pytest
from rich.console import Console

from services.console._exit import ExitCode, Failure
from services.console.kernel_log import parse
from services.console.replay import _command as command
from services.console.replay._plan import plans
from shared.pcie import Address
from shared.protocol.facts import Fact, What


def test_a_file_without_a_pcie_line_is_a_usage_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("milk\n", encoding="utf-8")

    with pytest.raises(Failure, match=r"notes\.txt: no PCIe line found; expected") as failed:
        command.replay(path)

    assert failed.value.code is ExitCode.USAGE


def test_a_log_with_nothing_to_inject_is_a_usage_error_that_says_unsupported(tmp_path: Path) -> None:
    path = tmp_path / "conclusions.txt"
    path.write_text("pcieport 0000:00:01.0: AER: device recovery failed\n", encoding="utf-8")

    with pytest.raises(Failure, match="unsupported") as failed:
        command.replay(path)

    assert failed.value.code is ExitCode.USAGE


def test_the_log_of_the_demo_travels_in_the_package() -> None:
    text = resources.files("services.console").joinpath("data", command.DEMO_LOG).read_text(encoding="utf-8")

    (planned,) = plans(parse(text, command.DEMO_LOG))

    assert planned.steps


def test_a_service_that_was_heard_a_moment_late_does_not_speak_at_minus_nothing() -> None:
    out, at = io.StringIO(), datetime(2026, 1, 1, tzinfo=UTC)
    show = command._Show(Console(file=out), quiet=False)
    for moment in (at, at - timedelta(milliseconds=4)):
        show.fact(
            Fact(
                what=What.LEASE_OPENED, host="lab", port=Address.parse("0000:00:01.0"), service="fabric", seq=1,
                at=moment, cause="dpc",
            )
        )  # fmt: skip
    assert [line[:10].strip() for line in out.getvalue().splitlines()] == ["+0.00 s", "+0.00 s"]
