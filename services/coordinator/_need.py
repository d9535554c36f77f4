"""Does a cause that has waited still need a recovery? Registers decide (P9)."""

from __future__ import annotations

from shared.pcie import Address, Topology, aer_reads, answered, decode_aer
from shared.pcie.registers import ROOT_ERROR_STATUS, RootErrorStatus
from shared.protocol.requests import Cause
from shared.recovery import port_reads, port_view, read
from shared.runtime import FabricClient


async def still_needed(fabric: FabricClient, topology: Topology, port: Address, cause: Cause) -> bool:
    """Tell whether the port is still contained, or any function of its domain still has an uncorrectable error.

    A function that does not answer needs a recovery as well: nobody can say that it does not. And one without AER has
    only the root port (of what is integrated, the event collector) to speak for it, where aer leaves the message until
    it has been heard. What firmware reports is needed until firmware has its answer, whatever the registers hold.
    """
    bridge = topology.find(port)
    if bridge is None:
        return False  # it was on a card that is gone (P8)
    if cause is Cause.EDR:
        return port in (await fabric.leases()).edr
    if bridge.kind.is_bridge:
        view = port_view(bridge, await fabric.read(port_reads(bridge)))
        if view is None or view.contained:
            return True
    if cause is Cause.DPC:
        return False
    if await _signalled(fabric, topology, port):
        return True
    for function in topology.domain(port):
        reads = tuple(read(function.address, offset, width) for offset, width in aer_reads(function))
        if not reads:
            continue
        errors = decode_aer(function, await fabric.read(reads))
        if errors is None or errors.uncorrectable:
            return True
    return False


async def _signalled(fabric: FabricClient, topology: Topology, port: Address) -> bool:
    root = topology.receiver(port)
    if root is None or not root.capabilities.aer:
        return False
    at = root.capabilities.aer + ROOT_ERROR_STATUS.offset
    (status,) = await fabric.read((read(root.address, at, ROOT_ERROR_STATUS.width),))
    return not answered(status) or bool(status & RootErrorStatus.UNCORRECTABLE_RECEIVED)
