"""`scenario FILE…`: failures that a kernel once handled wrongly, run against the services, and what became of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.table import Table
from rich.text import Text

from services.console._exit import ExitCode, Failure
from services.console._output import console, print_json
from services.console._run import run_to_the_end
from services.console._story import account, sentence
from shared.protocol import to_builtins
from shared.protocol.facts import Fact

from ._file import ScenarioError, load
from ._run import Result, run_scenario
from ._scenario import Scenario

_TOLD_MAX: Final = 80  # facts of a failed scenario that are shown, the last ones

OnResult = Callable[[Result], None]


def scenario(
    files: Annotated[list[Path], typer.Argument(help="Scenario files.")],
    as_json: Annotated[bool, typer.Option("--json", help="JSON for programs; one document per scenario.")] = False,
    timeout: Annotated[
        float | None, typer.Option("--timeout", min=0.1, help="Seconds for each scenario, instead of its own limit.")
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Scenarios that run at once.")] = 1,
) -> None:
    """Run scenarios: a machine, what happens to it, and what must become of it."""
    scenarios = _load(files)
    show = _Show(quiet=as_json, alone=jobs == 1)
    results = run_to_the_end(run_all(scenarios, timeout_s=timeout, jobs=jobs, show=show))
    show.end(results)
    if not all(result.passed for result in results):
        raise typer.Exit(ExitCode.FAILED)


async def run_all(
    scenarios: Sequence[Scenario], *, timeout_s: float | None, jobs: int, show: _Show
) -> tuple[Result, ...]:
    """Run scenarios, at most `jobs` at once, each on a fleet of its own."""
    room = asyncio.Semaphore(jobs)

    async def one(wanted: Scenario) -> Result:
        async with room:
            show.begin(wanted)
            result = await run_scenario(wanted, timeout_s=timeout_s, tell=show.say, on_fact=show.fact)
            show.result(result)
            return result

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(wanted)) for wanted in scenarios]
    except* Failure as failed:
        raise next(error for error in failed.exceptions if isinstance(error, Failure)) from None
    return tuple(task.result() for task in tasks)


def _load(files: Sequence[Path]) -> tuple[Scenario, ...]:
    """Read every file before anything is started. Raises Failure with all that is wrong in any."""
    found, wrong = [], []
    for file in files:
        try:
            found.append(load(file))
        except ScenarioError as error:
            wrong.append(str(error))
    if wrong:
        raise Failure(ExitCode.USAGE, "\n".join(wrong))
    return tuple(found)


class _Show:
    """Prints scenarios as they go. What goes on inside of one is shown only where one runs `alone`."""

    def __init__(self, *, quiet: bool, alone: bool) -> None:
        self._out = console(stderr=quiet)
        self._quiet = quiet
        self._alone = alone

    def begin(self, wanted: Scenario) -> None:
        """Name the scenario that begins."""
        if not self._quiet:
            self._out.print(Text(f"{wanted.file.name}: {wanted.header.title}", style="bold"), soft_wrap=True)

    def say(self, text: str) -> None:
        """Say what is done to the machine or the services."""
        if self._alone and not self._quiet:
            self._out.print(Text(f"  {text}", style="dim"), soft_wrap=True)

    def fact(self, fact: Fact) -> None:
        """Say what a service says."""
        told = sentence(fact)
        if self._alone and not self._quiet and told is not None:
            self._out.print(Text.assemble((f"  {fact.service:<12}", "cyan"), told), soft_wrap=True)

    def result(self, result: Result) -> None:
        """Say how one ended; of one that failed also why, and everything that was told."""
        if self._quiet:
            table = to_builtins(result)
            print_json(table if not result.passed else table | {"facts": []})
            return
        for failure in result.failures:
            self._out.print(Text(f"  failed: {failure}", style="bold red"), soft_wrap=True)
        if not result.passed:
            self._story(result.facts)

    def end(self, results: Sequence[Result]) -> None:
        """Print the table of all that have run."""
        if self._quiet:
            return
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("SCENARIO")
        table.add_column("RESULT")
        table.add_column("SECONDS", justify="right")
        table.add_column("TITLE", overflow="fold")
        for result in results:
            word = Text("passed", style="green") if result.passed else Text("failed", style="bold red")
            table.add_row(Path(result.file).name, word, f"{result.seconds:.1f}", result.title)
        self._out.print()
        self._out.print(table)

    def _story(self, facts: Sequence[Fact]) -> None:
        if not facts:
            self._out.print(Text("  nothing was told", style="dim"))
            return
        told = sorted(facts, key=lambda fact: fact.at)
        first = told[0].at
        if len(told) > _TOLD_MAX:
            self._out.print(Text(f"  … {len(told) - _TOLD_MAX} facts before these", style="dim"))
        for fact in told[-_TOLD_MAX:]:
            since = (fact.at - first).total_seconds()
            line = Text.assemble((f"  {since:+z8.3f} s  ", "dim"), (f"{fact.service:<12}", "cyan"))
            self._out.print(line.append(f"{fact.what:<22} {account(fact)}"), soft_wrap=True)
