"""What a kernel log says, as typed events. Every event carries the number of the line that it stands on.

The log mixes three kinds of statement, and a replay must keep them apart: what the *hardware* did (containments, error
reports), what the *drivers* did (callbacks), and what the *kernel* decided upon it. Only the first two are inputs.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TypeAlias

import msgspec

from shared.pcie import Address
from shared.pcie.errors import Severity
from shared.pcie.registers import DpcReason
from shared.protocol.requests import DriverStep, Vote


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One statement of the log. `at` is the line's timestamp in seconds, None where it has none."""

    line: int
    at: float | None = None


class Containment(Event, frozen=True):
    """DPC took a link down. `source` is the requester id of the message received, 0 for a local error."""

    port: Address
    status: int
    source: int
    reason: DpcReason | None  # None: a reserved code


class ContainmentHeader(Event, frozen=True):
    """The TLP header that the RP PIO registers logged."""

    port: Address
    header: tuple[int, ...]


class RootPortError(Event, frozen=True):
    """RP PIO status and mask: which request of the root port's own failed. A status of 0 does not tell."""

    port: Address
    status: int
    mask: int


class ErrorHeading(Event, frozen=True):
    """First line of an AER report: `severity` and the layer that the kernel derived."""

    function: Address
    severity: Severity
    layer: str


class ErrorStatus(Event, frozen=True):
    """Second line: the registers, which decide."""

    function: Address
    vendor: int
    device: int
    status: int
    mask: int


class ErrorName(Event, frozen=True):
    """One bit of the report, as the kernel's text names it."""

    function: Address
    bit: int
    name: str


class ErrorHeader(Event, frozen=True):
    """The TLP header logged with the first error."""

    function: Address
    header: tuple[int, ...]


class Report(Event, frozen=True):
    """One AER report, put together from its lines. `printed` are the names in the log, `names` those of the bits."""

    function: Address
    severity: Severity
    layer: str
    vendor: int
    device: int
    status: int
    mask: int
    names: tuple[str, ...]
    printed: tuple[str, ...] = ()
    header: tuple[int, ...] = ()
    lines: tuple[int, ...] = ()  # all that it stands on


class Callback(Event, frozen=True):
    """A driver entered one of its error callbacks, or left it with a vote.

    `function` is known where the line has an address; otherwise `instance` is the driver's own name (`nvme0`).
    """

    driver: str
    step: DriverStep
    entered: bool
    function: Address | None = None
    instance: str | None = None
    vote: Vote | None = None


class NoCallback(Event, frozen=True):
    """The function's driver has no error callbacks; `driver` None: no driver is bound."""

    function: Address
    driver: str | None


class FirmwareEvent(Event, frozen=True):
    """EDR: firmware owns the error registers and tells the kernel of a containment."""

    receiver: Address
    reported: Address | None = None


class FirmwareAnswered(Event, frozen=True):
    """The kernel answered the firmware's event (_OST): 0x80 is success."""

    port: Address
    status: int


# --- Links and presence, as hardware shows them ---


class LinkLost(Event, frozen=True):
    """A host bridge's own interrupt said that the link below a root port went down."""

    port: Address


class HostLink(Event, frozen=True):
    """A host bridge's controller saw its link come up or go down. `speed` and `width` where it says them, else 0."""

    controller: str
    up: bool
    speed: int = 0
    width: int = 0


class Latched(Event, frozen=True):
    """What hotplug found in Slot Status."""

    port: Address
    status: int


class PowerFault(Event, frozen=True):
    """The slot's power controller reported a fault."""

    port: Address
    slot: str


class Unreachable(Event, frozen=True):
    """A function answered with all ones. `instance` where only the driver's own name is known.

    `hotplug`: it was pciehp that found no answer, so this port is one that it serves.
    """

    function: Address | None = None
    instance: str | None = None
    hotplug: bool = False


class SlowCommand(Event, frozen=True):
    """A slot did not complete a command in time."""

    port: Address


class Retraining(Event, frozen=True):
    """The kernel's cure for links that do not train: again, at 2.5 GT/s. `failed`: that did not help either."""

    port: Address
    failed: bool


# --- What the kernel does and concludes ---


class Resetting(Event, frozen=True):
    """Somebody in the kernel (VFIO, sysfs) began to reset a function, or was done."""

    function: Address
    done: bool


class Hung(Event, frozen=True):
    """A task is blocked for minutes."""

    task: str


class Decided(StrEnum):
    """What the kernel concluded. Never an input."""

    LINK_DOWN = "Link Down"
    LINK_UP = "Link Up"
    CARD_PRESENT = "Card present"
    CARD_NOT_PRESENT = "Card not present"
    IGNORED = "Link Down/Up ignored"
    NO_LINK = "the link did not come back"
    SLOT_RESET = "the bus was reset, drivers are told"
    RESET_FAILED = "subordinate device reset failed"
    RECOVERED = "device recovery successful"
    FAILED = "device recovery failed"
    REMOVED = "removed from its driver or from the bus"


class Decision(Event, frozen=True):
    """A conclusion of the kernel about a function, a port, or the slot below a port."""

    what: Decided
    function: Address
    slot: str | None = None
    text: str = ""
    card: bool = False  # said of function 0, meant for its whole card


class Found(Event, frozen=True):
    """Enumeration printed a function's identity."""

    function: Address
    vendor: int
    device: int
    class_code: int


class LinkStatus(Event, frozen=True):
    """A Link Status register value that was printed."""

    port: Address
    value: int


class Instance(Event, frozen=True):
    """A driver named its instance for a function (`nvme10`)."""

    name: str
    function: Address


class BusRange(Event, frozen=True):
    """The buses behind a bridge: secondary and subordinate."""

    bridge: Address
    first: int
    last: int


class BusRelease(Event, frozen=True):
    """Buses given back: the whole range that was behind a bridge whose address is not said."""

    domain: int
    first: int
    last: int


class Broken(msgspec.Struct, frozen=True):
    """A line that is cut or garbled: reported and skipped."""

    line: int
    text: str
    why: str


LogEvent: TypeAlias = (
    Containment
    | ContainmentHeader
    | RootPortError
    | ErrorHeading
    | ErrorStatus
    | ErrorName
    | ErrorHeader
    | Report
    | Callback
    | NoCallback
    | FirmwareEvent
    | FirmwareAnswered
    | LinkLost
    | HostLink
    | Latched
    | PowerFault
    | Unreachable
    | SlowCommand
    | Retraining
    | Resetting
    | Hung
    | Decision
    | Found
    | LinkStatus
    | Instance
    | BusRange
    | BusRelease
)
