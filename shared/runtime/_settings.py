"""Every setting of every service: from the environment, validated as a whole before anything starts."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from shared.pcie import timing
from shared.protocol import subjects
from shared.protocol.requests import Level

PREFIX: Final = "HOLDFAST_"
LOG_LEVELS: Final = tuple(str(level) for level in Level)
_URL_SCHEMES: Final = ("nats", "tls", "ws", "wss")
_ENCRYPTED: Final = ("tls", "wss")
# They configure no service: the command's, and what the compose files are told.
_FOREIGN: Final = frozenset({"HOLDFAST_HOST", "HOLDFAST_LEASE"}) | {
    f"HOLDFAST_{name}" for name in ("IMAGE", "KEYS", "MONITOR_PORT", "PORT", "PORT_2", "PORT_3")
}
# Where each service serves health and metrics, unless it is told another place.
HEALTH_PORTS: Final = {"machine": 9460, "fabric": 9461, "hotplug": 9462, "aer": 9463, "dpc": 9464, "coordinator": 9465}
_HEALTH_HOST: Final = "127.0.0.1"
_HEALTH_OFF: Final = "off"
_PORT_MAX: Final = 65535
_REPLICAS: Final = (1, 3, 5)  # an even number outlasts no more failures than the odd one below it
_SILENCES: Final = ("allowed_s", "owner_s")  # both end a tenure, and are renewed at a third


class SettingsError(ValueError):
    """One or more settings are wrong; one line each, naming the environment variable and what would do."""


class Tls(StrEnum):
    """Whether the connection to the bus must be encrypted. It is in any case where the server wants it."""

    AUTO = "auto"  # it must, unless all of `nats_url` is this machine
    ON = "on"
    OFF = "off"


class RecoveryPolicy(StrEnum):
    """What a recovery that resets does with drivers that have error callbacks."""

    CALLBACKS = "callbacks"
    REENUMERATE = "reenumerate"  # every driver is unbound and bound again, as Linux 4.18 did


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What may be configured. Each field is read from HOLDFAST_<NAME>; durations are in seconds."""

    nats_url: str = "nats://127.0.0.1:4222"  # several servers of a cluster: separated by commas
    hosts: tuple[str, ...] = ("lab",)  # the hosts that this process serves, separated by commas
    instance: str = ""  # this process among its peers; "<service>-<pid>" when empty
    replicas: int = 1  # of the streams: 1, or 3 or 5 on a cluster; more than 1 makes the two silences 15 s
    allowed_s: float = timing.LEASE_ALLOWED  # silence after which a lease's holder counts as dead
    recovery: RecoveryPolicy = RecoveryPolicy.CALLBACKS
    storm_recoveries: int = 5  # more than so many recoveries of one port ...
    storm_s: float = 60.0  # ... in so many seconds end in quarantine
    driver_s: float = 60.0  # bound for one driver callback
    ready_s: float = timing.READY_MAX  # bound for a device to answer after a reset
    link_s: float = timing.LINK_ACTIVE_MAX  # bound for a link to come up
    vendor_id_s: float = timing.VENDOR_ID_MAX  # bound for a card that was seated to answer, once its link is up
    owner_s: float = 5.0  # silence after which the ownership of a host is lost
    reconcile_s: float = timing.RECONCILE_INTERVAL  # every service reads its registers again
    removal_grace_s: float = timing.REMOVAL_GRACE  # before a link change is believed
    button_s: float = timing.BUTTON_GRACE  # in which a second press of the attention button cancels
    machine_socket: Path = Path(".holdfast/machine.sock")
    ledger: Path = Path(".holdfast/ledger")
    topology: Path = Path(".holdfast/topology.toml")
    log_level: str = "info"
    log_dir: Path | None = None  # a file of the log is kept here too, and rotated
    nats_credential: Path | None = None  # seed file of an nkey, as `holdfast keys init` makes them
    nats_ca: Path | None = None  # whom to believe that a NATS server is ours; without: the system's authorities
    tls: Tls = Tls.AUTO
    health: str = ""  # host:port for health and metrics; port 0: any free one; "off"; empty: the service's own port

    @classmethod
    def from_env(cls, service: str, environ: Mapping[str, str] | None = None) -> Settings:
        """Read and check the settings. Raises SettingsError with everything that is wrong, not only the first."""
        environ = os.environ if environ is None else environ
        problems = _strangers(environ)
        values: dict[str, Any] = {}
        for field in msgspec.structs.fields(cls):
            text = environ.get(PREFIX + field.name.upper())
            if text is None:
                continue
            try:
                values[field.name] = _convert(text, field.type)
            except msgspec.ValidationError:
                problems.append(f"{PREFIX}{field.name.upper()}={text!r} is not {_kind(field.type)}")
        if values.get("replicas", 1) > 1:
            values = dict.fromkeys(_SILENCES, timing.LEASE_ALLOWED_REPLICATED) | values
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

    def health_address(self, service: str) -> tuple[str, int] | None:
        """Return host and port for health and metrics; None where they are switched off."""
        if self.health == _HEALTH_OFF:
            return None
        return _host_and_port(self.health) if self.health else (_HEALTH_HOST, HEALTH_PORTS[service])

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
        if self.storm_recoveries < 1:
            found.append(f"HOLDFAST_STORM_RECOVERIES={self.storm_recoveries} must be at least 1")
        found += self._silence_problems()
        if self.tls is Tls.OFF and any(urlsplit(url).scheme in _ENCRYPTED for url in self.servers):
            found.append("HOLDFAST_TLS=off contradicts HOLDFAST_NATS_URL, which asks for TLS (tls://, wss://)")
        if self.link_s > self.ready_s:
            found.append("HOLDFAST_LINK_S must not exceed HOLDFAST_READY_S: a device is ready only after its link")
        if self.removal_grace_s >= self.reconcile_s:
            found.append("HOLDFAST_REMOVAL_GRACE_S must be below HOLDFAST_RECONCILE_S, or no removal is ever believed")
        if self.log_level not in LOG_LEVELS:
            found.append(f"HOLDFAST_LOG_LEVEL={self.log_level!r} is none of {', '.join(LOG_LEVELS)}")
        if self.health not in {"", _HEALTH_OFF}:
            try:
                _host_and_port(self.health)
            except ValueError as error:
                found.append(f"HOLDFAST_HEALTH={self.health!r}: {error}; write it as 127.0.0.1:9460, or off")
        return found

    def _silence_problems(self) -> list[str]:
        """Say which leases would end before they could be renewed; those that end at once are reported elsewhere."""
        if self.replicas not in _REPLICAS:
            return [f"HOLDFAST_REPLICAS={self.replicas} is none of {', '.join(map(str, _REPLICAS))}"]
        replicated = self.replicas > 1
        least = timing.LEASE_ALLOWED_REPLICATED if replicated else timing.LEASE_ATTEMPT
        why = "a replicated bus may be without its leader for half of that" if replicated else "a renewal may take that"
        return [
            f"{PREFIX}{name.upper()}={value:g} must be at least {least:g} s: {why}"
            for name in _SILENCES
            if 0 < (value := getattr(self, name)) < least
        ]

    def shown(self) -> dict[str, Any]:
        """Return the settings for people, secrets struck out."""
        shown = msgspec.structs.replace(self, nats_url=self.nats_url_shown)
        plain: dict[str, Any] = msgspec.to_builtins(shown, enc_hook=str)
        return plain


def _convert(text: str, kind: Any) -> Any:
    if kind is Path:
        return Path(text)
    if kind == Path | None:
        return Path(text) if text else None
    if kind == tuple[str, ...]:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    return msgspec.convert(text, kind, strict=False)


def _kind(kind: Any) -> str:
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return f"one of {', '.join(kind)}"
    return {float: "a number of seconds", int: "a whole number"}.get(kind, f"a {kind.__name__}")


def _strangers(environ: Mapping[str, str]) -> list[str]:
    """Refuse every name of ours that is no setting: one that is ignored is one that somebody relies on."""
    known = [PREFIX + field.name.upper() for field in msgspec.structs.fields(Settings)]
    strangers = [name for name in environ if name.startswith(PREFIX) and name not in known and name not in _FOREIGN]
    found = []
    for name in strangers:
        alike = difflib.get_close_matches(name, known, n=1)
        found.append(f"{name} is not a setting{f'; did you mean {alike[0]}?' if alike else ''}")
    return found


def _host_and_port(text: str) -> tuple[str, int]:
    """Read `host:port`, an IPv6 address in brackets. Raises ValueError with what is wrong."""
    host, colon, port = text.rpartition(":")
    if not colon or not host:
        raise ValueError("it names no host and port")
    if not port.isdecimal() or int(port) > _PORT_MAX:
        raise ValueError(f"{port!r} is not a port")
    return host.removeprefix("[").removesuffix("]"), int(port)


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
