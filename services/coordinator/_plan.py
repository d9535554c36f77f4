"""How far a recovery goes for which cause, and which method resets a function for a user. Pure.

The kernel's order of methods is kept (pci.c, pci_reset_fn_methods): the first that works is taken, a named one is
taken or refused, never replaced. A slot reset and a bus reset are the same Secondary Bus Reset here: the mask belongs
to the port, not to the method.
"""

from __future__ import annotations

from typing import Final

import msgspec

from shared.pcie import Function, Topology
from shared.protocol import Reason
from shared.protocol.fabric import Reach
from shared.protocol.requests import Cause, Channel, ResetMethod


class Plan(msgspec.Struct, frozen=True):
    """What a cause asks for at the start; votes and further causes may ask for more."""

    channel: Channel  # what drivers are told with error_detected
    reset: bool

    @property
    def reach(self) -> Reach:
        """How far the lease must reach."""
        return Reach.RESET if self.reset else Reach.CALLBACKS


PLANS: Final[dict[Cause, Plan]] = {
    Cause.DPC: Plan(Channel.FROZEN, reset=True),  # containment took the link down: it was the reset
    Cause.EDR: Plan(Channel.FROZEN, reset=True),  # the same, told by the firmware
    Cause.AER_FATAL: Plan(Channel.FROZEN, reset=True),
    Cause.AER_NONFATAL: Plan(Channel.NORMAL, reset=False),
}


class Unable(msgspec.Struct, frozen=True):
    """Why a function cannot be reset as asked."""

    reason: Reason
    message: str


class Chosen(msgspec.Struct, frozen=True):
    """The method, and every function that it hits."""

    method: ResetMethod
    hits: tuple[Function, ...]

    @property
    def reach(self) -> Reach:
        """FLR leaves the link up and masks nothing (P1)."""
        return Reach.NOTHING if self.method is ResetMethod.FLR else Reach.RESET


def choose(function: Function, topology: Topology, asked: ResetMethod | None) -> Chosen | Unable:
    """Return the first method, in the kernel's order, that can reset `function` and nothing beyond its device."""
    if function.kind.is_bridge:
        return Unable(Reason.UNSUPPORTED, f"{function.address} is a bridge; name a function behind it")
    unable: Unable | None = None
    for method in ResetMethod if asked is None else (asked,):
        tried = _try(method, function, topology)
        if isinstance(tried, Chosen):
            return tried
        if unable is None or tried.reason is Reason.POLICY:
            unable = tried  # a refusal by rule says more than a method that is missing
    assert unable is not None
    return unable


def _try(method: ResetMethod, function: Function, topology: Topology) -> Chosen | Unable:
    if method is ResetMethod.FLR:
        if function.flr:
            return Chosen(method, (function,))
        return Unable(Reason.UNSUPPORTED, f"{function.address} has no Function Level Reset")
    if method in {ResetMethod.SLOT, ResetMethod.BUS}:
        return _try_bus(method, function, topology)
    return Unable(Reason.UNSUPPORTED, f"{function.address} has no {method.value} reset")


def _try_bus(method: ResetMethod, function: Function, topology: Topology) -> Chosen | Unable:
    port = topology.port_above(function.address)
    if port is None:
        return Unable(Reason.UNSUPPORTED, f"no port above {function.address} could reset it")
    if method is ResetMethod.SLOT and not port.hotplug_capable:
        return Unable(Reason.UNSUPPORTED, f"{port.address} above {function.address} is not a hotplug slot")
    hits = topology.below(port.address)
    others = tuple(other for other in hits if not same_device(function, other))
    if others:
        names = ", ".join(str(other.address) for other in others)
        return Unable(
            Reason.POLICY, f"a {method.value} reset of {function.address} would reach beyond its device, to {names}"
        )
    return Chosen(method, hits)


def same_device(one: Function, other: Function) -> bool:
    """Tell whether two functions are on the same device: same bus and device number."""
    a, b = one.address, other.address
    return (a.domain, a.bus, a.device) == (b.domain, b.bus, b.device)
