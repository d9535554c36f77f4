"""Whether a service may be relied on: the bus is connected, each host's owner is known, its registers have been read.

Nothing is pushed here. What is true is asked for at the moment of the question, so no answer is older than its
question: an owner whose time has run out, or a bus that went away a moment ago, cannot still look well.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

import msgspec

from ._context import Context
from ._ownership import Ownership
from .bus import Bus


class Role(StrEnum):
    """What this process is to a host."""

    UNKNOWN = "unknown"  # nobody can tell at the moment who acts for it
    STANDBY = "standby"  # another instance owns it, and is known by name
    OWNER = "owner"
    SERVING = "serving"  # the service owns nothing: there is one for each host, and this is it


class HostHealth(msgspec.Struct, frozen=True, kw_only=True):
    """One host as this process sees it."""

    role: Role
    owner: str | None = None
    waiting: str | None = None  # for what, before it can be relied on; a standby waits for nothing


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of /readyz. `reasons` says why not, one sentence each; ready when there is none."""

    ready: bool
    service: str
    instance: str
    bus: bool
    hosts: Mapping[str, HostHealth]
    reasons: tuple[str, ...]


def reasons_against(hosts: Mapping[str, HostHealth], *, bus: bool, stopping: bool) -> tuple[str, ...]:
    """Return why a process may not be relied on; nothing if it may."""
    found = []
    if stopping:
        found.append("the service is stopping")
    if not bus:
        found.append("the bus is not connected")
    for name, host in hosts.items():
        if host.role is Role.UNKNOWN:
            found.append(f"{name}: it is not known who owns the host")
        elif host.waiting is not None:
            found.append(f"{name}: {host.waiting}")
    return tuple(found)


class Seat:
    """One host's place in this process, from one tenure to the next."""

    def __init__(self, *, owned: bool) -> None:
        self._owned = owned
        self.ownership: Ownership | None = None  # of the latest tenure
        self.context: Context | None = None  # while a runner runs
        self.proved = False  # some runner was ready once

    def leave(self) -> None:
        """Take note that the runner runs no more."""
        self.proved = self.proved or (self.context is not None and self.context.proved)
        self.context = None

    def health(self) -> HostHealth:
        """Say how the host stands at this moment."""
        waiting = "nothing serves it yet" if self.context is None else self.context.waiting
        if not self._owned:
            return HostHealth(role=Role.SERVING, waiting=waiting)
        ownership = self.ownership
        if ownership is not None and ownership.held:
            return HostHealth(role=Role.OWNER, owner=ownership.owner, waiting=waiting)
        if ownership is not None and ownership.seen_owner is not None:
            return HostHealth(role=Role.STANDBY, owner=ownership.seen_owner)
        return HostHealth(role=Role.UNKNOWN)


class Health:
    """What one process can say of itself. Who runs it fills it in."""

    def __init__(self, service: str, instance: str) -> None:
        self.bus: Bus | None = None  # None before the first connection, and where the last was closed for good
        self.seats: dict[str, Seat] = {}
        self.stopping = False
        self._service = service
        self._instance = instance

    def readiness(self) -> Readiness:
        """Look at everything now."""
        hosts = {name: seat.health() for name, seat in self.seats.items()}
        bus = self.bus is not None and self.bus.statistics().connected
        reasons = reasons_against(hosts, bus=bus, stopping=self.stopping)
        return Readiness(
            ready=not reasons, service=self._service, instance=self._instance, bus=bus, hosts=hosts, reasons=reasons
        )
