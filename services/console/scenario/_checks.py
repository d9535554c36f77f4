"""What no run of a scenario could ever fulfil, found before anything is started. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec

from shared.pcie import Address
from shared.protocol import ProtocolError, from_builtins
from shared.protocol.fact_data import DATA
from shared.protocol.requests import Inject

from ._registers import NAMES, bits
from ._scenario import Held, Never, Pattern, RunCommand, Scenario, Timed

_FINITE: Final = float("inf")


def checked(scenario: Scenario) -> list[str]:
    """Return everything that is wrong with a scenario whose tables are well formed."""
    wrong: list[str] = []
    if not (scenario.expect or scenario.outcome or scenario.registers or _commands(scenario)):
        wrong.append("it expects nothing: write [[expect]], [outcome], [[register]] or [[run]] tables")
    for where, pattern in _patterns(scenario):
        wrong += [f"{where}: {problem}" for problem in _impossible(pattern, scenario.functions)]
    wrong += _order(scenario)
    wrong += _sequence(scenario)
    wrong += _contradictions(scenario)
    for number, timed in enumerate(scenario.timed, start=1):
        wrong += [f"timed table {number} ({_kind(timed)}): {problem}" for problem in _unhappening(timed, scenario)]
    for function in scenario.outcome:
        if function not in scenario.functions:
            wrong.append(f"[outcome]: {_stranger(function)}")
    for number, held in enumerate(scenario.registers, start=1):
        wrong += [f"[[register]] {number}: {problem}" for problem in _unreadable(held, scenario.functions)]
    return wrong


# --- Facts ---


def _patterns(scenario: Scenario) -> Iterator[tuple[str, Pattern]]:
    for name, patterns in (("expect", scenario.expect), ("never", scenario.never)):
        for number, pattern in enumerate(patterns, start=1):
            yield f"[[{name}]] {number}", pattern
    for number, timed in enumerate(scenario.timed, start=1):
        if timed.when.upon is not None:
            yield f"timed table {number} ({_kind(timed)}), upon", timed.when.upon


def _impossible(pattern: Pattern, functions: frozenset[Address]) -> Iterator[str]:
    if pattern.port is not None and pattern.port not in functions:
        yield _stranger(pattern.port)
    fields = {field.encode_name: field for field in msgspec.structs.fields(DATA[pattern.what])}
    for name, wanted in pattern.data.items():
        field = fields.get(name)
        if field is None:
            yield f"a fact {pattern.what} has no {name!r}; it has {', '.join(fields)}"
        elif not _nested(wanted):
            try:
                from_builtins(wanted, field.type)
            except ProtocolError as error:
                yield f"{name} of a fact {pattern.what} cannot be {wanted!r}: {error}"


def _nested(wanted: Any) -> bool:
    """Tell whether only a part of the value is named, which has no type of its own."""
    return isinstance(wanted, dict) or (isinstance(wanted, list) and any(isinstance(one, dict) for one in wanted))


def _order(scenario: Scenario) -> Iterator[str]:
    names = Counter(one.name for one in scenario.expect if one.name)
    yield from (f"two [[expect]] tables are called {name!r}" for name, count in names.items() if count > 1)
    after = {one.name: one.after for one in scenario.expect if one.name}
    for number, expect in enumerate(scenario.expect, start=1):
        if expect.after is not None and expect.after not in names:
            yield f"[[expect]] {number}: after {expect.after!r}: no [[expect]] is called that"
        elif _comes_after_itself(expect.name, after):
            yield f"[[expect]] {number}: {expect.name!r} would have to come after itself"
        if expect.exactly is not None and expect.exactly < expect.at_least:
            yield f"[[expect]] {number}: exactly {expect.exactly}, and at least {expect.at_least}?"
    for number, never in enumerate(scenario.never, start=1):
        for bound in (never.before, never.after):
            if bound is not None and bound not in names:
                yield f"[[never]] {number}: no [[expect]] is called {bound!r}"


def _sequence(scenario: Scenario) -> Iterator[str]:
    names = Counter(timed.when.name for timed in scenario.timed if timed.when.name)
    yield from (f"two timed tables are called {name!r}" for name, count in names.items() if count > 1)
    after = {timed.when.name: timed.when.done for timed in scenario.timed if timed.when.name}
    for number, timed in enumerate(scenario.timed, start=1):
        if timed.when.done is not None and timed.when.done not in names:
            yield f"timed table {number} ({_kind(timed)}): done {timed.when.done!r}: no timed table is called that"
        elif _comes_after_itself(timed.when.name, after):
            yield f"timed table {number} ({_kind(timed)}): {timed.when.name!r} would have to come after itself"


def _comes_after_itself(name: str, after: dict[str, str | None]) -> bool:
    seen: set[str] = set()
    at: str | None = after.get(name) if name else None
    while at is not None and at not in seen:
        if at == name:
            return True
        seen.add(at)
        at = after.get(at)
    return False


def _contradictions(scenario: Scenario) -> Iterator[str]:
    for number, never in enumerate(scenario.never, start=1):
        if never.before is not None or never.after is not None:
            continue
        for other, expect in enumerate(scenario.expect, start=1):
            if _covers(never, expect):
                yield f"[[never]] {number} forbids what [[expect]] {other} expects: {expect}"
        for timed in scenario.timed:
            if timed.when.upon is not None and _covers(never, timed.when.upon):
                yield f"[[never]] {number} forbids what {_kind(timed)} waits for: {timed.when.upon}"


def _covers(never: Never, other: Pattern) -> bool:
    """Tell whether every fact that fits `other` fits `never`."""
    if never.what is not other.what or never.port not in {None, other.port}:
        return False
    if never.service not in {None, other.service} or never.cause not in {None, other.cause}:
        return False
    return all(other.data.get(name) == wanted for name, wanted in never.data.items())


# --- What happens ---


def _unhappening(timed: Timed, scenario: Scenario) -> Iterator[str]:
    if not timed.when.at < _FINITE:
        yield "at must be finite"
    if timed.when.at >= scenario.header.timeout_s:
        yield f"at {timed.when.at:g} s is after the end: timeout_s is {scenario.header.timeout_s:g}"
    if isinstance(timed.action, Inject):
        for function in (timed.action.target, timed.action.source):
            if function is not None and function not in scenario.functions:
                yield _stranger(function)
    elif isinstance(timed.action, RunCommand):
        bound = timed.action.ends_after
        if bound is not None and bound not in {expect.name for expect in scenario.expect}:
            yield f"ends_after {bound!r}: no [[expect]] is called that"


def _commands(scenario: Scenario) -> Iterable[RunCommand]:
    return [timed.action for timed in scenario.timed if isinstance(timed.action, RunCommand)]


def _kind(timed: Timed) -> str:
    action = timed.action
    return f"inject {action.what}" if isinstance(action, Inject) else type(action).__name__.lower()


# --- What is left ---


def _unreadable(held: Held, functions: frozenset[Address]) -> Iterator[str]:
    if held.function not in functions:
        yield _stranger(held.function)
    if held.register not in NAMES:
        yield f"no register is called {held.register!r}"
        return
    known = bits(held.register)
    for name in (*held.set, *held.clear):
        if name not in known:
            yield f"{held.register} has no bit {name!r}; it has {', '.join(known) or 'none with a name'}"
    for name in set(held.set) & set(held.clear):
        yield f"{name} cannot be set and clear"
    if not held.set and not held.clear and held.value is None:
        yield "say what it holds: set, clear or value"


def _stranger(function: Address) -> str:
    return f"there is no {function} in the topology"
