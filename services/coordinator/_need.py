"""Does a cause that has waited still need a recovery? Registers decide (P9)."""

from __future__ import annotations

from shared.pcie import Address, Topology, aer_reads, decode_aer
from shared.protocol.requests import Cause
from shared.recovery import port_reads, port_view, read
from shared.runtime import FabricClient


async def still_needed(fabric: FabricClient, topology: Topology, port: Address, cause: Cause) -> bool:
    """Tell whether the port is still contained, or any function of its domain still has an uncorrectable error.

    A function that does not answer needs a recovery as well: nobody can say that it does not.
    """
    bridge = topology.get(port)
    view = port_view(bridge, await fabric.read(port_reads(bridge)))
    if view is None or view.contained:
        return True
    if cause is Cause.DPC:
        return False
    for function in topology.domain(port):
        reads = tuple(read(function.address, offset, width) for offset, width in aer_reads(function))
        if not reads:
            continue
        errors = decode_aer(function, await fabric.read(reads))
        if errors is None or errors.uncorrectable:
            return True
    return False
