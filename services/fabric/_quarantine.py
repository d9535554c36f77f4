"""Quarantine: a port that stays down until somebody says otherwise, and the fabric alone remembers what it owes.

Theory of operation
-------------------
The coordinator decides, and holds the port down under its lease (containment, or Link Disable). `close` then writes
one record per port, in the same entry that retires the lease: there is no moment in which neither a lease nor a record
knows what the slot's enables were (P2). The lease that lifts a quarantine takes the record out in the same entry in
which it is opened, and inherits what the record kept.

In between the record rules, by this table:

    who                                        may
    any lease on the port or below             not be opened: QUARANTINED
    ... the coordinator's that lifts           be opened on exactly the port
    ... a slot operation                       be opened on exactly the port: it masks nothing
    a lease above                              be opened; `Lease.quarantined` names the port. Nothing behind the port is
                                               its business; of the port's own slot it saves Presence Detect Changed
    any of these, at the port                  not let go of it, nor enable Link State Changed: QUARANTINED
    any of these, behind the port              not write: QUARANTINED

A port that slot operations have forgotten, because it went away with the card that it is part of, ends its quarantine:
whatever is seated there next begins anew (P4).

Registers may forget what the record says: a reset from above clears Link Disable (rolling forward sets it again), and
so does a host that loses power (the fabric sets it again, when it sees the hardware).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

import msgspec

from shared.pcie import Address, Function, Topology
from shared.pcie import registers as reg
from shared.protocol import Reason, Refused
from shared.protocol.fabric import Lease, Open, Operation, Quarantine, Rank, Reach, Role, SavedSlot
from shared.protocol.facts import What
from shared.recovery import Do, PortView, hold_down, look_at, modify

from ._book import Book, Holding
from ._effects import Command, tell
from ._mask import enables

_PDCE: Final = int(reg.SlotControl.PRESENCE_CHANGED_ENABLE)
_MASKED: Final = int(reg.SLOT_MASKED)
_SURPRISE_DOWN: Final = int(reg.Uncorrectable.SURPRISE_DOWN)


def behind(topology: Topology, ports: Collection[Address]) -> frozenset[Address]:
    """Return what is behind `ports`: nobody's business as long as they are in quarantine."""
    return frozenset(function.address for port in ports for function in topology.below(port))


def inside(topology: Topology, quarantines: Iterable[Quarantine], port: Address) -> tuple[Address, ...]:
    """Return the quarantined ports of a domain, those behind another left out."""
    domain = {function.address for function in topology.domain(port)}
    down = {one.port for one in quarantines if one.port in domain}
    return tuple(sorted(down - behind(topology, down)))


def reachable(topology: Topology, lease_port: Address, quarantined: Collection[Address]) -> tuple[Function, ...]:
    """Return the functions of a domain that are not behind a quarantined port."""
    hidden = behind(topology, quarantined)
    return tuple(function for function in topology.domain(lease_port) if function.address not in hidden)


def may_not_open(book: Book, asked: Open, role: Role, port: Address) -> Refused | None:
    """Return why a lease on `port` is refused for a quarantine, or None."""
    record = book.quarantine_over(port)
    if asked.lifts and role is not Role.COORDINATOR:
        return Refused(reason=Reason.ROLE, message=f"role {role} lifts no quarantine")
    if asked.lifts and (asked.rank, asked.reach) != (Rank.RECOVERY, Reach.RESET):
        return Refused(reason=Reason.POLICY, message="a quarantine is lifted by a recovery, which reaches to reset")
    if asked.lifts and asked.port not in book.down:
        return Refused(reason=Reason.POLICY, message=f"{asked.port} is not in quarantine")
    if record is None or (record.port == asked.port and (asked.lifts or asked.rank is Rank.SLOT_OPERATION)):
        return None
    how = record.release
    return Refused(reason=Reason.QUARANTINED, message=f"{record.port} is in quarantine ({record.why}): {how}")


def own_slot(record: Quarantine) -> SavedSlot | None:
    """Return what a lease above saves of the port's own slot: Presence Detect Changed alone speaks."""
    slot = next((one for one in record.slots if one.port == record.port), None)
    if slot is None:
        return None
    return SavedSlot(port=slot.port, enables=slot.enables & _PDCE, surprise_down_masked=None)


# --- Entering ---


def may_not_close(holding: Holding, ports: tuple[Address, ...], topology: Topology) -> Command[Refused | None]:
    """Return why these ports of the lease cannot go into quarantine, or None. Each must be held down already."""
    lease = holding.lease
    domain = {function.address for function in topology.domain(lease.port)}
    hidden = behind(topology, (*ports, *lease.quarantined))
    for address in ports:
        port = topology.find(address)
        if port is None or not port.is_port or address not in domain:
            return Refused(
                reason=Reason.OUTSIDE, message=f"{address} is no port of the domain of {lease.port}", lease=lease.ref
            )
        if address in hidden or address in lease.quarantined:
            return Refused(reason=Reason.POLICY, message=f"{address} is in quarantine as it is", lease=lease.ref)
        if held_by((yield from look_at(port))) is None:
            why = f"nothing holds {address} down: trigger its containment or disable its link first"
            return Refused(reason=Reason.POLICY, message=why, lease=lease.ref)
    return None


def held_by(view: PortView | None) -> str | None:
    """Return what holds a port down, as the fact says it; None: nothing does, or it does not answer."""
    if view is None:
        return None
    if view.contained:
        return "dpc"
    return "link_disable" if view.disabled else None


def record(lease: Lease, port: Address, why: str, topology: Topology) -> Quarantine:
    """Return the record of one port: what the lease has saved at it and below."""
    here = {function.address for function in topology.domain(port)}
    return Quarantine(
        port=port,
        lease=lease.id,
        why=why,
        slots=tuple(_kept(one, topology) for one in lease.slots if one.port in here),
        functions=tuple(one for one in lease.functions if one.address in here),
        links=tuple(one for one in lease.links if one.port in here),
    )


def _kept(slot: SavedSlot, topology: Topology) -> SavedSlot:
    """Return what is owed of a slot once the lease is over: its mask of Surprise Down not where that is the firmware's."""
    return msgspec.structs.replace(slot, surprise_down_masked=None) if topology.firmware_first else slot


# --- Staying ---


def hold_again(book: Book) -> Command[None]:
    """Hold down every quarantined port that nothing holds down any more, its slot masked first. May run at any time."""
    hidden = behind(book.topology, book.down)
    for kept in book.quarantines:
        port = book.topology.find(kept.port)
        if port is None or port.address in hidden:
            continue
        slot = next((one for one in kept.slots if one.port == kept.port), None)
        masked = {one.port for holding in book.leases for one in holding.lease.slots}
        if slot is not None and slot.port not in masked:  # else a lease above masks it, and will restore it
            yield from _mask_again(port, slot)
        if held_by((yield from look_at(port))) is None:
            yield from hold_down(port)
            by = held_by((yield from look_at(port)))
            if by is not None:  # else it does not answer: there is nothing to hold
                why = f"held down again, for the hardware forgot: {kept.why}"
                yield tell(What.QUARANTINE_ENTERED, kept.port, kept.lease, why=why, held_by=by)


def _mask_again(port: Function, slot: SavedSlot) -> Command[None]:
    control, errors = yield from enables(port)
    wanted = slot.enables & _PDCE
    operations: list[Operation] = []
    if errors is not None and slot.surprise_down_masked is not None and not errors & _SURPRISE_DOWN:
        at = port.capabilities.aer + reg.UNCORRECTABLE_MASK.offset
        operations.append(modify(port.address, at, 4, mask=_SURPRISE_DOWN, value=_SURPRISE_DOWN))
    if control is not None and control & _MASKED != wanted:
        at = port.capabilities.express + reg.SLOT_CONTROL.offset
        operations.append(modify(port.address, at, 2, mask=_MASKED, value=wanted))
    if operations:
        yield Do(tuple(operations))
