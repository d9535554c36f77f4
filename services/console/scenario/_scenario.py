"""What a scenario is: a machine, what happens to it and when, and what must be told, left and never seen.

Times are seconds. Everything timed happens `at` so many seconds after the start, or `upon` a fact, or when something
else is `done`, which makes it independent of how quick the machine is that runs it; with `at`, so many seconds later.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias

import msgspec

from services.console.replay import Fate
from shared.pcie import Address
from shared.protocol import to_builtins
from shared.protocol.facts import Fact, What
from shared.protocol.requests import Inject

CONTAINS: Final = "contains"  # in expected data: a text that must stand in the value

Seconds: TypeAlias = Annotated[float, msgspec.Meta(ge=0.0)]
Times: TypeAlias = Annotated[int, msgspec.Meta(ge=1)]
Text: TypeAlias = Annotated[str, msgspec.Meta(min_length=1)]


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of a scenario file. An unknown key is a mistake."""


class Pattern(Table, frozen=True):
    """Facts of one kind: of any port or of one, with at least this `data`.

    A table within `data` is part of the one there, a list holds some of the elements, `{contains = "…"}` some of the
    text.
    """

    what: What
    port: Address | None = None
    service: str | None = None
    cause: str | None = None
    data: dict[str, Any] = msgspec.field(default_factory=dict)

    def fits(self, fact: Fact) -> bool:
        """Tell whether the fact is one of these."""
        if fact.what is not self.what or self.port not in {None, fact.port}:
            return False
        if self.service not in {None, fact.service} or self.cause not in {None, fact.cause}:
            return False
        return is_part(self.data, to_builtins(fact.data))

    def __str__(self) -> str:
        """Name it as a report does."""
        about = [f" at {self.port}" if self.port else "", f" by {self.service}" if self.service else ""]
        about += [f" because of {self.cause}" if self.cause else "", f" with {self.data}" if self.data else ""]
        return f"{self.what}{''.join(about)}"


class Expect(Pattern, frozen=True):
    """Facts that must be told: `exactly` so often, or `at_least`; the first of them after the first of another."""

    name: str = ""
    exactly: Times | None = None
    at_least: Times = 1
    after: str | None = None


class Never(Pattern, frozen=True):
    """Facts that must not be told: at all, or `before` or `after` the first of an expected one."""

    before: str | None = None
    after: str | None = None


class Upon(Pattern, frozen=True):
    """The fact that something waits for: the `nth` of its kind since the start."""

    nth: Times = 1


class When(Table, frozen=True):
    """When something happens: `done`: once the timed thing of that `name` has been done, a command has ended."""

    name: str = ""
    at: Seconds = 0.0
    upon: Upon | None = None
    done: str | None = None


class RunCommand(Table, frozen=True):
    """Run `holdfast` with these arguments: it must end with this code, and `says` stand in what it writes.

    `ends_after`: an expected fact that must have been told before it ends, as its outcome was not true earlier.
    """

    argv: Annotated[tuple[Text, ...], msgspec.Meta(min_length=1)]
    exit: Annotated[int, msgspec.Meta(ge=0, le=255)] = 0
    says: tuple[Text, ...] = ()
    ends_after: str | None = None


class Signal(StrEnum):
    """What a process is told."""

    KILL = "KILL"
    TERM = "TERM"
    STOP = "STOP"


class Kill(Table, frozen=True):
    """Send a signal to a service. After `for_s` it goes on, if it was stopped, or is started anew; without: never."""

    service: str
    signal: Signal = Signal.KILL
    for_s: Seconds | None = None


class Restart(Table, frozen=True):
    """Stop a service in order, and start it anew."""

    service: str


Action: TypeAlias = Inject | RunCommand | Kill | Restart


class Timed(msgspec.Struct, frozen=True):
    """One thing that happens."""

    when: When
    action: Action


class Held(Table, frozen=True):
    """A register at the end: bits that must be set, bits that must be clear, or its whole value. Names of `registers`."""

    function: Address
    register: str
    set: tuple[str, ...] = ()
    clear: tuple[str, ...] = ()
    value: int | None = None


class Header(Table, frozen=True):
    """What a scenario is about. `number`: of the 38 in `linux-kernel.md`; `guard`: what in our code it defends."""

    title: Text
    number: Annotated[int, msgspec.Meta(ge=1, le=38)] | None = None
    linux: str = ""
    fixed: str = ""
    guard: str = ""
    tried: str = ""
    timeout_s: Annotated[float, msgspec.Meta(gt=0.0, le=3600.0)] = 60.0
    quiet_s: Annotated[float, msgspec.Meta(gt=0.0, le=60.0)] = 0.4  # without a fact, and nothing open: it is over


class Scenario(msgspec.Struct, frozen=True):
    """A scenario that can be run. `machine` is the text of its topology file, `ports` what stands on it."""

    file: Path
    header: Header
    machine: str
    functions: frozenset[Address]
    settings: dict[str, str]  # environment of the fleet
    timed: tuple[Timed, ...]
    expect: tuple[Expect, ...]
    never: tuple[Never, ...]
    outcome: dict[Address, Fate]
    registers: tuple[Held, ...]


def is_part(wanted: Any, told: Any) -> bool:
    """Tell whether `told` has all of `wanted`."""
    if isinstance(wanted, dict):
        if isinstance(told, str):
            return set(wanted) == {CONTAINS} and str(wanted[CONTAINS]) in told
        return isinstance(told, dict) and all(key in told and is_part(wanted[key], told[key]) for key in wanted)
    if isinstance(wanted, list):
        if not isinstance(told, list | tuple):
            return False
        return all(any(is_part(one, other) for other in told) for one in wanted)
    return bool(wanted == told) and isinstance(wanted, bool) is isinstance(told, bool)
