"""A scenario's file, read strictly: whatever is wrong with it is said at once, each with the table that it is in."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, TypeVar

from services.console._fleet import SERVICES
from services.console.replay import Fate
from shared.pcie import Address, AddressError
from shared.protocol import ProtocolError, from_builtins
from shared.protocol.requests import Inject, Injection
from shared.runtime import Settings, SettingsError

from ._checks import checked
from ._machine import functions, text_of
from ._scenario import Expect, Header, Held, Kill, Never, Restart, RunCommand, Scenario, Timed, When

T = TypeVar("T")

# Of the services, those that say how they behave; where they find each other is the fleet's.
SETTINGS: Final = (
    "allowed_s", "button_s", "driver_s", "link_s", "owner_s", "ready_s", "reconcile_s", "recovery", "removal_grace_s",
    "storm_recoveries", "storm_s",
)  # fmt: skip
_ACTIONS: Final[dict[str, Any]] = {"inject": Inject, "run": RunCommand, "kill": Kill, "restart": Restart}
_WHEN: Final = frozenset(When.__struct_fields__)
_HEADER: Final = frozenset(Header.__struct_fields__)
_TABLES: Final = frozenset(
    {*_HEADER, *_ACTIONS, "topology", "function", "firmware_first", "settings", "expect", "never", "outcome",
     "register"}
)  # fmt: skip
_INJECT_FLOATS: Final = ("after_s", "for_s")


class ScenarioError(ValueError):
    """A file that is no scenario: everything that is wrong with it, one line each."""


def load(path: Path) -> Scenario:
    """Read a scenario's file. Raises ScenarioError, naming the file in every line."""
    try:
        return parse(path.read_text(encoding="utf-8"), path)
    except OSError as error:
        raise ScenarioError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ScenarioError(f"{path} is not text: {error}") from error


def parse(text: str, path: Path) -> Scenario:
    """Read a scenario's text; `path` names it, and is where topologies are looked for. Raises ScenarioError."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ScenarioError(f"{path}: not valid TOML: {error}") from error
    reader = _Reader(document, path)
    scenario = reader.scenario()
    if reader.problems:
        raise ScenarioError("\n".join(f"{path}: {problem}" for problem in reader.problems))
    assert scenario is not None
    return scenario


class _Reader:
    """Reads one document, and collects what is wrong with it."""

    def __init__(self, document: dict[str, Any], path: Path) -> None:
        self.problems: list[str] = []
        self._document = document
        self._path = path

    def scenario(self) -> Scenario | None:
        """Return the scenario; None where something that all else stands on is wrong."""
        unknown = sorted(self._document.keys() - _TABLES)
        self.problems += [f"{name!r} is nothing that a scenario has" for name in unknown]
        header = self._header()
        machine = self._machine()
        timed = tuple(one for name, kind in _ACTIONS.items() for one in self._timed(name, kind))
        expect, never = self._tables("expect", Expect), self._tables("never", Never)
        registers, outcome = self._tables("register", Held), self._outcome()
        settings = self._settings()
        if header is None or machine is None:
            return None
        known = self._try(lambda: functions(machine))
        if known is None:
            return None
        scenario = Scenario(
            file=self._path,
            header=header,
            machine=machine,
            functions=known,
            settings=settings,
            timed=timed,
            expect=expect,
            never=never,
            outcome=outcome,
            registers=registers,
        )
        self.problems += checked(scenario)
        return scenario

    # --- Parts ---

    def _header(self) -> Header | None:
        given = {key: value for key, value in self._document.items() if key in _HEADER}
        known = len(self.problems)
        for key, value in given.items():  # one by one, or the first problem would hide the others
            self._convert({"title": "a title", key: value}, Header, "")
        if "title" not in given:
            self._convert({}, Header, "")
        return self._convert(given, Header, "") if len(self.problems) == known else None

    def _machine(self) -> str | None:
        text = self._try(lambda: text_of(self._document.get("topology"), self._document.get("function"), self._path))
        first = self._document.get("firmware_first")
        if text is None or first is None:
            return text
        if not isinstance(first, bool) or "function" not in self._document:
            self.problems.append("firmware_first is true or false, beside [[function]] tables")
        return f"firmware_first = {str(bool(first)).lower()}\n{text}"

    def _timed(self, name: str, kind: Any) -> Iterable[Timed]:
        for where, table in self._each(name):
            when = self._convert({key: value for key, value in table.items() if key in _WHEN}, When, where)
            action = self._convert({key: value for key, value in table.items() if key not in _WHEN}, kind, where)
            if isinstance(action, Inject):
                self.problems += _negative(action, where)
            if isinstance(action, Kill | Restart) and action.service not in {*SERVICES, "nats"}:
                self.problems.append(f"{where}: no service {action.service!r}; there are {', '.join(SERVICES)}, nats")
            if when is not None and action is not None:
                yield Timed(when, action)

    def _tables(self, name: str, kind: type[T]) -> tuple[T, ...]:
        read = (self._convert(table, kind, where) for where, table in self._each(name))
        return tuple(one for one in read if one is not None)

    def _each(self, name: str) -> Iterable[tuple[str, dict[str, Any]]]:
        tables = self._document.get(name, [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            self.problems.append(f"{name} must be [[{name}]] tables")
            return
        for number, table in enumerate(tables, start=1):
            yield f"[[{name}]] {number}", table

    def _outcome(self) -> dict[Address, Fate]:
        table = self._document.get("outcome", {})
        found: dict[Address, Fate] = {}
        if not isinstance(table, dict):
            self.problems.append("outcome must be an [outcome] table: function = what becomes of it")
            return found
        for name, fate in table.items():
            try:
                found[Address.parse(name)] = Fate(fate)
            except AddressError as error:
                self.problems.append(f"[outcome]: {error}")
            except ValueError:
                self.problems.append(f"[outcome]: {name} cannot become {fate!r}; there are {', '.join(Fate)}")
        return found

    def _settings(self) -> dict[str, str]:
        table = self._document.get("settings", {})
        if not isinstance(table, dict):
            self.problems.append("settings must be a [settings] table")
            return {}
        strangers = sorted(table.keys() - set(SETTINGS))
        self.problems += [f"[settings]: {name!r} is none of {', '.join(SETTINGS)}" for name in strangers]
        environment = {f"HOLDFAST_{name.upper()}": str(value) for name, value in table.items() if name in SETTINGS}
        try:
            Settings.from_env("scenario", environment)
        except SettingsError as error:
            self.problems += [f"[settings]: {line}" for line in str(error).splitlines()]
        return environment

    # --- Trying ---

    def _convert(self, table: Any, kind: type[T], where: str) -> T | None:
        try:
            return from_builtins(table, kind)
        except ProtocolError as error:
            self.problems.append(f"{where}: {error}" if where else str(error))
        return None

    def _try(self, work: Callable[[], T]) -> T | None:
        try:
            return work()
        except ValueError as error:
            self.problems.append(str(error))
        return None


def _negative(inject: Inject, where: str) -> list[str]:
    named = {name: getattr(inject, name) for name in _INJECT_FLOATS}
    wrong = [
        f"{where}: {name} = {value} must be 0 or more, and finite"
        for name, value in named.items()
        if value is not None and not 0 <= value < float("inf")
    ]
    least = 0 if inject.what is Injection.UNSTABLE_LINK else 1  # of that, none means: for ever
    return wrong + ([f"{where}: count = {inject.count} must be at least {least}"] if inject.count < least else [])
