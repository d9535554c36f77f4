"""Rolling forward and closing, written once against "some register access": pure, no waiting, no I/O.

The logic is generators that yield effects (`Do`, `Pause`, `Note`) and are sent their results. The coordinator drives
them over the bus under its token, the fabric at the hardware, a test over a bare config space.
"""

from ._close import LeaseClosed, SlotClosed, Verdict, close_lease, close_slot
from ._degraded import link_read, links_now, saved_link
from ._effects import Do, Effect, Logic, Note, Pause, Step, ask, modify, read, write
from ._forward import PortOutcome, Verified, roll_forward, settle
from ._hopeless import hopeless
from ._link import Bounds, PortState, hold_down, release
from ._port import PortView, look_at, port_reads, port_view
from ._quiet import found_reporting, hush, quiet_registers, silenced
from ._restore import is_firmwares
from ._verify import Finding, command_read, find, identify, identity_reads, verify

__all__ = [
    "Bounds",
    "Do",
    "Effect",
    "Finding",
    "LeaseClosed",
    "Logic",
    "Note",
    "Pause",
    "PortOutcome",
    "PortState",
    "PortView",
    "SlotClosed",
    "Step",
    "Verdict",
    "Verified",
    "ask",
    "close_lease",
    "close_slot",
    "command_read",
    "find",
    "found_reporting",
    "hold_down",
    "hopeless",
    "hush",
    "identify",
    "identity_reads",
    "is_firmwares",
    "link_read",
    "links_now",
    "look_at",
    "modify",
    "port_reads",
    "port_view",
    "quiet_registers",
    "read",
    "release",
    "roll_forward",
    "saved_link",
    "settle",
    "silenced",
    "verify",
    "write",
]
