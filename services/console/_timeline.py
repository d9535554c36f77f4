"""One recovery as a drawing: who waited for what, and how long, to scale. Pure: facts in, text or trace events out.

The stamps of facts are for people (`Fact.at`), and this is for people. They decide nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import zip_longest
from typing import Any, Final, TypeAlias

import msgspec

from shared.protocol.facts import Fact, What

from ._lease_facts import concerned

_LABEL_MAX: Final = 34
_CHART_MIN: Final = 20
_TEXT_MIN: Final = 12
_TICKS: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0)
_COLUMNS_PER_TICK: Final = 10
_MICROSECONDS: Final = 1_000_000

_OPENS: Final = {
    What.LEASE_OPENED: (What.LEASE_CLOSED, "lease"),
    What.LEASE_MASKED: (What.LEASE_UNMASKED, "mask"),
    What.CONTAINMENT_ENTERED: (What.CONTAINMENT_RELEASED, "containment"),
    What.LINK_DOWN: (What.LINK_UP, "link down"),
}
_MARKED: Final = {
    What.ERROR_CORRECTABLE: "error",
    What.ERROR_NONFATAL: "error",
    What.ERROR_FATAL: "error",
    What.DEVICE_KEPT: "kept",
    What.DEVICE_REBOUND: "rebound",
    What.DEVICE_REMOVED: "removed",
    What.DEVICE_ADDED: "added",
    What.SLOT_DEFERRED: "hotplug defers",
    What.SLOT_IGNORED: "hotplug ignores",
    What.RECOVERY_JOINED: "joined",
    What.RECOVERY_ESCALATED: "escalated",
    What.RECOVERY_BROKEN: "broken",
    What.LEASE_ADOPTED: "adopted",
    What.LEASE_FIRMWARE_ANSWERED: "firmware told",
    What.QUARANTINE_ENTERED: "quarantined",
    What.QUARANTINE_LIFTED: "quarantine lifted",
}
_DONE: Final = "closed"  # the last step is an end, not a stretch

_Since: TypeAlias = Callable[[datetime], float]


class Bar(msgspec.Struct, frozen=True):
    """A stretch of time in seconds since the timeline's start; `end` equal to `start`: a moment."""

    start: float
    end: float
    text: str = ""
    open: bool = False  # not over yet when the facts end


class Lane(msgspec.Struct, frozen=True):
    """One row of the drawing."""

    name: str
    bars: tuple[Bar, ...]


class Timeline(msgspec.Struct, frozen=True):
    """One recovery. Lanes stand in the order in which they begin, the lease and its mask first."""

    lease: str
    port: str
    started: datetime
    length_s: float
    lanes: tuple[Lane, ...]


def build(facts: Sequence[Fact], lease: str) -> Timeline | None:
    """Return the timeline of `lease`; None if no fact names it."""
    own = sorted((fact for fact in facts if fact.lease == lease), key=lambda fact: fact.at)
    if not own:
        return None
    told = concerned(facts, own)
    start, end = told[0].at, told[-1].at

    def since(at: datetime) -> float:
        return (at - start).total_seconds()

    length = max(since(end), 1e-6)
    lanes = _paired(told, since, length) + _votes(told, since) + _steps(own, since, length) + _marks(told, since)
    port = next((fact.port for fact in own if fact.what is What.LEASE_OPENED), own[0].port)
    return Timeline(lease=lease, port=str(port), started=start, length_s=round(length, 6), lanes=tuple(_ordered(lanes)))


def beside(timeline: Timeline, name: str, marks: Sequence[tuple[float, str]]) -> Timeline:
    """Add a row of moments, one lane for each: (seconds since the start, text). The time grows as they need."""
    lanes = tuple(Lane(f"{name}: {text}", (Bar(at, at),)) for at, text in marks)
    length = max([timeline.length_s, *(at for at, _ in marks)])
    return msgspec.structs.replace(timeline, length_s=length, lanes=timeline.lanes + lanes)


def _paired(facts: list[Fact], since: _Since, length: float) -> list[Lane]:
    """Make a bar of every beginning and its end, one lane per port and kind."""
    bars: dict[tuple[str, str], list[Bar]] = {}
    running: dict[tuple[What, str], Fact] = {}
    for fact in facts:
        port = str(fact.port)
        if fact.what in _OPENS:
            for subject in _subjects(fact):
                running.setdefault((_OPENS[fact.what][0], subject), fact)
        elif (begun := running.pop((fact.what, port), None)) is not None:
            kind = _OPENS[begun.what][1]
            bars.setdefault((kind, port), []).append(Bar(since(begun.at), since(fact.at), _reason(begun)))
    for (_, port), begun in running.items():
        kind = _OPENS[begun.what][1]
        bars.setdefault((kind, port), []).append(Bar(since(begun.at), length, _reason(begun), open=True))
    return [Lane(f"{kind} {port}", tuple(found)) for (kind, port), found in bars.items()]


def _subjects(fact: Fact) -> list[str]:
    """Return whom a beginning is about: one mask may begin for many slots, and each ends by itself."""
    slots = fact.data.get("slots") if fact.what is What.LEASE_MASKED else None
    return [str(slot["port"]) for slot in slots] if slots else [str(fact.port)]


def _reason(fact: Fact) -> str:
    return str(fact.data.get("reason", "")) if fact.what is What.CONTAINMENT_ENTERED else ""


def _votes(facts: list[Fact], since: _Since) -> list[Lane]:
    """Make a bar of every driver callback: it ends with its vote."""
    lanes: dict[str, list[Bar]] = {}
    for fact in facts:
        if fact.what is not What.RECOVERY_VOTE or fact.data.get("driver", "") is None:
            continue  # a function without a driver votes at once, and for nothing
        took = fact.data.get("took_s", 0.0)
        end = since(fact.at)
        name = f"{fact.data.get('function', fact.port)} {fact.data.get('step', '')}"
        bar = Bar(max(0.0, end - float(took or 0.0)), end, str(fact.data.get("vote", "")))
        lanes.setdefault(name, []).append(bar)
    return [Lane(name, tuple(bars)) for name, bars in lanes.items()]


def _steps(own: list[Fact], since: _Since, length: float) -> list[Lane]:
    """Make a bar of every step of the recovery: it lasts until the next one begins."""
    told = [fact for fact in own if fact.what in {What.RECOVERY_STEP, What.RECOVERY_CLOSED}]
    lanes: dict[str, list[Bar]] = {}
    for fact, after in zip_longest(told, told[1:]):
        step = str(fact.data.get("step", ""))
        if fact.what is What.RECOVERY_CLOSED or step == _DONE:
            continue
        end = length if after is None else since(after.at)
        lanes.setdefault(f"step {step}", []).append(Bar(since(fact.at), end, open=after is None))
    return [Lane(name, tuple(bars)) for name, bars in lanes.items()]


def _marks(facts: list[Fact], since: _Since) -> list[Lane]:
    lanes: dict[str, list[Bar]] = {}
    for fact in facts:
        if fact.what in _MARKED:
            bar = Bar(since(fact.at), since(fact.at), ", ".join(map(str, fact.data.get("names", ()))))
            whom = fact.data.get("function", fact.port)
            lanes.setdefault(f"{_MARKED[fact.what]} {whom}", []).append(bar)
    return [Lane(name, tuple(bars)) for name, bars in lanes.items()]


def _ordered(lanes: list[Lane]) -> list[Lane]:
    first = {"lease": 0, "mask": 1}
    return sorted(lanes, key=lambda lane: (first.get(lane.name.split(" ", maxsplit=1)[0], 2), lane.bars[0].start))


# --- Drawing ---


def draw(timeline: Timeline, width: int, *, ascii_only: bool = False) -> list[str]:
    """Draw the timeline in lines of at most `width` columns: label, bars to scale, duration and result."""
    line, moment, cut = ("=", "*", ">") if ascii_only else ("━", "◆", "╸")
    room = max(_TEXT_MIN, (width - _CHART_MIN - 4) // 2)
    rows = [(_short(lane.name, min(_LABEL_MAX, room)), lane, _short(_result(lane), room)) for lane in timeline.lanes]
    label = max((len(name) for name, _, _ in rows), default=0)
    result = max((len(text) for _, _, text in rows), default=0)
    chart = max(_CHART_MIN, width - label - result - 4)
    lines = [f"{'':{label}}  {_axis(timeline.length_s, chart)}"]
    for name, lane, text in rows:
        cells = [" "] * chart
        for bar in lane.bars:
            first, last = _columns(bar, timeline.length_s, chart)
            cells[first:last] = (moment if bar.end == bar.start else line) * (last - first)
            if bar.open:
                cells[last - 1] = cut
        lines.append(f"{name:{label}}  {''.join(cells)}  {text}".rstrip()[:width])
    return lines


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 2] + ".."


def _columns(bar: Bar, length: float, chart: int) -> tuple[int, int]:
    first = min(chart - 1, int(bar.start / length * chart))
    last = max(first + 1, min(chart, math.ceil(bar.end / length * chart)))
    return first, first + 1 if bar.end == bar.start else last


def _result(lane: Lane) -> str:
    took = sum(bar.end - bar.start for bar in lane.bars)
    texts = dict.fromkeys(bar.text for bar in lane.bars if bar.text)
    if all(bar.end == bar.start for bar in lane.bars):
        when = f"at {seconds(lane.bars[0].start)}"
    else:
        when = seconds(took) + (", not over" if lane.bars[-1].open else "")
    return " ".join((when, *texts))


def seconds(value: float) -> str:
    """Write a duration with the digits that matter."""
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s"


def _axis(length: float, chart: int) -> str:
    """Write seconds above the chart, as many as fit."""
    tick = next((step for step in _TICKS if length / step * _COLUMNS_PER_TICK <= chart), length)
    cells = [" "] * (chart + _COLUMNS_PER_TICK)
    for number in range(int(length / tick) + 1):
        text = f"{number * tick:g} s"
        at = int(number * tick / length * chart)
        if at + len(text) <= chart:
            cells[at : at + len(text)] = text
    return "".join(cells).rstrip()


# --- Chrome trace ---


def chrome_trace(timeline: Timeline) -> dict[str, Any]:
    """Return the timeline in the Trace Event Format, which chrome://tracing and Perfetto read. Times in µs."""
    events: list[dict[str, Any]] = [
        {"name": "process_name", "ph": "M", "pid": 1, "tid": 0, "args": {"name": f"{timeline.port} {timeline.lease}"}}
    ]
    for number, lane in enumerate(timeline.lanes, start=1):
        events.append({"name": "thread_name", "ph": "M", "pid": 1, "tid": number, "args": {"name": lane.name}})
        for bar in lane.bars:
            event: dict[str, Any] = {
                "name": lane.name,
                "cat": lane.name.split(" ", maxsplit=1)[0],
                "pid": 1,
                "tid": number,
                "ts": round(bar.start * _MICROSECONDS),
                "args": {"text": bar.text} if bar.text else {},
            }
            if bar.end == bar.start:
                event |= {"ph": "i", "s": "t"}
            else:
                event |= {"ph": "X", "dur": round((bar.end - bar.start) * _MICROSECONDS)}
            events.append(event)
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"started": timeline.started.isoformat()}}
