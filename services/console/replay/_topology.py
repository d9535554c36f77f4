"""Rebuilds the tree of functions that a kernel log speaks of.

A log names addresses, never parents. The tree follows from how buses are numbered (depth first, PCI firmware and
Linux alike): ports on the lowest bus of a domain are root ports, ports on one other bus are the downstream ports of one
switch, and a bus hangs below the nearest port before it that has none yet. What cannot be placed is left out.

A port that did not answer after the reset is *dead*: nothing that spoke later hangs below it, and what answered with
all ones does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from services.console.kernel_log import (
    UNBOUND,
    BusRange,
    BusRelease,
    Callback,
    Decision,
    Instance,
    KernelLog,
    LogError,
    Unreachable,
)
from shared.pcie import Address

from ._facts import Episode, Planned, Source

_PORT_DRIVERS: Final = ("pcieport", "pciehp")


class Node(msgspec.Struct):
    """A function of the machine to be: where it hangs, and its settings as in a topology file."""

    address: Address
    kind: str  # root_port, upstream_port, downstream_port, endpoint
    under: Address | None = None
    settings: dict[str, Any] = msgspec.field(default_factory=dict)

    @property
    def is_bridge(self) -> bool:
        """A function with a bus below."""
        return self.kind != "endpoint"

    @property
    def takes_card(self) -> bool:
        """A root port or downstream port: something with a link below."""
        return self.kind in {"root_port", "downstream_port"}


class Tree:
    """Functions by address, each below its parent."""

    def __init__(self) -> None:
        self.nodes: dict[Address, Node] = {}
        self.facts: list[Planned] = []
        self.dead: dict[Address, int] = {}  # ports that did not come back, and the lines that say so
        self.seats: dict[str, Address] = {}  # where a driver's instance sits, if that follows from what answered

    def children(self, address: Address) -> list[Node]:
        """Return what hangs on the bridge's bus, in address order."""
        return sorted((node for node in self.nodes.values() if node.under == address), key=lambda node: node.address)

    def walk(self, under: Address | None = None) -> Iterator[Node]:
        """Yield everything below, parents before children; None for all."""
        roots = [node for node in self.nodes.values() if node.under == under and (under or node.kind == "root_port")]
        for node in sorted(roots, key=lambda node: node.address):
            yield node
            yield from self.walk(node.address)

    def root_ports(self) -> list[Node]:
        """Return the root ports in address order."""
        return [node for node in self.walk() if node.kind == "root_port"]

    def endpoints(self) -> list[Node]:
        """Return the placed endpoints in address order."""
        return sorted((node for node in self.walk() if not node.is_bridge), key=lambda node: node.address)

    def port_above(self, address: Address) -> Address | None:
        """Return the nearest port with a link: the function itself, or the port above it."""
        node = self.nodes.get(address)
        while node is not None and not node.takes_card:
            node = self.nodes.get(node.under) if node.under is not None else None
        return None if node is None else node.address

    def ports_above(self, address: Address) -> tuple[Address, ...]:
        """Return all ports with a link above an endpoint, nearest first."""
        found: list[Address] = []
        port = self.port_above(address)
        while port is not None:
            found.append(port)
            above = self.nodes[port].under
            port = None if above is None else self.port_above(above)
        return tuple(found)

    def buses(self, bridge: Address) -> tuple[int, int]:
        """Return secondary and subordinate bus of a bridge."""
        below = [node.address.bus for node in self.walk(bridge)]
        return min(below), max(below)


def rebuild(log: KernelLog, targets: tuple[Address, ...], struck: Episode) -> Tree:
    """Return the tree. `targets` are the functions that will be injected into: a port among them gets a card."""
    tree = Tree()
    lines = {mention.function: mention.line for mention in reversed(log.mentions)}
    ports, endpoints = _sorted_out(log, targets)
    for address, kind in _port_kinds(log, ports).items():
        tree.nodes[address] = Node(address, kind)
    tree.dead = {
        e.function: e.line
        for e in log.events
        if isinstance(e, Unreachable) and e.function is not None and e.function in tree.nodes and struck.covers(e.line)
    }
    _add_upstream_ports(tree)
    for address in endpoints:
        tree.nodes[address] = Node(address, "endpoint")
    _add_root_ports(tree)
    said = _said_ranges(log)
    _hang(log, tree, said)
    _seat_unreachable(log, tree)
    _fill_targets(tree, targets)
    _prune(tree, lines)
    lost = [str(target) for target in targets if target not in tree.nodes]
    if lost:
        raise LogError(f"{log.name}: unsupported: the log does not say where {', '.join(lost)} hangs")
    tree.dead = {port: line for port, line in tree.dead.items() if port in tree.nodes}
    _tell(tree, lines, said)
    return tree


def _sorted_out(log: KernelLog, targets: tuple[Address, ...]) -> tuple[list[Address], list[Address]]:
    """Separate ports from endpoints, by who drives them."""
    ports = {mention.function for mention in log.mentions if mention.driver in _PORT_DRIVERS}
    others = {mention.function for mention in log.mentions if mention.driver not in UNBOUND or mention.driver == "pci"}
    return sorted(ports), sorted((others | set(targets)) - ports)


def _slotted(log: KernelLog) -> set[Address]:
    return {event.function for event in log.events if isinstance(event, Decision) and event.slot is not None}


def _port_kinds(log: KernelLog, ports: list[Address]) -> dict[Address, str]:
    root_bus: dict[int, int] = {}
    for port in ports:
        root_bus[port.domain] = min(root_bus.get(port.domain, port.bus), port.bus)
    slotted = _slotted(log)
    kinds = {}
    for port in ports:
        alone = not any(other != port and (other.domain, other.bus) == (port.domain, port.bus) for other in ports)
        first = (port.device, port.function) == (0, 0)
        if port.bus == root_bus[port.domain]:
            kinds[port] = "root_port"
        elif alone and first and port not in slotted:
            kinds[port] = "upstream_port"
        else:
            kinds[port] = "downstream_port"
    return kinds


def _add_upstream_ports(tree: Tree) -> None:
    """Add what logs seldom name: the bridge to a bus that the downstream ports of a switch share."""
    for domain, bus in sorted(
        {(n.address.domain, n.address.bus) for n in tree.nodes.values() if n.kind == "downstream_port"}
    ):
        upstream = Address(domain, bus - 1, 0, 0)
        tree.nodes.setdefault(upstream, Node(upstream, "upstream_port"))
        for node in tree.nodes.values():
            if node.kind == "downstream_port" and (node.address.domain, node.address.bus) == (domain, bus):
                node.under = upstream


def _add_root_ports(tree: Tree) -> None:
    """Add a root port for every bus of a domain of which the log names endpoints, but no port."""
    ported = {node.address.domain for node in tree.nodes.values() if node.is_bridge}
    for domain in sorted({node.address.domain for node in tree.nodes.values()} - ported):
        buses = sorted({node.address.bus for node in tree.nodes.values() if node.address.domain == domain} - {0})
        for number, _bus in enumerate(buses, start=1):
            port = Address(domain, 0, number, 0)
            tree.nodes[port] = Node(port, "root_port")


def _said_ranges(log: KernelLog) -> dict[tuple[int, int], BusRange]:
    """Return by domain and bus the bridge that a line names for it."""
    return {(e.bridge.domain, e.first): e for e in log.events if isinstance(e, BusRange)}


def _hang(log: KernelLog, tree: Tree, said: dict[tuple[int, int], BusRange]) -> None:
    """Hang every bus that has no bridge yet below a port, in bus order."""
    ranges = {(e.domain, e.first): e.last for e in log.events if isinstance(e, BusRelease)}
    loose = [node for node in tree.nodes.values() if node.under is None and node.kind in {"upstream_port", "endpoint"}]
    for domain, bus in sorted({(node.address.domain, node.address.bus) for node in loose}):
        here = [node for node in loose if (node.address.domain, node.address.bus) == (domain, bus)]
        heard = said.get((domain, bus))
        if heard is not None and heard.bridge in tree.nodes:
            port: Address | None = heard.bridge
        else:
            port = _nearest(tree, domain, bus, ranges)
            if port in tree.dead and (spoke := _spoke_later(log, tree, here, tree.dead[port])) is not None:
                port = _beside(tree, port, bus, spoke)
        if port is not None:
            for node in here:
                node.under = port


def _nearest(tree: Tree, domain: int, bus: int, ranges: dict[tuple[int, int], int]) -> Address | None:
    """Return the port on the highest bus before `bus` with nothing below it; of several, the first."""
    taken = {node.under for node in tree.nodes.values()}
    placed = {node.address for node in tree.walk()}
    free = [
        address
        for address, node in tree.nodes.items()
        if node.takes_card and address in placed and address not in taken
        if address.domain == domain and address.bus < bus <= ranges.get((domain, address.bus), bus)
    ]
    return min(free, key=lambda address: (-address.bus, address), default=None)


def _spoke_later(log: KernelLog, tree: Tree, here: list[Node], line: int) -> Decision | None:
    """Return what hotplug said, after `line`, of a slot on one of these functions or right below them."""
    family = {node.address for top in here for node in (top, *tree.children(top.address))}
    return next(
        (e for e in log.events if isinstance(e, Decision) and e.slot and e.function in family and e.line > line), None
    )


def _beside(tree: Tree, dead: Address, bus: int, spoke: Decision) -> Address | None:
    """Return a port before the dead one: a slot spoke from `bus` when the dead one did not answer any more.

    Buses are numbered in the order of ports, so this port stands before the dead one; the log does not name it.
    """
    device = next((d for d in range(dead.device) if Address(dead.domain, dead.bus, d, 0) not in tree.nodes), None)
    if device is None:
        return None
    port = Address(dead.domain, dead.bus, device, 0)
    tree.nodes[port] = Node(port, tree.nodes[dead].kind, tree.nodes[dead].under)
    said = (
        f"bus {bus:02x} is not below {dead}, which did not answer (line {tree.dead[dead]}) when {spoke.function} spoke"
    )
    tree.facts.append(Planned(said, Source.INFERRED, spoke.line))
    tree.facts.append(Planned(f"the port above bus {bus:02x} is {port}: no line names it", Source.ASSUMED))
    return port


def _seat_unreachable(log: KernelLog, tree: Tree) -> None:
    """Seat the driver's instances that read all ones, and whose address no line names, below a dead port."""
    named = {e.name for e in log.events if isinstance(e, Instance)}
    speaking = {e.instance for e in log.events if isinstance(e, Callback)}
    ones = {e.instance: e.line for e in reversed(log.events) if isinstance(e, Unreachable) and e.instance}
    for instance, line in ones.items():
        dead = min(tree.dead, default=None)
        if dead is None or instance in named or instance not in speaking:
            continue
        card = _card_below(tree, dead)
        tree.seats[instance] = card
        said = f"{instance} is below {dead}: it read all ones after the reset"
        tree.facts.append(Planned(said, Source.INFERRED, line))
        tree.facts.append(Planned(f"{instance} is {card}: no line names it", Source.ASSUMED))


def _card_below(tree: Tree, port: Address) -> Address:
    """Add an endpoint below the last port that is below `port`; a switch that ends the chain gets a port for it."""
    last = next((n for n in reversed(list(tree.walk(port))) if n.is_bridge and not tree.children(n.address)), None)
    above = tree.nodes[port] if last is None else last
    if above.kind == "upstream_port":
        down = Address(port.domain, above.address.bus + 1, 0, 0)
        tree.nodes[down] = Node(down, "downstream_port", above.address)
        tree.facts.append(Planned(f"{down} is the port below {above.address}: no line names it", Source.ASSUMED))
        above = tree.nodes[down]
    card = Address(port.domain, above.address.bus + 1, 0, 0)
    tree.nodes[card] = Node(card, "endpoint", above.address)
    return card


def _fill_targets(tree: Tree, targets: tuple[Address, ...]) -> None:
    """Seat a card below every port concerned of which the log names none: without one, nothing is at stake."""
    for target in targets:
        node = tree.nodes.get(target)
        if node is None or not node.takes_card or tree.children(target):
            continue
        free = 1 + max(other.address.bus for other in tree.nodes.values() if other.address.domain == target.domain)
        card = Address(target.domain, free, 0, 0)
        tree.nodes[card] = Node(card, "endpoint", target)
        tree.facts.append(Planned(f"a card at {card} below {target}: the log names none", Source.ASSUMED))


def _prune(tree: Tree, lines: dict[Address, int]) -> None:
    """Leave out what hangs nowhere, and ports with nothing below."""
    while True:
        placed = {node.address for node in tree.walk()}
        useless = [
            node
            for node in tree.nodes.values()
            if node.address not in placed or (node.is_bridge and not tree.children(node.address))
        ]
        if not useless:
            return
        for node in useless:
            del tree.nodes[node.address]
            if node.address in lines:
                why = "nothing hangs below it" if node.address in placed else "the log does not say where it hangs"
                said = f"{node.address} is left out: {why}"
                tree.facts.append(Planned(said, Source.INFERRED, lines[node.address]))


def _tell(tree: Tree, lines: dict[Address, int], said: dict[tuple[int, int], BusRange]) -> None:
    """Say how the tree is known: by a line that names the buses, or by their numbers."""
    for node in tree.walk():
        if node.kind in {"upstream_port", "root_port"} and node.address not in lines:
            source = Source.INFERRED if node.kind == "upstream_port" else Source.ASSUMED
            tree.facts.append(
                Planned(
                    f"{node.address} is the {node.kind.replace('_', ' ')} above {tree.children(node.address)[0].address}",
                    source,
                )
            )
        if node.takes_card:
            children = tree.children(node.address)
            heard = said.get((node.address.domain, children[0].address.bus))
            what = f"below {node.address}: {', '.join(str(child.address) for child in children)}"
            if heard is not None and heard.bridge == node.address:
                tree.facts.append(Planned(what, Source.LOG, heard.line))
            else:
                tree.facts.append(Planned(what, Source.INFERRED))
