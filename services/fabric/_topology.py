"""The tree, built from what enumeration finds, and what is kept of what it does not find.

Pure: images in, functions out. A function that stops answering is not forgotten: contained, reset or slow it comes
back, and its snapshot is what it comes back to. It is forgotten when hotplug, under a slot operation, has its bus
enumerated again, or when a fabric starts, nobody holds a lease over it and nothing holds its link down.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from shared.pcie import Address, Function, Topology, describe, describe_virtual, virtual_functions
from shared.pcie.registers import DeviceType

from ._snapshot import Known, take


def discover(images: Mapping[Address, bytes]) -> tuple[Known, ...]:
    """Describe every function that answers. Its parent is the bridge whose secondary bus it is on.

    Virtual functions say nothing of themselves: they are found where their physical function says that they are.
    """
    plain = {address: function for address, image in images.items() if (function := describe(address, image, None))}
    bridges = {(one.address.domain, one.secondary): one.address for one in plain.values() if one.secondary}
    integrated = tuple(one.address for one in plain.values() if one.kind is DeviceType.ROOT_COMPLEX_ENDPOINT)
    found = {
        address: msgspec.structs.replace(
            function,
            parent=bridges.get((address.domain, address.bus)),
            associated=tuple(one for one in integrated if _reports_to(one, function)),
        )
        for address, function in plain.items()
    }
    for physical in tuple(found.values()):
        image = images[physical.address]
        for address in virtual_functions(physical, image):
            virtual = describe_virtual(address, images[address], physical, image) if address in images else None
            if virtual is not None:
                found[address] = virtual
    return tuple(take(found[address], images[address]) for address in sorted(found))


def _reports_to(integrated: Address, collector: Function) -> bool:
    """Tell whether the endpoint, whatever its function number, is on a device that the collector is told of."""
    return any(integrated.shares_device(each) for each in collector.associated)


def topology_of(known: Iterable[Known]) -> Topology:
    """Return the tree of the functions known, in address order."""
    return Topology(tuple(sorted((one.function for one in known), key=_by_address)))


def _by_address(function: Function) -> Address:
    return function.address


def merge(
    before: tuple[Known, ...], found: tuple[Known, ...], *, keep: frozenset[Address], forget: frozenset[Address]
) -> tuple[Known, ...]:
    """Return what is known after an enumeration.

    `keep`: functions whose registers are not to be believed now (a lease covers them); what was known of them stays.
    `forget`: functions that are known no longer unless they were found.
    """
    old = {one.function.address: one for one in before}
    new = {one.function.address: one for one in found}
    merged = {address: one for address, one in old.items() if address not in forget}
    merged |= {address: one for address, one in new.items() if address not in keep or address not in old}
    merged |= {address: one for address, one in old.items() if address in keep}
    return tuple(merged[address] for address in sorted(merged))
