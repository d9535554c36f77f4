"""The tree of functions: what is above, what is below, and what one reset reaches."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from ._address import Address
from ._identity import Identity
from .registers import DeviceType, SlotCapabilities


class Capabilities(msgspec.Struct, frozen=True):
    """Offsets of the capabilities that Holdfast uses; 0 where the function has none."""

    express: int = 0
    power_management: int = 0
    msi: int = 0
    advanced_features: int = 0
    aer: int = 0
    dpc: int = 0
    serial_number: int = 0


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
    def hotplug_capable(self) -> bool:
        """A slot whose presence and link interrupts a lease must mask."""
        return self.slot is not None and SlotCapabilities.HOTPLUG_CAPABLE in self.slot


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

    def port_above(self, address: Address) -> Function | None:
        """Return the nearest root port or switch downstream port above: the one whose reset reaches `address`."""
        return next((bridge for bridge in self.ancestors(address) if bridge.is_port), None)

    def lease_port(self, address: Address) -> Function | None:
        """Return the port that a lease for `address` is taken on (DESIGN 4, Domains).

        A downstream port stands for itself; an endpoint or an upstream port for the port above. None where no port
        is above (a root-complex integrated endpoint).
        """
        function = self.find(address)
        if function is None:
            return None
        return function if function.is_port else self.port_above(address)

    def domain(self, port: Address) -> tuple[Function, ...]:
        """Return the functions that a lease on `port` covers: the port and all below, parents before children."""
        return (self.get(port), *self.below(port))

    def slots(self, port: Address) -> tuple[Function, ...]:
        """Return the hotplug-capable slots in the domain of `port`, parents before children."""
        return tuple(function for function in self.domain(port) if function.hotplug_capable)

    def root_port(self, address: Address) -> Function | None:
        """Return the root port above `address`, or the function itself if it is one."""
        function = self.find(address)
        if function is not None and function.kind is DeviceType.ROOT_PORT:
            return function
        return next((bridge for bridge in self.ancestors(address) if bridge.kind is DeviceType.ROOT_PORT), None)
