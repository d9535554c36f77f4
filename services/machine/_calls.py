"""The drivers' memory of who has called what: a call that arrives again is the same call, and a deposed caller is none.

What is remembered is bounded: of each function the newest leases, of each lease one answer per callback and channel.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from shared.pcie import Address
from shared.protocol import Reason, Refused
from shared.protocol.requests import DriverAnswer, DriverCall

LEASES_MAX: Final = 8  # per function

Answering = asyncio.Task[DriverAnswer]


class _Lease:
    """What one lease has had called of one function, and the highest token that it came with."""

    def __init__(self) -> None:
        self.token = 0
        self.calls: dict[tuple[str, str, str], Answering] = {}


class Calls:
    """All calls of one machine's drivers."""

    def __init__(self) -> None:
        self._functions: dict[Address, dict[str | None, _Lease]] = {}

    def once(self, call: DriverCall, run: Callable[[], Answering]) -> Answering | Refused:
        """Return the call under way or answered, begun with `run` if it is new; a refusal where its token is fenced."""
        lease = self._lease(call)
        if call.token < lease.token:
            return Refused(reason=Reason.FENCED, message=f"the lease {call.lease} has another holder by now")
        lease.token = call.token
        key = (call.step, call.channel, call.nonce)
        if key not in lease.calls:
            if call.lease is None:
                lease.calls.clear()  # each is another: only the newest can still be asked for
            lease.calls[key] = run()
        return lease.calls[key]

    def _lease(self, call: DriverCall) -> _Lease:
        leases = self._functions.setdefault(call.function, {})
        lease = leases.pop(call.lease, None) or _Lease()
        leases[call.lease] = lease  # the newest at the end
        if len(leases) > LEASES_MAX:
            del leases[next(iter(leases))]
        return lease
