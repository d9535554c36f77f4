"""What every process can say at a scrape: its bus, and what it is to each of its hosts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from . import gauges
from ._actor import ActorStatistics
from ._health import Health, Role
from .bus import BusStatistics
from .gauges import Reading

_NO_BUS = BusStatistics(reconnects=0, malformed=0, slow=0, facts_pending=0, connected=False)


def process_gauges(health: Health) -> Iterator[Reading]:
    """Yield the state of the bus and of every seat."""
    bus = _NO_BUS if health.bus is None else health.bus.statistics()
    yield gauges.BUS_CONNECTED.reads(bus.connected)
    yield gauges.BUS_RECONNECTS.reads(bus.reconnects)
    yield gauges.BUS_MALFORMED.reads(bus.malformed)
    yield gauges.BUS_SLOW.reads(bus.slow)
    yield gauges.FACTS_PENDING.reads(bus.facts_pending)
    for host, seat in health.seats.items():
        role = seat.health().role
        if role is Role.SERVING:
            continue  # nobody owns the host in this role, and nobody stands by
        yield gauges.OWNER.reads(role is Role.OWNER, host)
        yield gauges.STANDBY.reads(role is Role.STANDBY and bus.connected, host)


def actor_gauges(host: str, actor: str, actors: Iterable[ActorStatistics]) -> Iterator[Reading]:
    """Yield the figures of all actors of one kind."""
    depths = [one.depth for one in actors]
    yield gauges.ACTORS.reads(len(depths), host, actor)
    yield gauges.MAILBOX_DEPTH.reads(max(depths, default=0), host, actor)
