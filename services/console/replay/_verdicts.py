"""What became of each device: with the kernel of the log, and with Holdfast. Two decision tables, no I/O."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec

from services.console.kernel_log import Decided, Decision, Found, Instance, KernelLog, LogEvent
from shared.pcie import Address
from shared.protocol.facts import Fact, What
from shared.protocol.records import Device, Verdict

from ._facts import episodes, is_hardware


class Fate(StrEnum):
    """What became of a device (DESIGN 8)."""

    KEPT = "kept"
    ADDED = "added"
    LOST = "lost"  # gone, although the reset worked
    REMOVED = "removed"
    REPLACED = "replaced"
    REBOUND = "rebound"
    QUARANTINED = "quarantined"
    FAILED = "failed"
    UNKNOWN = "unknown"


class Judged(msgspec.Struct, frozen=True):
    """One device, judged twice. `why` is Holdfast's reason, `kernel_why` quotes the log."""

    function: Address
    kernel: Fate
    kernel_why: str
    holdfast: Fate
    why: str


_GIVES_UP: Final = frozenset({Decided.LINK_DOWN, Decided.CARD_NOT_PRESENT})
_MARK_WORDS: Final = {
    Decided.REMOVED: "device removed",
    Decided.FAILED: "recovery failed",
    Decided.RECOVERED: "recovery successful",
}
_OF_VERDICT: Final[dict[str, Fate]] = {
    Verdict.KEPT: Fate.KEPT,
    Verdict.REBOUND: Fate.REBOUND,
    Verdict.REPLACED: Fate.REPLACED,
    Verdict.REMOVED: Fate.REMOVED,
    Verdict.FAILED: Fate.FAILED,
    Verdict.QUARANTINED: Fate.QUARANTINED,
}


# --- The kernel of the log ---


def kernel_fate(log: KernelLog, function: Address, ports: tuple[Address, ...]) -> tuple[Fate, str]:
    """Judge what that kernel did to `function`, which hangs below `ports` (nearest first).

    | taken out | link came back | recovery   | fate    |
    |-----------|----------------|------------|---------|
    | yes       | no             | any        | removed |
    | yes       | yes, or unsaid | any        | lost    |
    | no        | any            | failed     | failed  |
    | no        | any            | successful | kept    |
    | no        | any            | unsaid     | unknown |
    """
    struck = next((event for event in log.events if is_hardware(event)), None)
    decisions = [e for e in log.events if isinstance(e, Decision) and struck is not None and e.line > struck.line]
    gave_up = next((e for e in decisions if e.what in _GIVES_UP and e.function in ports), None)
    removed = next((e for e in decisions if e.what is Decided.REMOVED and _means(e, function)), None)
    no_link = next((e for e in decisions if e.what is Decided.NO_LINK and e.function in ports), None)
    failed = next((e for e in decisions if e.what is Decided.FAILED and e.function in ports), None)
    recovered = next((e for e in decisions if e.what is Decided.RECOVERED and e.function in ports), None)
    why = []
    if gave_up is not None and struck is not None:
        why.append(f"hotplug gave up ({gave_up.what}){_after(struck.at, gave_up.at)} (line {gave_up.line})")
    if removed is not None:
        why.append(f"removed (line {removed.line})")
    if no_link is not None:
        why.append(f"the link did not come back (line {no_link.line})")
    if recovered is not None:
        why.append(f"device recovery successful (line {recovered.line})")
    if failed is not None:
        why.append(f"device recovery failed (line {failed.line})")
    gone = removed if removed is not None else gave_up
    if gone is not None:
        why += _back_again(log, function, gone)
        return (Fate.LOST if no_link is None else Fate.REMOVED), "; ".join(why)
    if failed is not None:
        return Fate.FAILED, "; ".join(why)
    if recovered is not None:
        return Fate.KEPT, "; ".join(why)
    return Fate.UNKNOWN, "; ".join(why) or "the log does not say"


def kernel_marks(log: KernelLog) -> tuple[tuple[float, str], ...]:
    """Return when, in seconds since the last failure began, that kernel gave up, removed, and ended its recovery."""
    struck = _last_strike(log)
    if struck is None or struck.at is None:
        return ()
    marks = []
    for ends in (_GIVES_UP, {Decided.REMOVED}, {Decided.FAILED, Decided.RECOVERED}):
        first = next(
            (e for e in log.events if isinstance(e, Decision) and e.what in ends and e.line > struck.line), None
        )
        if first is not None and first.at is not None and first.at >= struck.at:
            marks.append((round(first.at - struck.at, 3), _MARK_WORDS.get(first.what, str(first.what))))
    return tuple(marks)


def _last_strike(log: KernelLog) -> LogEvent | None:
    """Return what the last failure that is replayed began with."""
    first = max((episode.first for episode in episodes(log)), default=None)
    return next((event for event in log.events if event.line == first), None)


def _means(decision: Decision, function: Address) -> bool:
    named = decision.function
    return named == function or (decision.card and (named.domain, named.bus) == (function.domain, function.bus))


def _after(start: float | None, at: float | None) -> str:
    return "" if start is None or at is None else f" {at - start:.1f} s after the error"


def _back_again(log: KernelLog, function: Address, gone: Decision) -> list[str]:
    found = next(
        (e for e in log.events if isinstance(e, Found) and e.function == function and e.line > gone.line), None
    )
    if found is None:
        return []
    name = next((e for e in log.events if isinstance(e, Instance) and e.function == function), None)
    renamed = "" if name is None else f" as {name.name}"
    return [f"added again{renamed} (line {found.line})"]


# --- Holdfast ---


def holdfast_fate(
    function: Address, before: Device | None, after: Device | None, facts: tuple[Fact, ...]
) -> tuple[Fate, str]:
    """Judge by the registry before and after, and by what the recoveries said.

    | before  | after                  | the last recovery       | fate                       |
    |---------|------------------------|-------------------------|----------------------------|
    | absent  | present                | any                     | added                      |
    | present | absent                 | kept, rebound           | lost                       |
    | present | absent                 | failed                  | failed                     |
    | present | absent                 | else, or none           | removed                    |
    | present | another identity       | any                     | replaced                   |
    | present | same, later by rebinds | any                     | rebound                    |
    | present | same, later generation | any                     | lost (removed and added)   |
    | present | same generation        | any                     | as it says; none: kept     |
    | absent  | absent                 | any                     | as it says; none: unknown  |
    """
    said = _last_verdict(function, facts)
    was, now = before is not None and before.present, after is not None and after.present
    if not was and now:
        return Fate.ADDED, "it was not registered before, and is now"
    if not was:
        # No hotplug slot above: nobody registers the device, the recovery alone judges it.
        return (Fate.UNKNOWN, "nobody registered it") if said is None else (said, _story(function, facts))
    assert before is not None
    if not now:
        if said in {Fate.KEPT, Fate.REBOUND}:
            return Fate.LOST, "the recovery worked, and yet it is gone"
        fate = Fate.FAILED if said is Fate.FAILED else Fate.REMOVED
        return fate, "; ".join(part for part in (_removal(function, facts), _story(function, facts)) if part)
    assert after is not None
    if after.identity != before.identity:
        differs = ", ".join(sorted(before.identity.differences(after.identity)))
        return Fate.REPLACED, f"another device answers: {differs} differ"
    if not _removal(function, facts) and (rebinds := _rebinds(before, after)):
        said_so = (
            f"its driver was bound anew {'once' if rebinds == 1 else f'{rebinds} times'}, and nothing else changed"
        )
        return Fate.REBOUND, "; ".join(part for part in (said_so, _story(function, facts)) if part)
    if after.generation != before.generation:
        return Fate.LOST, f"removed and added again: generation {before.generation}, now {after.generation}"
    if said is Fate.FAILED:
        return Fate.FAILED, "; ".join(part for part in ("the recovery failed", _story(function, facts)) if part)
    if said is Fate.QUARANTINED:
        return said, "; ".join(part for part in (*_held_down(facts), _story(function, facts)) if part)
    same = f"the same identity, and generation {after.generation} before and after"
    return (said or Fate.KEPT), "; ".join(part for part in (same, _story(function, facts)) if part)


def _rebinds(before: Device, after: Device) -> int:
    """Return how often the driver was bound anew, if that alone is why the generation grew; else 0."""
    rebinds = len(set(after.rebound) - set(before.rebound))
    return rebinds if after.generation == before.generation + rebinds else 0


def _last_verdict(function: Address, facts: tuple[Fact, ...]) -> Fate | None:
    """Return what the last recovery that names `function` said of it."""
    for fact in reversed(facts):
        if fact.what is What.RECOVERY_CLOSED and str(function) in fact.data.get("verdicts", {}):
            return _OF_VERDICT.get(str(fact.data["verdicts"][str(function)]))
    return None


def _removal(function: Address, facts: tuple[Fact, ...]) -> str:
    """Say why hotplug removed it, after a recovery that failed or without one."""
    removed = next((f for f in facts if f.what is What.DEVICE_REMOVED and _names(f, function)), None)
    return "" if removed is None else f"removed by hotplug: {removed.data.get('why', 'unsaid')}"


def _held_down(facts: tuple[Fact, ...]) -> list[str]:
    """Say which ports are held down, and why."""
    return [
        f"{fact.port} is held down: {fact.data.get('why')}" for fact in facts if fact.what is What.QUARANTINE_ENTERED
    ]


def _names(fact: Fact, function: Address) -> bool:
    return str(fact.data.get("function")) == str(function)


def _story(function: Address, facts: tuple[Fact, ...]) -> str:
    """Tell in one line how it came to this: what the driver voted, and how long hotplug was masked."""
    votes = [
        f"{fact.data['step']} {fact.data['vote']}" + (f" after {took:.2f} s" if (took := _took(fact)) >= 0.01 else "")  # noqa: PLR2004 - below a hundredth of a second is no wait
        for fact in facts
        if fact.what is What.RECOVERY_VOTE and _names(fact, function) and fact.data.get("driver", "") is not None
        if fact.data.get("step") in {"error_detected", "slot_reset"}
    ]
    parts = [f"its driver: {', '.join(votes)}"] if votes else []
    masked = [fact.at for fact in facts if fact.what is What.LEASE_MASKED]
    unmasked = [fact.at for fact in facts if fact.what is What.LEASE_UNMASKED]
    if masked and unmasked:
        parts.append(f"hotplug was masked for {(unmasked[-1] - masked[0]).total_seconds():.1f} s")
    return "; ".join(parts)


def _took(fact: Fact) -> float:
    took = fact.data.get("took_s", 0.0)
    return float(took) if isinstance(took, int | float) else 0.0
