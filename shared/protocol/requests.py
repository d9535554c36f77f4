"""What is asked of the coordinator, of hotplug, of drivers and of the machine."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

from shared.pcie import Address, IdentityField

from ._base import Message, Refused


class Cause(StrEnum):
    """Why a lease is taken."""

    DPC = "dpc"
    EDR = "edr"  # containment that firmware reports: the host is firmware first
    AER_FATAL = "aer_fatal"
    AER_NONFATAL = "aer_nonfatal"
    USER_RESET = "user_reset"
    HOLD = "hold"
    SLOT = "slot"
    LIFT = "lift"  # a quarantine ends: what is behind the port is brought back


class ResetMethod(StrEnum):
    """How a function is reset, in the kernel's order."""

    DEVICE_SPECIFIC = "device_specific"
    FLR = "flr"
    AF_FLR = "af_flr"
    PM = "pm"
    SLOT = "slot"
    BUS = "bus"


# --- Coordinator ---


class Recover(Message, frozen=True):
    """Ask for the recovery of `port` and all below. Answered at once; the outcome is a fact and a record.

    `functions` are those that reported the error, for the story and for the votes; `evidence` is what was read.
    """

    port: Address
    cause: Cause
    functions: tuple[Address, ...] = ()
    evidence: dict[str, Any] = msgspec.field(default_factory=dict)


class Reset(Message, frozen=True):
    """Reset one function. `lease` names an open lease to run inside of (HOLDFAST_LEASE).

    Without `domain` it is refused where it would reach beyond the function's device. `dry_run`: only say what it would
    hit (Planned, or why it would be refused); nothing is opened and nothing is written.
    """

    function: Address
    method: ResetMethod | None = None  # None: the first that works
    lease: str | None = None
    domain: bool = False
    dry_run: bool = False


class Hold(Message, frozen=True):
    """Take an external lease on `port`; or, with `lease`, say that its user still lives.

    `accept` names what may differ afterwards, because the reload intends it: such a device counts as the same.
    `quiet_errors` also silences SERR and the fatal and non-fatal reporting of the port, until close.
    """

    port: Address
    holder: str = "hold"
    lease: str | None = None
    accept: tuple[IdentityField, ...] = ()
    quiet_errors: bool = False


class Release(Message, frozen=True):
    """End a hold: verify and unmask."""

    lease: str


class Break(Message, frozen=True):
    """End a lease of the coordinator against its holder's will: no driver is waited for, it rolls forward and closes."""

    lease: str
    by: str = "operator"


class Lift(Message, frozen=True):
    """End the quarantine of `port`: bring back what is behind it, verify and unmask. `by`: who wants it, and why."""

    port: Address
    by: str = "operator"


class Accepted(Message, frozen=True, tag="accepted"):
    """The request is under way under this lease. `joined` tells that it was under way already."""

    lease: str
    joined: bool = False


class Planned(Message, frozen=True, tag="planned"):
    """What a reset would do: `method` at `port` hits `hits`, and masks `masked`. `beyond`: those of other devices."""

    function: Address
    method: ResetMethod
    port: Address
    hits: tuple[Address, ...]
    beyond: tuple[Address, ...] = ()
    masked: tuple[Address, ...] = ()


AcceptReply = Accepted | Refused
ResetReply = Accepted | Planned | Refused


# --- Hotplug ---


class SlotState(StrEnum):
    """States of a slot (DESIGN 5)."""

    OFF = "off"
    BLINKING_ON = "blinking_on"
    POWER_ON = "power_on"
    ON = "on"
    BLINKING_OFF = "blinking_off"
    POWER_OFF = "power_off"


class SlotRequest(Message, frozen=True):
    """Power a slot on or off, or ask for its status: the subject says which, and which port."""


class SlotReport(Message, frozen=True, tag="slot"):
    """A slot as hotplug sees it."""

    port: Address
    slot_number: int
    state: SlotState
    devices: tuple[Address, ...] = ()
    lease: str | None = None


SlotReply = SlotReport | Refused


# --- Drivers ---


class Channel(StrEnum):
    """State of the way to a device (kernel: pci_channel_state_t)."""

    NORMAL = "normal"
    FROZEN = "frozen"
    PERM_FAILURE = "perm_failure"


class DriverStep(StrEnum):
    """What a driver is told or asked (kernel: struct pci_error_handlers; bind and unbind: struct pci_driver)."""

    BIND = "bind"
    UNBIND = "unbind"
    ERROR_DETECTED = "error_detected"
    MMIO_ENABLED = "mmio_enabled"
    SLOT_RESET = "slot_reset"
    RESUME = "resume"
    RESET_PREPARE = "reset_prepare"
    RESET_DONE = "reset_done"


class Vote(StrEnum):
    """A driver's answer (kernel: pci_ers_result_t). NO_HANDLER: a bound driver without the callback asked for."""

    NONE = "none"
    CAN_RECOVER = "can_recover"
    RECOVERED = "recovered"
    NEED_RESET = "need_reset"
    NO_HANDLER = "no_handler"
    DISCONNECT = "disconnect"


class DriverCall(Message, frozen=True):
    """Call one callback of the function's driver. `lease` and `token` tell the driver which recovery speaks.

    It may arrive more than once. Calls with the same lease, step and channel are one call: run once, answered each
    time. `nonce` tells apart those without a lease. A driver refuses a token below one that the lease has come with.
    """

    function: Address
    step: DriverStep
    channel: Channel = Channel.NORMAL
    lease: str | None = None
    token: int = 0
    nonce: str = ""


class DriverAnswer(Message, frozen=True, tag="answer"):
    """What the driver says. `driver` is None where no driver is bound: such a function votes NONE."""

    vote: Vote
    driver: str | None = None
    has_callbacks: bool = False  # the driver has error_detected


DriverReply = DriverAnswer | Refused


# --- Machine ---


class Injection(StrEnum):
    """What a lab can do to real hardware. `Inject` says which field each one uses."""

    REMOVE = "remove"  # surprise removal of the card behind `target` (a port)
    INSERT = "insert"  # a card into the slot `target`: the last one, changed by `card`
    SWAP = "swap"  # remove and insert at once, changed by `card`
    LINK_FLAP = "link_flap"  # the link goes down for `for_s`, and comes back
    LINK_DOWN = "link_down"  # ... and stays down until LINK_UP
    LINK_UP = "link_up"
    STUCK_TRAINING = "stuck_training"  # the next training takes `for_s` (None: never ends)
    DEGRADED_LINK = "degraded_link"  # the next trainings reach only `speed` and `width`
    SLOW_READY = "slow_ready"  # the device below `target` answers only `for_s` after its link is up
    BUTTON = "button"  # the attention button is pressed
    POWER_FAULT = "power_fault"  # `for_s`: re-asserts when cleared until then; None: once
    MRL = "mrl"  # the latch is opened (`state` true) or closed
    ERROR = "error"  # AER error `names` at function `target`, with `header`
    DPC = "dpc"  # containment at port `target` for `reason`; with `source` for a received message
    DRIVER = "driver"  # change the driver of function `target`: `driver` as in the topology file
    INTERRUPT_DELAY = "interrupt_delay"  # the port's interrupts of `service` arrive `for_s` late from now on
    INTERRUPT_LOST = "interrupt_lost"  # the next `count` interrupts of `service` never arrive
    UNSTABLE_LINK = (
        "unstable_link"  # from the next training on the link drops `for_s` after it is up, `count` times (0: always)
    )
    EDR = (
        "edr"  # firmware first: the firmware notifies of port `target` (once more, or of a port that is not contained)
    )
    INTERRUPT = "interrupt"  # an unrelated interrupt on the vector of `service` of port `target` (a shared vector)


class Inject(Message, frozen=True):
    """One injection, at once or `after_s` seconds later. Answered when it has been planned."""

    what: Injection
    target: Address
    after_s: float = 0.0
    for_s: float | None = None
    names: tuple[str, ...] = ()  # kernel short names, "MalfTLP", "CmpltTO" ...; DPC's RP PIO: "memory_timeout" ...
    header: tuple[int, ...] = ()  # four doublewords
    severity: str | None = None  # ERROR: "fatal" or "nonfatal" overrides the severity register for this error
    reason: str | None = None  # DPC: "uncorrectable", "err_nonfatal", "err_fatal", "rp_pio", "software"
    source: Address | None = None  # DPC: the requester of the message received
    service: str | None = None  # "hotplug", "aer" or "dpc"
    state: bool | None = None
    speed: int | None = None
    width: int | None = None
    card: dict[str, dict[str, Any]] = msgspec.field(
        default_factory=dict
    )  # function number -> changed fields of the topology file: serial, device ...
    driver: dict[str, Any] = msgspec.field(default_factory=dict)
    count: int = 1  # ERROR (floods), INTERRUPT_LOST, UNSTABLE_LINK: how many times


class Injected(Message, frozen=True, tag="injected"):
    """The injection is planned, or done if it had no delay."""

    what: Injection
    target: Address


InjectReply = Injected | Refused


# --- Every service ---


class Level(StrEnum):
    """From which severity on log lines are written; facts are stated as `info`."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class SetLogLevel(Message, frozen=True):
    """Write log lines from `level` on, at once and until the process ends or is told otherwise."""

    level: Level


class LogLevel(Message, frozen=True, tag="log_level"):
    """The level from now on, and what it was before."""

    level: Level
    was: Level


LogLevelReply = LogLevel | Refused
