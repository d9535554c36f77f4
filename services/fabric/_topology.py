"""The tree, built from what enumeration finds, and what is kept of what it does not find.

Pure: images in, functions out. A function that stops answering is not forgotten: contained, reset or slow it comes
back, and its snapshot is what it comes back to. It is forgotten when hotplug, under a slot operation, has its bus
enumerated again, or when a fabric starts, nobody holds a lease over it and nothing holds its link down.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from shared.pcie import Address, Function, Topology, describe

from ._snapshot import Known, take


def discover(images: Mapping[Address, bytes]) -> tuple[Known, ...]:
    """Describe every function that answers. Its parent is the bridge whose secondary bus it is on."""
    described = {address: describe(address, image, None) for address, image in images.items()}
    bridges = {
        (address.domain, function.secondary): address
        for address, function in described.items()
        if function is not None and function.secondary
    }
    found = []
    for address, image in sorted(images.items()):
        function = describe(address, image, bridges.get((address.domain, address.bus)))
        if function is not None:
            found.append(take(function, image))
    return tuple(found)


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
