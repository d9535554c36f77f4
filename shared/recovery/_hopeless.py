"""Which ports of a recovery are worth another reset inside the same lease, and end in quarantine if it does not help.

Asked of what rolling forward came to, so the same question is asked after each attempt: three answers in a row that
name a port put it into quarantine (DESIGN 4, Storms). A port is not reset again for the sake of some of its functions,
nor where nobody is at the other end of the link, nor where what came back is another device: hotplug's business.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from shared.pcie import Address, Topology
from shared.protocol.fabric import Lease, Reach, Result

from ._forward import Verified
from ._link import PortState


class Behind(StrEnum):
    """What became of the functions on a port's secondary bus, taken together."""

    NOBODY = "nobody"  # no function is known there
    SOME = "some"  # at least one recovered
    CHANGED = "changed"  # none recovered, but another device answers, or the slot is empty
    NONE = "none"  # all failed


# Whether to try again: state of the port -> what is behind it -> yes or no.
_NEVER: Final = dict.fromkeys(Behind, False)
_IF_ALL_FAILED: Final = _NEVER | {Behind.NONE: True}
_IF_NOT_CHANGED: Final = _IF_ALL_FAILED | {Behind.NOBODY: True}
TABLE: Final[dict[PortState, dict[Behind, bool]]] = {
    PortState.UP: _IF_ALL_FAILED,  # the link is up, and nothing behind it became ready
    PortState.UNSTABLE: _IF_NOT_CHANGED,  # it trains, and drops again
    PortState.LOST: _IF_NOT_CHANGED,
    PortState.BUSY: _IF_NOT_CHANGED,  # containment could not be released
    PortState.NO_LINK: _NEVER,  # it never trains: nobody is there
    PortState.GONE: _NEVER,  # P8
    PortState.NO_ANSWER: _NEVER,  # the port itself cannot be reached: the one above it is the case
    PortState.EMPTY: _NEVER,
    PortState.FIRMWARE: _NEVER,  # not ours to release
}


def hopeless(verified: Verified, lease: Lease, topology: Topology) -> tuple[Address, ...]:
    """Return the ports to be reset again, none of them behind another. Empty for a lease that takes no link down."""
    if lease.reach is not Reach.RESET:
        return ()
    found = {
        one.port
        for one in verified.ports
        if one.port not in lease.quarantined and TABLE[one.state][_behind(one.port, verified, lease, topology)]
    }
    return tuple(
        sorted(port for port in found if not any(bridge.address in found for bridge in topology.ancestors(port)))
    )


def _behind(port: Address, verified: Verified, lease: Lease, topology: Topology) -> Behind:
    covered = {saved.address for saved in lease.functions}
    results = {verified.result(one.address) for one in topology.children(port) if one.address in covered}
    if not results:
        return Behind.NOBODY
    if Result.RECOVERED in results:
        return Behind.SOME
    return Behind.CHANGED if results & {Result.REPLACED, Result.REMOVED} else Behind.NONE
