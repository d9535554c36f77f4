"""What every service runs on: the bus, actors, ownership of a host, settings, logs, and the process skeleton.

Only modules named `_nats*` know nats-py. Nothing here knows PCI Express beyond what a message carries.
"""

from ._actor import Actor, ActorStatistics
from ._context import Context
from ._driver import call_driver
from ._exit_codes import (
    EXIT_BUS_UNREACHABLE,
    EXIT_FAILED,
    EXIT_OK,
    EXIT_UNWRITABLE,
    EXIT_USAGE,
    Fatal,
)
from ._fabric_client import FabricClient, Fenced, LeaseHandle, RefusedError, keep_alive
from ._facts import Facts
from ._health import Seat
from ._logs import configure_logging
from ._metrics import Metrics
from ._nats import NatsBus, connect
from ._nkeys import new_seed, public_key
from ._ownership import Ownership
from ._port_actors import PortActor, PortActors, Wake
from ._process_gauges import actor_gauges
from ._program import Check, Program, launch
from ._recovery_request import FINAL, ask_recovery
from ._service import HostRunner, run
from ._settings import RecoveryPolicy, Settings, SettingsError, Tls
from .bus import (
    Bus,
    BusError,
    BusRefused,
    BusStatistics,
    BusUnreachable,
    Entry,
    Incoming,
    NobodyListens,
    NotPermitted,
    Request,
    Subscription,
    Unanswered,
    WrongRevision,
)
from .gauges import Reading

__all__ = [
    "EXIT_BUS_UNREACHABLE",
    "EXIT_FAILED",
    "EXIT_OK",
    "EXIT_UNWRITABLE",
    "EXIT_USAGE",
    "FINAL",
    "Actor",
    "ActorStatistics",
    "Bus",
    "BusError",
    "BusRefused",
    "BusStatistics",
    "BusUnreachable",
    "Check",
    "Context",
    "Entry",
    "FabricClient",
    "Facts",
    "Fatal",
    "Fenced",
    "HostRunner",
    "Incoming",
    "LeaseHandle",
    "Metrics",
    "NatsBus",
    "NobodyListens",
    "NotPermitted",
    "Ownership",
    "PortActor",
    "PortActors",
    "Program",
    "Reading",
    "RecoveryPolicy",
    "RefusedError",
    "Request",
    "Seat",
    "Settings",
    "SettingsError",
    "Subscription",
    "Tls",
    "Unanswered",
    "Wake",
    "WrongRevision",
    "actor_gauges",
    "ask_recovery",
    "call_driver",
    "configure_logging",
    "connect",
    "keep_alive",
    "launch",
    "new_seed",
    "public_key",
    "run",
]
