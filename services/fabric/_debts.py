"""What a lease owes the hardware: reset bits asserted, ports contained. Registers say so, wherever they answer."""

from __future__ import annotations

from collections.abc import Iterable

from shared.pcie import Address, Topology, answered
from shared.pcie import registers as reg
from shared.protocol.fabric import Debts, Lease, Operation
from shared.recovery import ask, read

from ._effects import Command
from ._layout import written
from ._quarantine import reachable


def merge(several: Iterable[Debts]) -> Debts:
    """Return all that is owed: what an heir inherits."""
    owed = tuple(several)
    return Debts(
        in_reset=_union(one.in_reset for one in owed),
        link_disabled=_union(one.link_disabled for one in owed),
        contained=_union(one.contained for one in owed),
    )


def at_most(debts: Debts, operations: Iterable[Operation], topology: Topology) -> Debts:
    """Return the most that can be owed after `operations`: what is written down before they are executed."""
    owed = [debts]
    for operation in operations:
        function = topology.find(operation.function)
        if function is None:
            continue
        caps, here = function.capabilities, (function.address,)
        asserts = function.kind.is_bridge and written(operation, reg.BRIDGE_CONTROL).sets(
            reg.BridgeControl.SECONDARY_BUS_RESET
        )
        disables = function.is_port and written(operation, reg.LINK_CONTROL, caps.express).sets(
            reg.LinkControl.LINK_DISABLE
        )
        triggers = caps.dpc and written(operation, reg.DPC_CONTROL, caps.dpc).sets(reg.DpcControl.SOFTWARE_TRIGGER)
        owed.append(
            Debts(
                in_reset=here if asserts else (),
                link_disabled=here if disables else (),
                contained=here if triggers else (),
            )
        )
    return merge(owed)


def settle(lease: Lease, owed: Debts, topology: Topology) -> Command[Debts]:
    """Return what `lease` owes by the registers' word, of which `owed` is what it may owe.

    A bridge that asserts a secondary bus reset owes its end, whoever began it, and so does a contained port. A link
    that is disabled counts only if a lease disabled it: others may have reasons that outlive a lease. A function that
    does not answer owes nothing here: the reset that is above it has cleared its own. What holds a quarantined port
    down is not owed: it is there to stay.
    """
    in_reset, disabled, contained = [], [], []
    for function in reachable(topology, lease.port, lease.quarantined):
        address, caps = function.address, function.capabilities
        if function.kind.is_bridge and (yield from _is_set(address, reg.BRIDGE_CONTROL, 0, _SBR)):
            in_reset.append(address)
        if address in lease.quarantined:
            continue
        if address in owed.link_disabled and (yield from _is_set(address, reg.LINK_CONTROL, caps.express, _DISABLE)):
            disabled.append(address)
        if caps.dpc and (yield from _is_set(address, reg.DPC_STATUS, caps.dpc, _TRIGGER)):
            contained.append(address)
    return Debts(in_reset=tuple(in_reset), link_disabled=tuple(disabled), contained=tuple(contained))


_SBR = int(reg.BridgeControl.SECONDARY_BUS_RESET)
_DISABLE = int(reg.LinkControl.LINK_DISABLE)
_TRIGGER = int(reg.DpcStatus.TRIGGER)


def _is_set(address: Address, register: reg.Register, base: int, bit: int) -> Command[bool]:
    (value,) = yield from ask((read(address, base + register.offset, register.width),))
    return answered(value) and bool(value & bit)


def touched(operations: Iterable[Operation], topology: Topology) -> bool:
    """Tell whether any operation writes a register that debts are read from."""
    for operation in operations:
        function = topology.find(operation.function)
        if function is None:
            continue
        caps = function.capabilities
        places = [(reg.BRIDGE_CONTROL, 0)] if function.kind.is_bridge else []
        places += [(reg.LINK_CONTROL, caps.express)] if caps.express else []
        places += [(reg.DPC_STATUS, caps.dpc), (reg.DPC_CONTROL, caps.dpc)] if caps.dpc else []
        if any(written(operation, register, base).mask for register, base in places):
            return True
    return False


def _union(several: Iterable[tuple[Address, ...]]) -> tuple[Address, ...]:
    return tuple(sorted({address for some in several for address in some}))
