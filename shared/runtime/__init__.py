"""What every service runs on: the bus, actors, ownership of a host, settings, logs, and the process skeleton.

Only modules named `_nats*` know nats-py. Nothing here knows PCI Express beyond what a message carries.
"""

from ._actor import Actor, ActorStatistics
from ._context import Context
from ._driver import call_driver
from ._fabric_client import FabricClient, Fenced, LeaseHandle, RefusedError, keep_alive
from ._facts import Facts
from ._logs import configure_logging
from ._nats import NatsBus, connect
from ._ownership import Ownership
from ._port_actors import PortActor, PortActors, Wake
from ._recovery_request import FINAL, ask_recovery
from ._service import (
    EXIT_BUS_UNREACHABLE,
    EXIT_FAILED,
    EXIT_OK,
    EXIT_USAGE,
    Fatal,
    HostRunner,
    run,
)
from ._settings import Settings, SettingsError
from .bus import (
    Bus,
    BusError,
    BusStatistics,
    BusUnreachable,
    Entry,
    Incoming,
    NobodyListens,
    Request,
    Subscription,
    Unanswered,
    WrongRevision,
)

__all__ = [
    "EXIT_BUS_UNREACHABLE",
    "EXIT_FAILED",
    "EXIT_OK",
    "EXIT_USAGE",
    "FINAL",
    "Actor",
    "ActorStatistics",
    "Bus",
    "BusError",
    "BusStatistics",
    "BusUnreachable",
    "Context",
    "Entry",
    "FabricClient",
    "Facts",
    "Fatal",
    "Fenced",
    "HostRunner",
    "Incoming",
    "LeaseHandle",
    "NatsBus",
    "NobodyListens",
    "Ownership",
    "PortActor",
    "PortActors",
    "RefusedError",
    "Request",
    "Settings",
    "SettingsError",
    "Subscription",
    "Unanswered",
    "Wake",
    "WrongRevision",
    "ask_recovery",
    "call_driver",
    "configure_logging",
    "connect",
    "keep_alive",
    "run",
]
