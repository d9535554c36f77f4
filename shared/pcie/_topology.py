"""The tree of functions: what is above, what is below, and what one reset reaches."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from ._address import Address
from ._identity import Identity
from .registers import COMMAND, VENDOR_ID, DeviceType, Register, SlotCapabilities


class Capabilities(msgspec.Struct, frozen=True):
    """Offsets of the capabilities that Holdfast uses; 0 where the function has none."""

    express: int = 0
    power_management: int = 0
    msi: int = 0
    advanced_features: int = 0
    aer: int = 0
    dpc: int = 0
    serial_number: int = 0
    msi_x: int = 0
    event_collector: int = 0
    acs: int = 0
    ari: int = 0
    ltr: int = 0
    resizable_bar: int = 0
    sriov: int = 0


class Vectors(msgspec.Struct, frozen=True):
    """Interrupt message numbers of a port's services (§7.5.3.2, §7.8.4.10, §7.9.14.2). Equal numbers: one vector."""

    hotplug: int = 0
    aer: int = 0
    dpc: int = 0


class Function(msgspec.Struct, frozen=True):
    """One function as enumeration found it."""

    address: Address
    kind: DeviceType
    identity: Identity
    capabilities: Capabilities
    parent: Address | None = None  # the bridge on whose secondary bus the function is; None on a root bus
    secondary: int = 0  # bridges only: the bus below ...
    subordinate: int = 0  # ... and the highest bus behind it
    slot: SlotCapabilities | None = None  # downstream ports with Slot Implemented
    slot_number: int = 0
    in_band_disable: bool = False  # the slot can take in-band presence out of Presence Detect State (§7.5.3.22)
    vectors: Vectors = Vectors()
    flr: bool = False  # Function Level Reset, by Device Capabilities
    link_active_reporting: bool = False
    physical: Address | None = None  # SR-IOV: the physical function whose virtual function this is (§9.3)
    associated: tuple[Address, ...] = ()  # event collectors: the integrated endpoints that report to it (§7.9.10)

    @property
    def is_port(self) -> bool:
        """A root port or switch downstream port: something with a link below that can be reset."""
        return self.kind.is_downstream_port

    @property
    def is_conventional_bridge(self) -> bool:
        """A bridge to a conventional bus: its Secondary Bus Reset hits every device there, and there is no link."""
        return self.kind is DeviceType.PCIE_TO_PCI_BRIDGE

    @property
    def presence(self) -> Register:
        """The register that tells whether the function answers.

        A virtual function gives FFFFh for its ids by rule (§9.3.4.1.1). Its Command tells instead, as in Linux
        (pci_dev_wait): few bits of it can be set, so it is neither all ones nor the RRS vendor id.
        """
        return VENDOR_ID if self.physical is None else COMMAND

    @property
    def hotplug_capable(self) -> bool:
        """A slot whose presence and link interrupts a lease must mask."""
        return self.slot is not None and SlotCapabilities.HOTPLUG_CAPABLE in self.slot


def same_device(one: Function, other: Function) -> bool:
    """Tell whether two functions are on the same device: they come and go together.

    Usually that is the same device number. With ARI (§6.13) and SR-IOV (§9.2.1.2) the functions of one device take
    the device numbers too, and virtual functions may stand on further buses: then everything on the link is one device.
    """
    if one.parent is not None and one.parent == other.parent and (_spreads(one) or _spreads(other)):
        return True
    a, b = one.address, other.address
    if a.shares_device(b):
        return True
    return one.physical == b or other.physical == a or (one.physical is not None and one.physical == other.physical)


def _spreads(function: Function) -> bool:
    caps = function.capabilities
    return bool(caps.ari or caps.sriov) or function.physical is not None


class Topology(msgspec.Struct, frozen=True):
    """All functions of a host, in address order. A value: a change of hardware is a new Topology."""

    functions: tuple[Function, ...] = ()
    firmware_first: bool = False  # AER and DPC registers belong to the firmware outside an EDR event

    def __iter__(self) -> Iterator[Function]:
        return iter(self.functions)

    def find(self, address: Address) -> Function | None:
        """Return the function at `address`, or None."""
        return next((function for function in self.functions if function.address == address), None)

    def get(self, address: Address) -> Function:
        """Return the function at `address`. Raises KeyError where there is none."""
        found = self.find(address)
        if found is None:
            raise KeyError(f"no function at {address}")
        return found

    def children(self, bridge: Address) -> tuple[Function, ...]:
        """Return the functions on the bridge's secondary bus."""
        return tuple(function for function in self.functions if function.parent == bridge)

    def below(self, bridge: Address) -> tuple[Function, ...]:
        """Return everything behind the bridge, parents before children."""
        found: list[Function] = []
        for child in self.children(bridge):
            found.append(child)
            found.extend(self.below(child.address))
        return tuple(found)

    def ancestors(self, address: Address) -> tuple[Function, ...]:
        """Return the bridges above `address`, nearest first."""
        found: list[Function] = []
        function = self.find(address)
        while function is not None and function.parent is not None:
            function = self.find(function.parent)
            if function is not None:
                found.append(function)
        return tuple(found)

    def path(self, address: Address) -> tuple[Address, ...]:
        """Return `address` and the bridges above it, nearest first: where what covers it is taken."""
        return (address, *(bridge.address for bridge in self.ancestors(address)))

    def port_above(self, address: Address) -> Function | None:
        """Return the nearest root port or switch downstream port above: the one whose link leads to `address`."""
        return next((bridge for bridge in self.ancestors(address) if bridge.is_port), None)

    def lease_port(self, address: Address) -> Function | None:
        """Return the port or bridge that a lease for `address` is taken on (DESIGN 4, Domains).

        A downstream port stands for itself; an endpoint, an upstream port or a bridge for the port above; what is on a
        conventional bus for the bridge to it. Its Secondary Bus Reset is the nearest that reaches `address`. None where
        there is none (what is integrated into the root complex).
        """
        function = self.find(address)
        if function is None or function.is_port:
            return function
        return next((above for above in self.ancestors(address) if above.is_port or above.is_conventional_bridge), None)

    def domain(self, port: Address) -> tuple[Function, ...]:
        """Return the functions that a lease on `port` covers: the port and all below, parents before children."""
        return (self.get(port), *self.below(port))

    def slots(self, port: Address) -> tuple[Function, ...]:
        """Return the hotplug-capable slots in the domain of `port`, parents before children."""
        return tuple(function for function in self.domain(port) if function.hotplug_capable)

    def receiver(self, address: Address) -> Function | None:
        """Return who latches the error messages of a function (§6.2.4); a root port or event collector does itself.

        Else it is the root port above, or the event collector that the function's device is associated with (§7.9.10).
        """
        function = self.find(address)
        if function is None or function.kind.receives_errors:
            return function
        collectors = (one for one in self.functions if any(address.shares_device(each) for each in one.associated))
        return self.root_port(address) or next(collectors, None)

    def root_port(self, address: Address) -> Function | None:
        """Return the root port above `address`, or the function itself if it is one."""
        function = self.find(address)
        if function is not None and function.kind is DeviceType.ROOT_PORT:
            return function
        return next((bridge for bridge in self.ancestors(address) if bridge.kind is DeviceType.ROOT_PORT), None)
