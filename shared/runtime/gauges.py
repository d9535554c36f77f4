"""Every figure that is read when somebody asks for it: its name, what it says, and its labels.

Who has such a figure gives `Metrics.reading` a function that reads it; nothing is kept up to date in between. Every
metric also has the label `service`, which is not named here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, TypeAlias

import msgspec


class Gauge(msgspec.Struct, frozen=True):
    """One metric. A name in `_total` only ever counts up, from the start of the process."""

    name: str
    about: str
    labels: tuple[str, ...] = ()

    def reads(self, value: float, *labels: object) -> Reading:
        """Return a reading; the labels in their order."""
        assert len(labels) == len(self.labels), f"{self.name} has the labels {self.labels}, not {labels}"
        return Reading(self, tuple(str(label) for label in labels), float(value))


class Reading(msgspec.Struct, frozen=True):
    """One figure at this moment."""

    gauge: Gauge
    labels: tuple[str, ...]
    value: float


Source: TypeAlias = Callable[[], Iterable[Reading]]

# --- Every service ---

OWNER: Final = Gauge("holdfast_owner", "1 while this instance owns the host, else 0.", ("host",))
STANDBY: Final = Gauge(
    "holdfast_standby", "1 while another instance owns the host and this one would take over, else 0.", ("host",)
)
ACTORS: Final = Gauge("holdfast_actors", "Actors that run, by kind.", ("host", "actor"))
MAILBOX_DEPTH: Final = Gauge(
    "holdfast_mailbox_depth", "Messages that wait in the fullest mailbox of this kind of actor.", ("host", "actor")
)
BUS_CONNECTED: Final = Gauge("holdfast_bus_connected", "1 while the connection to the bus is usable, else 0.")
BUS_RECONNECTS: Final = Gauge("holdfast_bus_reconnects_total", "Connections to the bus after the first.")
BUS_MALFORMED: Final = Gauge("holdfast_bus_malformed_total", "Messages ignored because they could not be understood.")
BUS_SLOW: Final = Gauge("holdfast_bus_slow_total", "Messages dropped because a subscriber was slow.")
FACTS_PENDING: Final = Gauge("holdfast_facts_pending", "Facts established and not yet stored in the stream.")

# --- The fabric ---

LEASES_OPEN: Final = Gauge("holdfast_leases_open", "Leases open now.", ("host", "rank"))
MASK_AGE: Final = Gauge(
    "holdfast_mask_age_seconds",
    "Since the lease that masks this slot was opened, or since the fabric started if that was later.",
    ("host", "port", "lease", "cause"),
)
LEASE_SILENT: Final = Gauge(
    "holdfast_lease_silent_seconds", "Since the holder of this lease was last heard.", ("host", "port", "lease")
)
LEASE_ALLOWED: Final = Gauge(
    "holdfast_lease_allowed_seconds",
    "Silence after which the holder of this lease counts as dead.",
    ("host", "port", "lease"),
)

QUARANTINED: Final = Gauge("holdfast_quarantined", "1 for every port in quarantine.", ("host", "port"))

ALL: Final = (
    OWNER,
    STANDBY,
    ACTORS,
    MAILBOX_DEPTH,
    BUS_CONNECTED,
    BUS_RECONNECTS,
    BUS_MALFORMED,
    BUS_SLOW,
    FACTS_PENDING,
    LEASES_OPEN,
    MASK_AGE,
    LEASE_SILENT,
    LEASE_ALLOWED,
    QUARANTINED,
)
