"""Every setting of every service: from the environment, validated as a whole before anything starts."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from shared.pcie import timing
from shared.protocol import subjects

PREFIX: Final = "HOLDFAST_"
LOG_LEVELS: Final = ("debug", "info", "warning", "error")
_URL_SCHEMES: Final = ("nats", "tls", "ws", "wss")
_FOREIGN: Final = frozenset({"HOLDFAST_HOST", "HOLDFAST_LEASE"})  # the command's: they configure no service
_ALIKE: Final = 0.8  # difflib's ratio from which a name counts as a typing error


class SettingsError(ValueError):
    """One or more settings are wrong; one line each, naming the environment variable and what would do."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What may be configured. Each field is read from HOLDFAST_<NAME>; durations are in seconds."""

    nats_url: str = "nats://127.0.0.1:4222"  # several servers of a cluster: separated by commas
    hosts: tuple[str, ...] = ("lab",)  # the hosts that this process serves, separated by commas
    instance: str = ""  # this process among its peers; "<service>-<pid>" when empty
    allowed_s: float = timing.LEASE_ALLOWED  # silence after which a lease's holder counts as dead
    driver_s: float = 60.0  # bound for one driver callback
    ready_s: float = timing.READY_MAX  # bound for a device to answer after a reset
    link_s: float = timing.LINK_ACTIVE_MAX  # bound for a link to come up
    owner_s: float = 5.0  # silence after which the ownership of a host is lost
    reconcile_s: float = timing.RECONCILE_INTERVAL  # every service reads its registers again
    removal_grace_s: float = timing.REMOVAL_GRACE  # before a link change is believed
    button_s: float = timing.BUTTON_GRACE  # in which a second press of the attention button cancels
    machine_socket: Path = Path(".holdfast/machine.sock")
    ledger: Path = Path(".holdfast/ledger")
    topology: Path = Path(".holdfast/topology.toml")
    log_level: str = "info"

    @classmethod
    def from_env(cls, service: str, environ: Mapping[str, str] | None = None) -> Settings:
        """Read and check the settings. Raises SettingsError with everything that is wrong, not only the first."""
        environ = os.environ if environ is None else environ
        problems = _misspelt(environ)
        values: dict[str, Any] = {}
        for field in msgspec.structs.fields(cls):
            text = environ.get(PREFIX + field.name.upper())
            if text is None:
                continue
            try:
                values[field.name] = _convert(text, field.type)
            except msgspec.ValidationError:
                problems.append(f"{PREFIX}{field.name.upper()}={text!r} is not {_kind(field.type)}")
        settings = cls(**values)
        if not settings.instance:
            settings = msgspec.structs.replace(settings, instance=f"{service}-{os.getpid()}")
        problems += settings.problems()
        if problems:
            raise SettingsError("\n".join(problems))
        return settings

    @property
    def servers(self) -> tuple[str, ...]:
        """The URLs of the NATS servers."""
        return tuple(url.strip() for url in self.nats_url.split(","))

    @property
    def nats_url_shown(self) -> str:
        """The URLs as they may be logged: without user and password."""
        return ",".join(_without_secret(url) for url in self.servers)

    def problems(self) -> list[str]:
        """Return what is wrong with the values and with their relations, one sentence each."""
        found = [problem for url in self.servers for problem in _url_problems(url)]
        found += _name_problems("HOLDFAST_HOSTS", self.hosts) + _name_problems("HOLDFAST_INSTANCE", (self.instance,))
        if not self.hosts:
            found.append("HOLDFAST_HOSTS is empty: name at least one host")
        if len(set(self.hosts)) != len(self.hosts):
            found.append("HOLDFAST_HOSTS names a host twice")
        found += [
            f"{PREFIX}{name.upper()}={value} must be more than 0 and finite"
            for name, value in msgspec.structs.asdict(self).items()
            if isinstance(value, float) and not 0 < value < float("inf")
        ]
        if self.link_s > self.ready_s:
            found.append("HOLDFAST_LINK_S must not exceed HOLDFAST_READY_S: a device is ready only after its link")
        if self.removal_grace_s >= self.reconcile_s:
            found.append("HOLDFAST_REMOVAL_GRACE_S must be below HOLDFAST_RECONCILE_S, or no removal is ever believed")
        if self.log_level not in LOG_LEVELS:
            found.append(f"HOLDFAST_LOG_LEVEL={self.log_level!r} is none of {', '.join(LOG_LEVELS)}")
        return found

    def shown(self) -> dict[str, Any]:
        """Return the settings for people, secrets struck out."""
        shown = msgspec.structs.replace(self, nats_url=self.nats_url_shown)
        plain: dict[str, Any] = msgspec.to_builtins(shown, enc_hook=str)
        return plain


def _convert(text: str, kind: Any) -> Any:
    if kind is Path:
        return Path(text)
    if kind == tuple[str, ...]:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    return msgspec.convert(text, kind, strict=False)


def _kind(kind: Any) -> str:
    return "a number of seconds" if kind is float else f"a {kind.__name__}"


def _misspelt(environ: Mapping[str, str]) -> list[str]:
    known = [PREFIX + field.name.upper() for field in msgspec.structs.fields(Settings)]
    strangers = [name for name in environ if name.startswith(PREFIX) and name not in known and name not in _FOREIGN]
    return [
        f"{name} is not a setting; did you mean {alike[0]}?"
        for name in strangers
        if (alike := difflib.get_close_matches(name, known, n=1, cutoff=_ALIKE))
    ]


def _url_problems(url: str) -> list[str]:
    example = "write it as nats://127.0.0.1:4222"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        return [f"HOLDFAST_NATS_URL={_without_secret(url)!r} is not a URL ({error}); {example}"]
    if parts.scheme not in _URL_SCHEMES or not parts.hostname or port == 0:
        return [f"HOLDFAST_NATS_URL={_without_secret(url)!r} does not name a NATS server; {example}"]
    return []


def _without_secret(url: str) -> str:
    before, at, server = url.rpartition("@")
    scheme, slashes, _ = before.partition("://")
    return f"{scheme}{slashes}…@{server}" if at else url


def _name_problems(variable: str, names: tuple[str, ...]) -> list[str]:
    found = []
    for name in names:
        try:
            subjects.host_name(name)
        except ValueError as error:
            found.append(f"{variable}: {str(error).replace('a host name', 'a name')}")
    return found
