"""The runner can fail, and says why; bad files are refused before anything runs; no scenario is forgotten."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import tomllib
from pathlib import Path
from typing import Final

import psutil
import pytest

from services.console._exit import ExitCode
from tests.integration.cli import Cli, ended
from tests.scenarios.files import FILES, HERE

SCENARIOS: Final = range(1, 39)
TEMPLATE: Final = """
title = "A removal that nobody expects"
topology = "lab"
timeout_s = 20

[[inject]]
what = "error"
target = "5e:00.0"
names = ["BadTLP"]
"""
WRONG: Final = """
[[expect]]
what = "error.correctable"
data = {names = ["BadDLLP"]}

[[never]]
what = "error.correctable"
port = "00:03.0"

[[run]]
argv = ["power", "off", "00:1c.0", "--yes"]

[outcome]
"5e:00.0" = "removed"

[[register]]
function = "00:03.0"
register = "slot_control"
clear = ["hotplug_interrupt_enable"]
"""
ENDLESS: Final = """
[[expect]]
what = "device.removed"

[[run]]
argv = ["watch"]
"""


def written(directory: Path, text: str) -> str:
    path = directory / "scenario.toml"
    path.write_text(text)
    return str(path)


def numbered() -> dict[int, list[str]]:
    """Return the files of each number."""
    found: dict[int, list[str]] = {}
    for file in FILES:
        number = tomllib.loads(file.read_text()).get("number")
        if number is not None:
            found.setdefault(number, []).append(file.name)
    return found


async def test_wrong_expectations_fail_each_with_its_reason(tmp_path: Path) -> None:
    code, out, err = await Cli().run("scenario", written(tmp_path, TEMPLATE + WRONG), "--json")
    assert code == ExitCode.FAILED, err
    result = json.loads(out)
    assert result["passed"] is False
    failures = "\n".join(result["failures"])
    for reason in (
        "expected, told 0 times: error.correctable with {'names': ['BadDLLP']}",
        "never, and yet told: error.correctable at 0000:00:03.0",
        "holdfast power off 00:1c.0 --yes ended with 3, not 0",
        "0000:5e:00.0: expected removed, is kept",
        "hotplug_interrupt_enable is set",
    ):
        assert reason in failures
    assert "error.correctable" in {fact["what"] for fact in result["facts"]}


async def test_a_terminated_runner_leaves_no_process_behind(tmp_path: Path) -> None:
    process = await Cli().start("scenario", written(tmp_path, TEMPLATE + ENDLESS))
    assert process.stdout is not None
    while b"run holdfast watch" not in await process.stdout.readline():
        pass
    await asyncio.sleep(0.2)
    started = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    code, _, err = await ended(process)
    assert code == 128 + signal.SIGTERM
    assert "stopped by a signal" in err
    assert len(started) > 6  # nats-server, six services, and the command
    assert not [child for child in started if child.is_running()]


async def test_several_files_are_refused_with_everything_that_is_wrong_in_any(tmp_path: Path) -> None:
    bad = written(tmp_path, 'title = ""\nnumber = 39\nsurprise = 1\n[[inject]]\nat = -1\nwhat = "dpc"\ntarget = "x"\n')
    code, out, err = await Cli().run("scenario", str(tmp_path / "none.toml"), bad)
    assert (code, out) == (ExitCode.USAGE, "")
    for reason in ("none.toml cannot be read", "'surprise' is nothing that a scenario has", "[[inject]] 1", "topology"):
        assert reason in err


@pytest.mark.parametrize("number", SCENARIOS)
def test_every_scenario_of_linux_has_a_file_or_a_reason_why_not(number: int) -> None:
    rows = re.findall(rf"^\| {number} \|(.*)$", (HERE / "README.md").read_text(), re.MULTILINE)
    assert len(rows) == 1, f"README.md must have one row for {number}"
    named = set(re.findall(r"`([\w-]+\.toml)`", rows[0]))
    files = set(numbered().get(number, ()))
    assert named == files
    assert files or "no meaning here" in rows[0] or "shown by" in rows[0]


@pytest.mark.parametrize("name", [file.name for file in FILES])
def test_every_file_names_its_guard_and_what_its_removal_broke(name: str) -> None:
    document = tomllib.loads((HERE / name).read_text())
    for field in ("title", "linux", "fixed", "guard", "tried"):
        assert document[field].strip(), field
    module = document["guard"].strip().partition(":")[0]
    assert (HERE.parents[1] / module).is_file(), f"{name}: the guard begins with its module, {module!r} is none"
