"""Facts as a service states them: numbered, dated, put on the bus, and one log line each (P10)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

import structlog

from shared.pcie import Address
from shared.protocol import to_builtins
from shared.protocol.facts import Fact, What

from ._logs import KEYS
from ._metrics import Metrics
from .bus import Bus

# Data under a name that a log line needs itself is logged under `data_<name>`.
_RESERVED: Final = frozenset({*KEYS, "exc_info", "stack_info"}) - {"step", "token"}


class Facts:
    """States facts about one host in the name of one service."""

    def __init__(self, bus: Bus, service: str, host: str, metrics: Metrics | None = None) -> None:
        self._bus = bus
        self._service = service
        self._host = host
        self._seq = 0
        self._count = None if metrics is None else metrics.tenure(host)
        self._log = structlog.get_logger().bind(service=service, host=host)

    def say(
        self, what: What, port: Address, *, lease: str | None = None, cause: str | None = None, **data: Any
    ) -> Fact:
        """State that `what` happened at `port`. Never blocks: the fact waits in the outbox until there is a bus."""
        self._seq += 1
        fact = Fact(
            what=what,
            host=self._host,
            port=port,
            service=self._service,
            seq=self._seq,
            at=datetime.now(UTC),
            lease=lease,
            cause=cause,
            data=to_builtins(data),
        )
        self._bus.record(fact)
        if self._count is not None:
            self._count(fact)
        keys = {"port": str(port), "lease": lease, "cause": cause}
        known = {key: value for key, value in keys.items() if value is not None}
        named = {f"data_{key}" if key in _RESERVED else key: value for key, value in fact.data.items()}
        self._log.info(what.value, **known, **named)
        return fact
