"""What a holder may do to a register under his lease: P1 and the rules around it, judged operation by operation. Pure.

The table below is the whole of it. Everything that no row names is allowed inside the lease's domain.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from shared.pcie import Address, Function, Topology
from shared.pcie import registers as reg
from shared.protocol import Reason
from shared.protocol.fabric import Lease, Operation, Rank, Reach, Verb

from ._firmware import is_theirs
from ._layout import written

_WIDTHS: Final = frozenset({1, 2, 4})
_SURPRISE_DOWN: Final = int(reg.Uncorrectable.SURPRISE_DOWN)
WRITES: Final = frozenset({Verb.WRITE, Verb.MODIFY})


class Objection(msgspec.Struct, frozen=True):
    """Why an operation is refused."""

    reason: Reason
    message: str


def malformed(operation: Operation) -> str:
    """Return what is wrong with the form of an operation, or nothing."""
    if operation.verb is Verb.ENUMERATE:
        return ""
    if operation.width not in _WIDTHS or operation.offset % operation.width:
        return (
            f"{operation.width} bytes at {operation.offset:#x}: a register access is 1, 2 or 4 bytes, aligned (§2.2.7)"
        )
    if not 0 <= operation.offset <= reg.CONFIG_SPACE_SIZE - operation.width:
        return f"offset {operation.offset:#x} is outside the {reg.CONFIG_SPACE_SIZE} bytes of config space"
    if not 0 <= operation.value < 1 << 8 * operation.width or not 0 <= operation.mask < 1 << 8 * operation.width:
        return f"value {operation.value:#x} or mask {operation.mask:#x} does not fit {operation.width} bytes"
    return ""


def resets(operation: Operation, function: Function, rank: Rank) -> bool:
    """Tell whether the operation writes a reset bit (P1): one that takes the link down, or lets a contained one up.

    Power belongs to slot operations; for everybody else, switching it off is a reset like any other.
    """
    caps = function.capabilities
    if function.kind.is_bridge and written(operation, reg.BRIDGE_CONTROL).sets(reg.BridgeControl.SECONDARY_BUS_RESET):
        return True
    if function.is_port and written(operation, reg.LINK_CONTROL, caps.express).sets(reg.LinkControl.LINK_DISABLE):
        return True
    if caps.dpc and (
        written(operation, reg.DPC_CONTROL, caps.dpc).sets(reg.DpcControl.SOFTWARE_TRIGGER)
        or written(operation, reg.DPC_STATUS, caps.dpc).sets(reg.DpcStatus.TRIGGER)
    ):
        return True
    if function.slot is None or rank is Rank.SLOT_OPERATION:
        return False
    return bool(written(operation, reg.SLOT_CONTROL, caps.express).sets(reg.SlotControl.POWER_OFF))


def masks(lease: Lease, function: Function) -> bool:
    """Tell whether the slot is masked by the lease: its enables are the fabric's until close."""
    saved = any(slot.port == function.address for slot in lease.slots)
    return saved or (function.hotplug_capable and lease.reach is not Reach.NOTHING)


class Ground(msgspec.Struct, frozen=True):
    """What operations are judged on: the lease, the host, and the EDR events that are open."""

    lease: Lease
    topology: Topology
    edr: tuple[Address, ...] = ()


def _unmasked_reset(operation: Operation, function: Function, ground: Ground) -> bool:
    return ground.lease.reach is not Reach.RESET and resets(operation, function, ground.lease.rank)


def _enables(operation: Operation, function: Function, ground: Ground) -> bool:
    if not masks(ground.lease, function):
        return False
    return bool(written(operation, reg.SLOT_CONTROL, function.capabilities.express).sets(int(reg.SLOT_MASKED)))


def _unmasks_surprise_down(operation: Operation, function: Function, ground: Ground) -> bool:
    aer = function.capabilities.aer
    if not aer or not masks(ground.lease, function):
        return False
    return bool(written(operation, reg.UNCORRECTABLE_MASK, aer).clears(_SURPRISE_DOWN))


def _destroys_evidence(operation: Operation, function: Function, ground: Ground) -> bool:
    if not masks(ground.lease, function):
        return False
    latched = reg.SlotStatus.PRESENCE_CHANGED | reg.SlotStatus.LINK_STATE_CHANGED
    return bool(written(operation, reg.SLOT_STATUS, function.capabilities.express).sets(latched))


def _behind_quarantine(_: Operation, function: Function, ground: Ground) -> bool:
    above = (bridge.address for bridge in ground.topology.ancestors(function.address))
    return any(address in ground.lease.quarantined for address in above)


def _lets_go_of_quarantine(operation: Operation, function: Function, ground: Ground) -> bool:
    if function.address not in ground.lease.quarantined:
        return False
    caps = function.capabilities
    return bool(
        written(operation, reg.BRIDGE_CONTROL).sets(reg.BridgeControl.SECONDARY_BUS_RESET)
        or written(operation, reg.LINK_CONTROL, caps.express).clears(reg.LinkControl.LINK_DISABLE)
        or (caps.dpc and written(operation, reg.DPC_STATUS, caps.dpc).sets(reg.DpcStatus.TRIGGER))
    )


def _unmasks_quarantine(operation: Operation, function: Function, ground: Ground) -> bool:
    if function.address not in ground.lease.quarantined or function.slot is None:
        return False
    dllsce = reg.SlotControl.LINK_STATE_CHANGED_ENABLE
    return bool(written(operation, reg.SLOT_CONTROL, function.capabilities.express).sets(dllsce))


def _is_firmwares(operation: Operation, _: Function, ground: Ground) -> bool:
    return is_theirs(operation, ground.topology, ground.edr)


_TABLE: Final[tuple[tuple[Reason, Callable[[Operation, Function, Ground], bool], str], ...]] = (
    (Reason.QUARANTINED, _behind_quarantine, "it is behind a port in quarantine, and stays as it is"),
    (Reason.QUARANTINED, _lets_go_of_quarantine, "the port is in quarantine, and stays down until that is lifted"),
    (Reason.QUARANTINED, _unmasks_quarantine, "the port is in quarantine: only Presence Detect Changed speaks"),
    (
        Reason.POLICY,
        _is_firmwares,
        "AER and DPC registers are the firmware's outside an EDR event (the host is firmware first)",
    ),
    (
        Reason.UNMASKED,
        _unmasked_reset,
        "a reset bit needs a lease that reaches to reset: open it again with that reach",
    ),
    (Reason.POLICY, _enables, "the slot is masked: Presence and Link State enables stay clear until close"),
    (Reason.POLICY, _unmasks_surprise_down, "the slot is masked: Surprise Down stays masked until close"),
    (Reason.POLICY, _destroys_evidence, "the slot is masked: what latches is verified and cleared by close alone"),
)


def object_to(
    operations: tuple[Operation, ...], lease: Lease, topology: Topology, edr: tuple[Address, ...] = ()
) -> Objection | None:
    """Return the first objection to any of the operations, or None."""
    domain = {function.address for function in topology.domain(lease.port)}
    ground = Ground(lease, topology, edr)
    for operation in operations:
        wrong = malformed(operation)
        if wrong:
            return Objection(Reason.MALFORMED, wrong)
        if operation.function not in domain:
            return Objection(Reason.OUTSIDE, f"{operation.function} is not in the domain of {lease.port}")
        if operation.verb not in WRITES:
            continue
        function = topology.get(operation.function)
        for reason, applies, message in _TABLE:
            if applies(operation, function, ground):
                return Objection(reason, f"{operation.function} at {operation.offset:#x}: {message}")
    return None


def enables_left(control: int | None) -> bool:
    """Tell whether a slot that answered still has an enable that a lease masks."""
    return control is not None and bool(control & int(reg.SLOT_MASKED))


def unsaved(lease: Lease, slots: tuple[Function, ...]) -> tuple[Function, ...]:
    """Return the slots whose enables the lease has not saved."""
    have: set[object] = {slot.port for slot in lease.slots}
    return tuple(slot for slot in slots if slot.address not in have)
