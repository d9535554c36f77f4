"""Firmware first: AER and DPC are the firmware's, but for the ports that it hands over, one event at a time.

Theory of operation
-------------------
The firmware notifies of a port (Error Disconnect Recover, PCI Firmware Spec 3.3 §4.6.12): it has seen containment and
wants the system to recover it. From then until it is told how that went (`_OST`), the AER and DPC registers of the
port, and of all below, are ours. Two things must never be lost: that an event is open, and that it was answered.

    notified          written to the ledger, then hinted to dpc
    lease retired     the answer to every event that it covers stands in the same entry
    answered          `_OST`, then written down. A fabric that dies in between answers again when it is back

So whoever crashes, the firmware hears at least once, and the same. A lease that was opened before the event, or whose
port it does not cover, has not dealt with it and answers nothing: nor does a slot operation. What no lease will deal
with, since its port is not known or in quarantine, is answered at once: it has failed.
"""

from __future__ import annotations

from typing import Final

from shared.pcie import Address, Function, Topology, answered
from shared.pcie import registers as reg
from shared.protocol import Reason, Refused
from shared.protocol.fabric import FunctionOutcome, Lease, Open, Operation, Rank, Reach, Result
from shared.recovery import ask, is_firmwares, look_at, read

from ._book import Answer, Book
from ._effects import Command

SUCCESS: Final = 0x80  # §4.6.13: the _OST status of an EDR notification
FAILURE: Final = 0x81
_RANKS_REFUSED: Final = frozenset({Rank.USER, Rank.EXTERNAL})


def handed_over(topology: Topology, edr: tuple[Address, ...], function: Address) -> bool:
    """Tell whether AER and DPC registers of `function` are ours: no firmware keeps them, or an open event covers it."""
    if not topology.firmware_first:
        return True
    return any(one in edr for one in topology.path(function))


def is_theirs(operation: Operation, topology: Topology, edr: tuple[Address, ...]) -> bool:
    """Tell whether a write is to a register that the firmware keeps for itself now."""
    function = topology.find(operation.function)
    if function is None or handed_over(topology, edr, operation.function):
        return False
    return is_firmwares(function, operation.offset, operation.width)


def may_not_mask(book: Book, asked: Open, port: Address) -> Command[Refused | None]:
    """Return why a reset by a user or a tool is refused: it would provoke an error that only the firmware may mask."""
    if asked.quiet_errors and book.topology.firmware_first:
        why = "the firmware keeps error reporting of this host (firmware first): it cannot be silenced here"
        return Refused(reason=Reason.POLICY, message=why)
    if asked.reach is not Reach.RESET or asked.rank not in _RANKS_REFUSED:
        return None
    if handed_over(book.topology, book.edr, port):
        return None
    for function in book.topology.domain(port):
        if function.is_port and (yield from _reports_surprise_down(function)):
            why = (
                f"the firmware keeps the error registers of this host (firmware first), so Surprise Down of"
                f" {function.address} cannot be masked, and the reset would report it"
            )
            return Refused(reason=Reason.POLICY, message=why)
    return None


def _reports_surprise_down(port: Function) -> Command[bool]:
    """Tell whether a port could report that its link went down. One that does not answer could."""
    caps = port.capabilities
    if not caps.aer:
        return False
    able, masked = yield from ask(
        (
            read(port.address, caps.express + reg.LINK_CAPABILITIES.offset, reg.LINK_CAPABILITIES.width),
            read(port.address, caps.aer + reg.UNCORRECTABLE_MASK.offset, reg.UNCORRECTABLE_MASK.width),
        )
    )
    if not answered(able) or not answered(masked):
        return True
    capable = bool(able & reg.LinkCapabilities.SURPRISE_DOWN_REPORTING)
    return capable and not masked & reg.Uncorrectable.SURPRISE_DOWN


def answers(book: Book, lease: Lease, outcomes: tuple[FunctionOutcome, ...]) -> Command[tuple[Answer, ...]]:
    """Return what the firmware is to be told once `lease` is retired: an answer to each open event that it covers."""
    topology, holding = book.topology, book.by_id(lease.id)
    left_down = () if holding is None else holding.quarantine
    found = {port: unrecovered(port) for port in book.edr if is_nobodys(book, port, left_down)}
    if lease.firmware_owned or lease.rank is Rank.SLOT_OPERATION:
        return tuple(found.values())
    domain = {function.address for function in topology.domain(lease.port)}
    for address in (port for port in book.edr if port in domain):
        port = topology.get(address)
        view = yield from look_at(port)
        here = {function.address for function in topology.domain(address)}
        recovered = view is not None and not view.contained
        recovered = recovered and all(one.result is Result.RECOVERED for one in outcomes if one.function in here)
        status = SUCCESS if recovered else FAILURE
        found[address] = Answer(port=address, status=status, lease=lease.id, cause=lease.cause)
    return tuple(found.values())


def is_nobodys(book: Book, port: Address, left_down: tuple[Address, ...] = ()) -> bool:
    """Tell whether no lease will deal with an event of `port`: it is not known, or in quarantine, as is `left_down`."""
    if book.topology.find(port) is None:
        return True
    above = set(book.topology.path(port))
    return not above.isdisjoint((*left_down, *(one.port for one in book.quarantines)))


def unrecovered(port: Address) -> Answer:
    """Return the answer for a port that nobody will recover."""
    return Answer(port=port, status=FAILURE)
