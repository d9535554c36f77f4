"""Where a config request ends: at the function that the bridges' bus numbers lead to, as they are now (§7.3.3)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from shared.pcie import Address
from shared.pcie import registers as r

from ._function import SimulatedFunction
from ._link import LinkState

_ARI_FORWARDING: Final = int(r.DeviceControl2.ARI_FORWARDING_ENABLE)
_IN_RESET: Final = int(r.BridgeControl.SECONDARY_BUS_RESET)


def route(roots: Iterable[SimulatedFunction], address: Address) -> SimulatedFunction | None:
    """Return the function that a request for `address` reaches; None if nothing completes it."""
    on_domain = [root for root in roots if root.address.domain == address.domain]
    for root in on_domain:
        if root.address == address:
            return root
    return next(filter(None, (_below(root, address) for root in on_domain)), None)


def reachable(roots: Iterable[SimulatedFunction]) -> Iterator[tuple[Address, SimulatedFunction]]:
    """Yield every function that can be reached now, with the address that reaches it, as a scan would find it."""
    for root in roots:
        yield root.address, root
        yield from _scan(root)


def _scan(bridge: SimulatedFunction) -> Iterator[tuple[Address, SimulatedFunction]]:
    secondary = bridge.header.get(r.SECONDARY_BUS) if bridge.spec.is_bridge else 0
    if not secondary or not _passes(bridge):
        return
    for child in _answering(bridge):
        yield Address(child.address.domain, secondary, child.address.device, child.address.function), child
        yield from _scan(child)


def _below(bridge: SimulatedFunction, address: Address) -> SimulatedFunction | None:
    if not bridge.spec.is_bridge or not _passes(bridge):
        return None
    secondary = bridge.header.get(r.SECONDARY_BUS)
    if not 0 < secondary <= address.bus <= bridge.header.get(r.SUBORDINATE_BUS):
        return None
    if address.bus > secondary:
        return next(filter(None, (_below(child, address) for child in bridge.children)), None)
    place = address.device, address.function
    here = _answering(bridge)
    return next((child for child in here if (child.address.device, child.address.function) == place), None)


def _answering(bridge: SimulatedFunction) -> Iterator[SimulatedFunction]:
    """Yield the functions on the secondary bus that requests are passed on to.

    A link has one device at its end: a port sends it requests for other device numbers only with ARI Forwarding
    (§7.5.3.16). A virtual function is there only while it is enabled.
    """
    all_devices = bridge.port is None or bool(bridge.express.get(r.DEVICE_CONTROL_2) & _ARI_FORWARDING)
    return (child for child in bridge.children if child.exists and (all_devices or child.address.device == 0))


def _passes(bridge: SimulatedFunction) -> bool:
    """Tell whether requests get through the bridge: its link is active, its secondary bus is not in reset."""
    if bridge.header.get(r.BRIDGE_CONTROL) & _IN_RESET:
        return False
    return bridge.port is None or bridge.port.link.state is LinkState.ACTIVE
