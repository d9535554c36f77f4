"""The actors of root ports and an event collector over a bench of config spaces."""

from __future__ import annotations

from services.aer._actor import RootPortActor
from services.aer._counters import Counters
from shared.pcie import Address
from shared.pcie import registers as r
from shared.runtime import Wake
from tests.port_bench import AER, COLLECTOR, ROOT, SWITCH_ROOT, Bench

FATAL = r.RootErrorStatus.UNCORRECTABLE_RECEIVED | r.RootErrorStatus.FATAL_RECEIVED | r.RootErrorStatus.FIRST_FATAL
NONFATAL = r.RootErrorStatus.UNCORRECTABLE_RECEIVED | r.RootErrorStatus.NONFATAL_RECEIVED
CORRECTABLE = r.RootErrorStatus.CORRECTABLE_RECEIVED
START, INTERRUPT = frozenset({Wake.START}), frozenset({Wake.INTERRUPT})
ENDED = frozenset({Wake.ENDED})


class Lab(Bench):
    """A bench with the actors of both root ports."""

    def __init__(self) -> None:
        super().__init__()
        self.counters = Counters()
        self.actors = {port: RootPortActor(port, self.ports, self.counters) for port in (ROOT, SWITCH_ROOT, COLLECTOR)}

    async def look(self, wakes: frozenset[Wake] = INTERRUPT, port: Address = ROOT) -> None:
        await self.actors[port].look(wakes)

    def root_status(self, port: Address = ROOT) -> int:
        return self.get(port, r.ROOT_ERROR_STATUS, AER)

    def uncorrectable(self, address: Address, bits: int) -> None:
        self.set_bits(address, r.UNCORRECTABLE_STATUS, bits)
