"""From specifications to functions: the trees of the bench, each port with its link, slot and containment."""

from __future__ import annotations

from ._clock import Clock
from ._config_space import power_on
from ._function import SimulatedFunction
from ._port import Card, Port
from ._specs import FunctionSpec, LinkSpec, TopologyFile
from ._virtual import build_virtual, chain_ari


def build(bench: TopologyFile, clock: Clock) -> list[SimulatedFunction]:
    """Return the functions of the root buses, with everything that is seated below them."""
    roots = [_function(spec, None, bench.function, clock) for spec in bench.function if spec.under is None]
    by_address = {root.address: root for root in roots}
    for collector in roots:
        for address in collector.spec.collects:
            by_address[address].collector = collector
    return roots


def card_below(functions: tuple[FunctionSpec, ...], bridge: FunctionSpec) -> Card:
    """Return everything below the bridge, parents first."""
    card: list[FunctionSpec] = []
    for spec in functions:
        if spec.under == bridge.address:
            card.append(spec)
            card.extend(card_below(functions, spec))
    return tuple(card)


def _function(
    spec: FunctionSpec, parent: SimulatedFunction | None, functions: tuple[FunctionSpec, ...], clock: Clock
) -> SimulatedFunction:
    link = spec.link if spec.link is not None else _default_link(spec, parent)
    space, caps = power_on(spec, link)
    function = SimulatedFunction(spec, space, caps, parent)
    if spec.is_port:
        function.port = Port(function, link, clock, lambda card, above: _card(card, above, clock))
        card = card_below(functions, spec)
        if card and all(below.present for below in card if below.under == spec.address):
            function.port.seat(card)
        else:
            function.port.card = card
    else:
        function.children = _card(functions, function, clock)
    return function


def _default_link(spec: FunctionSpec, parent: SimulatedFunction | None) -> LinkSpec:
    """Return the link of a function whose file says nothing: a port's default, or as good as the port above."""
    if spec.is_port or parent is None:
        return LinkSpec()
    above = parent.spec.link
    return above if above is not None else LinkSpec()


def _card(card: Card, above: SimulatedFunction, clock: Clock) -> list[SimulatedFunction]:
    """Return what stands on the secondary bus of `above`, virtual functions included."""
    found = []
    for spec in card:
        if spec.under == above.address:
            function = _function(spec, above, card, clock)
            found += [function, *build_virtual(function, spec.link or _default_link(spec, above))]
    chain_ari(found)
    return found
