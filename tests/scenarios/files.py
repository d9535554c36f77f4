"""The scenario files, and what runs one as a test. They are shared out to a few modules, which run side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest
from _pytest.mark import ParameterSet

from services.console._facts import line
from services.console.scenario._file import load
from services.console.scenario._run import run_scenario
from shared.protocol.facts import Fact

HERE: Final = Path(__file__).parent
FILES: Final = tuple(sorted(HERE.glob("*.toml")))
SHARES: Final = 2
# One or two of each kind of guard: removal and recovery at once, presence, nesting, readiness, votes, storms, firmware.
# Each file takes a fleet of its own, so the others wait for `make campaign`.
ALWAYS: Final = frozenset({"02", "04", "05", "18", "29", "38", "eight-slots", "firmware-first", "storm-ancestor"})


def share(number: int) -> list[ParameterSet]:
    """Return the names of the files of one share: every so-and-so-many-th of those that always run, and of the others."""
    always = [file for file in FILES if file.stem in ALWAYS][number::SHARES]
    later = [file for file in FILES if file.stem not in ALWAYS][number::SHARES]
    return [
        *(pytest.param(file.name, id=file.name) for file in always),
        *(pytest.param(file.name, id=file.name, marks=pytest.mark.campaign) for file in later),
    ]


async def fulfilled(name: str) -> None:
    """Assert that a scenario is fulfilled; print what was told, for when it is not."""
    result = await run_scenario(load(HERE / name), tell=print, on_fact=_show)
    assert result.passed, "\n".join((f"{name}: {result.title}", *result.failures))


def _show(fact: Fact) -> None:
    print(line(fact))  # noqa: T201 - captured by pytest, which shows it when the test fails
