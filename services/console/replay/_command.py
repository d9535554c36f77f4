"""`replay` and `demo`: a failure of the past run again, drawn, and judged beside what that kernel made of it."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from services.console._exit import ExitCode, Failure
from services.console._lease_facts import last_recovery
from services.console._options import Json, Timeout
from services.console._output import console, print_json
from services.console._run import run_to_the_end
from services.console._story import sentence
from services.console._timeline import Timeline, beside, build
from services.console._timeline_command import show_timeline, write_trace
from services.console.kernel_log import KernelLog, LogError, load, parse
from shared.protocol.facts import Fact

from ._facts import Source
from ._plan import Plan, plans
from ._run import Replayed, as_document
from ._run import replay as run_replay
from ._steps import Ending
from ._verdicts import Fate, kernel_marks

DEMO_LOG: Final = "03.txt"
_TIMEOUT_S: Final = 180.0
_GOOD: Final = frozenset({Fate.KEPT, Fate.ADDED, Fate.REBOUND})
_SOURCE_TITLES: Final = {
    Source.LOG: "in the log",
    Source.INFERRED: "inferred from it",
    Source.ASSUMED: "assumed",
}
_VARIANTS: Final = "whether the link returned, so each is run by itself"
_VARIANT_WORDS: Final = {Ending.RETURNS: "it returns", Ending.GONE: "it stays down"}


def replay(
    log: Annotated[Path, typer.Argument(help="A kernel log: the output of dmesg or journalctl -k; - for stdin.")],
    as_json: Json = False,
    timeout: Timeout = _TIMEOUT_S,
    trace: Annotated[Path | None, typer.Option(help="Write the recovery as a Chrome trace.")] = None,
) -> None:
    """Run a failure out of a kernel log again: what that kernel did, and what Holdfast does."""
    try:
        read = load(log)
    except LogError as error:
        raise Failure(ExitCode.USAGE, str(error)) from error
    _replay(read, as_json=as_json, timeout_s=timeout, trace=trace)


def demo(
    as_json: Json = False,
    timeout: Timeout = _TIMEOUT_S,
    trace: Annotated[Path | None, typer.Option(help="Write the recovery as a Chrome trace.")] = None,
) -> None:
    """Replay a real failure: a kernel gave up on a card after 4 s, while its driver was still at work."""
    text = resources.files("services.console").joinpath("data", DEMO_LOG).read_text(encoding="utf-8")
    _replay(parse(text, DEMO_LOG), as_json=as_json, timeout_s=timeout, trace=trace)


def _replay(log: KernelLog, *, as_json: bool, timeout_s: float, trace: Path | None) -> None:
    try:
        planned = plans(log)
    except LogError as error:
        raise Failure(ExitCode.USAGE, str(error)) from error
    out = console(stderr=as_json)
    results = tuple(_run_one(out, log, plan, as_json=as_json, timeout_s=timeout_s, trace=trace) for plan in planned)
    if as_json:
        print_json(as_document(results))


def _run_one(
    out: Console, log: KernelLog, plan: Plan, *, as_json: bool, timeout_s: float, trace: Path | None
) -> Replayed:
    show = _Show(out, quiet=as_json)
    show.plan(plan)
    result = run_to_the_end(run_replay(log, plan, timeout_s=timeout_s, tell=show.say, on_fact=show.fact))
    drawn = _timeline_of(log, result)
    if trace is not None and drawn is not None:
        variant = "" if plan.variant is None else f"-{plan.variant}"
        write_trace(drawn, trace.with_stem(f"{trace.stem}{variant}"))
    if not as_json:
        if drawn is not None:
            out.print()
            show_timeline(out, drawn)
        _show_sources(out, result)
        _show_verdicts(out, result)
    return result


def _timeline_of(log: KernelLog, result: Replayed) -> Timeline | None:
    """Draw the last recovery, with what that kernel did at the same time."""
    lease = last_recovery(result.facts)
    drawn = None if lease is None else build(result.facts, lease)
    return None if drawn is None else beside(drawn, "that kernel", kernel_marks(log))


class _Show:
    """Prints a replay as it goes: one line per event, with the seconds since the first."""

    def __init__(self, out: Console, *, quiet: bool) -> None:
        self._out = out
        self._quiet = quiet
        self._first: Fact | None = None

    def plan(self, planned: Plan) -> None:
        """Say what could not be read of the log, to programs too: on stderr then. And which variant follows."""
        if planned.variant in {None, next(iter(Ending))}:
            for broken in planned.broken:
                self._print(f"{planned.log}: {broken}")
        if planned.variant is not None:
            self.say(f"{planned.log} leaves open {_VARIANTS}; now: {_VARIANT_WORDS[planned.variant]}")

    def say(self, text: str) -> None:
        if not self._quiet:
            self._print(text)

    def fact(self, fact: Fact) -> None:
        text = sentence(fact)
        if self._quiet or text is None:
            return
        self._first = self._first or fact
        since = (fact.at - self._first.at).total_seconds()
        self._out.print(
            Text.assemble((f"{since:+z8.2f} s  ", "dim"), (f"{fact.service:<12}", "cyan"), text), soft_wrap=True
        )

    def _print(self, text: str) -> None:
        self._out.print(Text(text, style="dim"), soft_wrap=True)


def _show_verdicts(out: Console, result: Replayed) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold", title=_verdicts_title(result), title_justify="left")
    for column in ("DEVICE", "THAT KERNEL", "HOLDFAST", "WHY"):
        table.add_column(column, overflow="fold")
    for one in result.devices:
        why = f"{one.why}\nthat kernel: {one.kernel_why}"
        table.add_row(str(one.function), _fate(one.kernel), _fate(one.holdfast), why)
    out.print()
    out.print(table)


def _verdicts_title(result: Replayed) -> str:
    title = "What became of the devices"
    return (
        title
        if result.variant is None
        else f"{title}, if the link {_VARIANT_WORDS[result.variant].removeprefix('it ')}"
    )


def _fate(fate: Fate) -> Text:
    return Text(fate, style="dim" if fate is Fate.UNKNOWN else "bold green" if fate in _GOOD else "bold red")


def _show_sources(out: Console, result: Replayed) -> None:
    table = Table(
        box=None,
        pad_edge=False,
        header_style="bold",
        title="What was injected, and how it is known",
        title_justify="left",
    )
    table.add_column("KNOWN")
    table.add_column("LINE", justify="right")
    table.add_column("WHAT", overflow="fold")
    last: Source | None = None
    for fact in result.planned:
        title = _SOURCE_TITLES[fact.source] if fact.source is not last else ""
        table.add_row(title, "" if fact.line is None else str(fact.line), fact.what)
        last = fact.source
    out.print()
    out.print(table)
