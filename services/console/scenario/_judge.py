"""Whether a run fulfilled its scenario, and every promise that holds for any run. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Final

import msgspec

from services.console.replay import Fate, holdfast_fate
from shared.pcie import Address, Topology
from shared.pcie import registers as reg
from shared.protocol.fabric import LeaseList
from shared.protocol.facts import Fact
from shared.protocol.records import Device

from ._registers import bits
from ._scenario import Expect, Held, Never, Pattern, RunCommand, Scenario
from .promises import firmware_is_left_alone, p1_mask_before_reset, p2_closed_in_order, p6_one_owner

_KEPT: Final = frozenset({Fate.KEPT, Fate.REBOUND})


class State(msgspec.Struct, frozen=True):
    """What a host looks like at one moment."""

    devices: dict[Address, Device]
    enables: dict[Address, int | None]  # of every hotplug-capable slot: the bits that a lease masks
    config: dict[Address, dict[str, int | None]]  # what software has set up in every function


class Ended(msgspec.Struct, frozen=True):
    """A command that has ended, and when."""

    command: RunCommand
    at: datetime


class Ran(msgspec.Struct, frozen=True):
    """What a run has left behind."""

    everything: tuple[Fact, ...]  # since the fleet was started
    facts: tuple[Fact, ...]  # since the scenario began
    topology: Topology  # every function that was there before or after
    before: State
    after: State
    leases: LeaseList
    registers: tuple[int | None, ...]  # as the scenario asks for
    ended: tuple[Ended, ...]
    problems: tuple[str, ...]  # with what was to happen


def judge(scenario: Scenario, ran: Ran) -> tuple[str, ...]:
    """Return what failed; nothing if the scenario is fulfilled."""
    return (
        *ran.problems,
        *expectations(scenario, ran.facts),
        *_premature(scenario, ran),
        *_outcomes(scenario, ran),
        *(
            problem
            for held, value in zip(scenario.registers, ran.registers, strict=True)
            for problem in _register(held, value)
        ),
        *_promises(ran),
    )


# --- Facts ---


def expectations(scenario: Scenario, facts: Sequence[Fact]) -> list[str]:
    """Return which expected facts are missing, told too often or in the wrong order, and which were forbidden."""
    told = sorted(facts, key=lambda fact: fact.at)
    first = {expect.name: _first(expect, told) for expect in scenario.expect if expect.name}
    wrong: list[str] = []
    for expect in scenario.expect:
        wrong += _expected(expect, told, first)
    for never in scenario.never:
        wrong += _forbidden(never, told, first)
    return wrong


def pending(scenario: Scenario, facts: Sequence[Fact]) -> bool:
    """Tell whether an expected fact may still come, which has not been told as often as it must be."""
    return any(sum(map(one.fits, facts)) < (one.exactly or one.at_least) for one in scenario.expect)


def _expected(expect: Expect, told: Sequence[Fact], first: Mapping[str, Fact | None]) -> Iterator[str]:
    found = [fact for fact in told if expect.fits(fact)]
    if expect.exactly is not None and len(found) != expect.exactly:
        yield f"expected exactly {expect.exactly}, told {len(found)} times: {expect}"
    elif len(found) < expect.at_least:
        yield f"expected{f' at least {expect.at_least}' if expect.at_least > 1 else ''}, told {len(found)} times: {expect}"
    earlier = first.get(expect.after) if expect.after else None
    if found and earlier is not None and found[0].at <= earlier.at:
        yield f"expected after {expect.after!r}, told before it: {expect}"


def _forbidden(never: Never, told: Sequence[Fact], first: Mapping[str, Fact | None]) -> Iterator[str]:
    begin = first.get(never.after) if never.after else None
    end = first.get(never.before) if never.before else None
    for fact in told:
        late_enough = never.after is None or (begin is not None and fact.at > begin.at)
        early_enough = end is None or fact.at < end.at
        if never.fits(fact) and late_enough and early_enough:
            bounds = f" before {never.before!r}" * bool(never.before) + f" after {never.after!r}" * bool(never.after)
            yield f"never{bounds}, and yet told: {never}: {fact.data}"
            return


def _premature(scenario: Scenario, ran: Ran) -> Iterator[str]:
    bounds = {expect.name: expect for expect in scenario.expect if expect.name}
    told = sorted(ran.facts, key=lambda fact: fact.at)
    for ended in ran.ended:
        if ended.command.ends_after is None:
            continue
        fact = _first(bounds[ended.command.ends_after], told)
        if fact is None or fact.at > ended.at:
            yield f"holdfast {' '.join(ended.command.argv)} ended before {ended.command.ends_after!r} was told"


def _first(pattern: Pattern, told: Sequence[Fact]) -> Fact | None:
    return next((fact for fact in told if pattern.fits(fact)), None)


# --- Functions and registers ---


def _outcomes(scenario: Scenario, ran: Ran) -> Iterator[str]:
    """Judge every function: as the scenario says, and where it says nothing: nobody has touched it (P3)."""
    before, after = ran.before.devices, ran.after.devices
    for function in sorted({*before, *after, *scenario.outcome}):
        was = before.get(function)
        seated = was is not None and was.present
        wanted = scenario.outcome.get(function, Fate.KEPT if seated else None)
        got, why = holdfast_fate(function, was, after.get(function), ran.facts)
        if wanted is None:
            if got is Fate.ADDED:
                yield f"{function}: nobody expected it, and it is {got} ({why})"
            continue
        if got is not wanted:
            yield f"{function}: expected {wanted}, is {got} ({why})"
        elif got in _KEPT:
            yield from _config(function, ran)


def _config(function: Address, ran: Ran) -> Iterator[str]:
    was, now = ran.before.config.get(function, {}), ran.after.config.get(function, {})
    for name, value in was.items():
        if now.get(name) != value:
            yield f"P3: {name} of {function} is {now.get(name)}, was {value}"


def _register(held: Held, value: int | None) -> Iterator[str]:
    where = f"{held.register} of {held.function}"
    if value is None:
        yield f"{where}: nothing answers"
        return
    known = bits(held.register)
    yield from (f"{where} is {value:#x}: {name} is not set" for name in held.set if not value & known[name])
    yield from (f"{where} is {value:#x}: {name} is set" for name in held.clear if value & known[name])
    if held.value is not None and value != held.value:
        yield f"{where} is {value:#x}, expected {held.value:#x}"


# --- What holds for any run ---


def _promises(ran: Ran) -> Iterator[str]:
    yield from p1_mask_before_reset(ran.everything, ran.topology)
    yield from p2_closed_in_order(ran.everything, ran.topology)
    yield from p6_one_owner(ran.everything, ran.topology)
    yield from firmware_is_left_alone(ran.everything, ran.topology)
    yield from (f"P2: lease {lease.id} on {lease.port} is still open" for lease in ran.leases.leases)
    held_down = {
        function.address
        for quarantine in ran.leases.quarantines
        if ran.topology.find(quarantine.port) is not None
        for function in ran.topology.domain(quarantine.port)
    }
    for port, found in ran.before.enables.items():
        now = ran.after.enables.get(port)
        if found is None or now is None or port in held_down:
            continue
        if now != found:
            yield f"P2: slot {port} has the enables {now:#06x}, found were {found:#06x}; nobody holds a lease on it"


def masked_bits(control: int | None) -> int | None:
    """Return the enables of a Slot Control value that a lease masks."""
    return None if control is None else control & int(reg.SLOT_MASKED)
