"""How far a recovery goes for which cause, and which method resets a function for a user. Pure.

The kernel's order of methods is kept (pci.c, pci_reset_fn_methods): the first that works is taken, a named one is
taken or refused, never replaced. A slot reset and a bus reset are the same Secondary Bus Reset here: the mask belongs
to the port, not to the method.
"""

from __future__ import annotations

from typing import Final

import msgspec

from shared.pcie import Address, Function, Topology, same_device
from shared.pcie.registers import DeviceType
from shared.protocol import Reason
from shared.protocol.fabric import Reach
from shared.protocol.requests import Cause, Channel, Planned, ResetMethod

from ._function_resets import IN_FUNCTION


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
    Cause.LIFT: Plan(Channel.FROZEN, reset=True),  # the link has been down since the quarantine began
}
ERRORS: Final = tuple(cause for cause in PLANS if cause is not Cause.LIFT)  # what finders may ask to recover

_CLASS_SHIFT: Final = 8
_HOST_BRIDGE: Final = 0x0600  # base class and sub-class (PCI Code and ID Assignment 1.7)


class Unable(msgspec.Struct, frozen=True):
    """Why a function cannot be reset as asked."""

    reason: Reason
    message: str


class Chosen(msgspec.Struct, frozen=True):
    """The method, the function or port whose register does it, and every function that it hits."""

    method: ResetMethod
    at: Address
    hits: tuple[Function, ...]
    beyond: tuple[Function, ...] = ()  # those of other devices

    @property
    def reach(self) -> Reach:
        """What is reset in the function itself leaves the link up and masks nothing (P1)."""
        return Reach.NOTHING if self.method in IN_FUNCTION else Reach.RESET

    def planned(self, function: Address, port: Address, topology: Topology) -> Planned:
        """Say what would happen under a lease on `port`."""
        masked = topology.slots(port) if self.reach is Reach.RESET else ()
        return Planned(
            function=function,
            method=self.method,
            port=self.at,
            hits=tuple(one.address for one in self.hits),
            beyond=tuple(one.address for one in self.beyond),
            masked=tuple(slot.address for slot in masked),
        )


def choose(
    function: Function, topology: Topology, asked: ResetMethod | None, able: frozenset[ResetMethod], *, domain: bool
) -> Chosen | Unable:
    """Return the first method, in the kernel's order, that can reset `function`; beyond its device only with `domain`.

    `able`: which of the methods within the function its registers offer.
    """
    refused = _never(function)
    if refused is not None:
        return refused
    unable: Unable | None = None
    for method in ResetMethod if asked is None else (asked,):
        tried = _try(method, function, topology, able)
        if isinstance(tried, Chosen) and (domain or not tried.beyond):
            return tried
        said = _too_far(function, tried) if isinstance(tried, Chosen) else tried
        if unable is None or said.reason is Reason.POLICY:
            unable = said  # a refusal by rule says more than a method that is missing
    assert unable is not None
    return unable


def _never(function: Function) -> Unable | None:
    """Return why a function is reset by no method at all, or None."""
    here = function.address
    if function.kind.is_bridge:
        return Unable(
            Reason.UNSUPPORTED,
            f"{here} is a bridge; name a function behind it, whose --method bus resets all that is behind",
        )
    if function.identity.class_code >> _CLASS_SHIFT == _HOST_BRIDGE:
        return Unable(Reason.UNSUPPORTED, f"{here} is the host bridge: everything would go down with it")
    return None


def _too_far(function: Function, chosen: Chosen) -> Unable:
    names = ", ".join(str(other.address) for other in chosen.beyond)
    return Unable(
        Reason.POLICY,
        f"a {chosen.method.value} reset of {function.address} would reach beyond its device, to {names}; "
        "ask for the whole domain (--domain) if that is meant",
    )


def _try(method: ResetMethod, function: Function, topology: Topology, able: frozenset[ResetMethod]) -> Chosen | Unable:
    if method in {ResetMethod.SLOT, ResetMethod.BUS}:
        return _try_bus(method, function, topology)
    integrated = function.kind in _INTEGRATED and method is ResetMethod.PM
    if method in able and not integrated:
        return Chosen(method, function.address, (function, *_virtual(function, topology)))
    return Unable(Reason.UNSUPPORTED, f"{function.address} has no {_NAMES.get(method, method.value)}")


_INTEGRATED: Final = frozenset({DeviceType.ROOT_COMPLEX_ENDPOINT, DeviceType.ROOT_COMPLEX_EVENT_COLLECTOR})
_NAMES: Final = {
    ResetMethod.DEVICE_SPECIFIC: "reset of its own",
    ResetMethod.FLR: "Function Level Reset",
    ResetMethod.AF_FLR: "Function Level Reset by Advanced Features",
    ResetMethod.PM: "reset by power management",
}


def _virtual(function: Function, topology: Topology) -> tuple[Function, ...]:
    """Return the virtual functions that a reset of their physical function takes away (§9.2.2.3)."""
    return tuple(other for other in topology if other.physical == function.address)


def _try_bus(method: ResetMethod, function: Function, topology: Topology) -> Chosen | Unable:
    bridge = topology.lease_port(function.address)
    if bridge is None:
        return Unable(Reason.UNSUPPORTED, f"no port above {function.address} could reset it")
    if method is ResetMethod.SLOT and not bridge.hotplug_capable:
        return Unable(Reason.UNSUPPORTED, f"{bridge.address} above {function.address} is not a hotplug slot")
    hits = topology.below(bridge.address)
    beyond = tuple(other for other in hits if not same_device(function, other))
    return Chosen(method, bridge.address, hits, beyond)
