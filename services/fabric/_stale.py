"""Whether error status may be cleared without a lease: when nothing that is latched could be about it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from shared.pcie import Address, Topology, answered
from shared.pcie import registers as reg
from shared.recovery import ask, read

from ._effects import Command

_RECEIVED: Final = int(
    reg.RootErrorStatus.UNCORRECTABLE_RECEIVED
    | reg.RootErrorStatus.MULTIPLE_UNCORRECTABLE
    | reg.RootErrorStatus.NONFATAL_RECEIVED
    | reg.RootErrorStatus.FATAL_RECEIVED
)
_TRIGGER: Final = int(reg.DpcStatus.TRIGGER)


def is_stale(functions: Iterable[Address], topology: Topology) -> Command[bool]:
    """Tell whether no uncorrectable message has been received that these functions could have sent, and no containment.

    Judged in the step that clears: a message that has come in since aer looked is seen here. Who does not answer could
    have latched anything.
    """
    watched: dict[tuple[Address, int, int], int] = {}
    for address in functions:
        receiver = topology.receiver(address)
        if receiver is None or not receiver.capabilities.aer:
            return False
        at = receiver.capabilities.aer + reg.ROOT_ERROR_STATUS.offset
        watched[receiver.address, at, reg.ROOT_ERROR_STATUS.width] = _RECEIVED
        for port in (topology.get(address), *topology.ancestors(address)):
            if port.capabilities.dpc:
                at = port.capabilities.dpc + reg.DPC_STATUS.offset
                watched[port.address, at, reg.DPC_STATUS.width] = _TRIGGER
    got = yield from ask(read(*place) for place in watched)
    return all(answered(value) and not value & latch for value, latch in zip(got, watched.values(), strict=True))
