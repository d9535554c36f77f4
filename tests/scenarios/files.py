"""The scenario files, and what runs one as a test. They are shared out to a few modules, which run side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from services.console._facts import line
from services.console._scenario_file import load
from services.console._scenario_run import run_scenario
from shared.protocol.facts import Fact

HERE: Final = Path(__file__).parent
FILES: Final = tuple(sorted(HERE.glob("*.toml")))
SHARES: Final = 4


def share(number: int) -> list[str]:
    """Return the names of the files of one share: every so-and-so-many-th, so that long ones do not meet."""
    return [file.name for file in FILES[number::SHARES]]


async def fulfilled(name: str) -> None:
    """Assert that a scenario is fulfilled; print what was told, for when it is not."""
    result = await run_scenario(load(HERE / name), tell=print, on_fact=_show)
    assert result.passed, "\n".join((f"{name}: {result.title}", *result.failures))


def _show(fact: Fact) -> None:
    print(line(fact))  # noqa: T201 - captured by pytest, which shows it when the test fails
