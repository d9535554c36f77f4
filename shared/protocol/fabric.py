"""What is said to the fabric: five commands on a lease, three questions, and one acknowledgement.

`open`, `execute`, `beat`, `adopt` and `close` are sent on subjects of the sender's role. Each is executed as one step
and synced before it is answered; a request that timed out may have been executed, so it is repeated as it was: `open`
with the same id and `execute` with the same `n` are answered again, not executed again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum, StrEnum

import msgspec

from shared.pcie import Address, Identity, IdentityField, Topology, timing

from ._base import LeaseRef, Message, Refused


class Role(StrEnum):
    """Who asks, as the bus itself can tell from the subject."""

    COORDINATOR = "coordinator"  # opens recoveries, holds and user resets
    HOTPLUG = "hotplug"  # opens slot operations
    AER = "aer"  # opens nothing; acknowledges errors that it has read


class Rank(IntEnum):
    """Who waits for whom (DESIGN 4)."""

    SLOT_OPERATION = 0
    USER = 1
    EXTERNAL = 2
    RECOVERY = 3


class Reach(StrEnum):
    """How far the holder will go, which decides what open masks and absorbs."""

    NOTHING = "nothing"  # the link stays up (slot operations, FLR, PM reset): masks nothing
    CALLBACKS = "callbacks"  # driver callbacks only: masks, but waits for leases below
    RESET = "reset"  # takes the link down: masks, and absorbs leases below


class Verb(StrEnum):
    """What one operation does."""

    READ = "read"
    WRITE = "write"
    MODIFY = "modify"  # value = (read & ~mask) | (value & mask); RW1C bits outside the mask are written as zero
    ENUMERATE = "enumerate"  # find the functions behind a bridge again; the answer is their number


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One register access. `offset` is absolute in the function's config space, `width` 1, 2 or 4 bytes."""

    verb: Verb
    function: Address
    offset: int = 0
    width: int = 4
    value: int = 0
    mask: int = 0


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """What must hold, checked in the step that executes. None: either will do."""

    port: Address
    present: bool | None = None
    link_active: bool | None = None


class SavedSlot(msgspec.Struct, frozen=True, kw_only=True):
    """A slot's enables as they were found: what close restores, and no other bits."""

    port: Address
    enables: int  # PDCE and DLLSCE of Slot Control, those that were set
    surprise_down_masked: bool | None  # the port's own AER mask bit; None where the port has no AER


class SavedRegister(msgspec.Struct, frozen=True, array_like=True):
    """One register of a function's snapshot, in the order in which it is restored."""

    offset: int
    width: int
    value: int


class SavedFunction(msgspec.Struct, frozen=True, kw_only=True):
    """Who a function was when the lease was opened, and what its registers held."""

    address: Address
    identity: Identity
    registers: tuple[SavedRegister, ...] = ()
    uncorrectable: int | None = None  # AER status at open; None: no answer then, or no AER
    correctable: int | None = None
    accept: tuple[IdentityField, ...] = ()  # besides `Lease.accept`: what a lease meant that was absorbed, and is below


class Debts(msgspec.Struct, frozen=True, kw_only=True):
    """What a lease still owes the hardware: rolled forward before close."""

    in_reset: tuple[Address, ...] = ()  # bridges with Secondary Bus Reset set
    link_disabled: tuple[Address, ...] = ()
    contained: tuple[Address, ...] = ()  # ports with DPC Trigger Status set


class SavedReporting(msgspec.Struct, frozen=True, kw_only=True):
    """What `quiet_errors` silenced at a function: the bits that were set, and are set again at close."""

    function: Address
    command: int  # SERR# Enable of Command
    bridge_control: int  # SERR# Enable of Bridge Control
    device_control: int  # fatal and non-fatal reporting enables of Device Control


class SavedLink(msgspec.Struct, frozen=True, kw_only=True):
    """What a port's link had negotiated when the lease was opened: Link Status fields. Less afterwards is `degraded`."""

    port: Address
    speed: int
    width: int


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """An open lease as its holder sees it, token included."""

    id: str
    token: int
    port: Address
    rank: Rank
    reach: Reach
    role: Role
    cause: str
    holder: str
    allowed_s: float
    last_n: int = 0  # the last command executed under this token
    silent_s: float = 0.0  # since the last command or beat, on the fabric's monotonic clock
    age_s: float = 0.0  # since open
    slots: tuple[SavedSlot, ...] = ()
    functions: tuple[SavedFunction, ...] = ()
    links: tuple[SavedLink, ...] = ()
    debts: Debts = Debts()
    accept: tuple[IdentityField, ...] = ()  # in these a device may differ and still count as the same
    quiet: tuple[SavedReporting, ...] = ()
    quarantined: tuple[Address, ...] = ()  # ports of the domain that are left as they are, and all below them
    firmware_owned: bool = False  # AER and DPC registers are off limits: the host is firmware first, and no EDR is open
    lifted: str | None = None  # it has ended a quarantine: the lease under which that began

    @property
    def accepts(self) -> tuple[IdentityField, ...]:
        """What may differ somewhere in the domain."""
        return tuple(sorted({*self.accept, *(field for one in self.functions for field in one.accept)}))

    @property
    def ref(self) -> LeaseRef:
        """The lease without its token, as everybody may know it."""
        return LeaseRef(
            id=self.id, port=str(self.port), rank=self.rank.name.lower(), cause=self.cause, holder=self.holder
        )


class Result(StrEnum):
    """What became of one function, as the fabric judges it at close."""

    RECOVERED = "recovered"  # the same identity answers
    REPLACED = "replaced"  # another identity answers
    REMOVED = "removed"  # nothing answers, and presence agrees
    FAILED = "failed"  # nothing answers, yet a card is there; or nothing can be said
    QUARANTINED = "quarantined"  # it is contained for good, until an operator releases it


class FunctionOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of a lease for one function; `differs` names the identity fields that do not agree.

    `degraded`: it recovered, but the link above is slower or narrower than before (DESIGN 5, coordinator).
    """

    function: Address
    result: Result
    differs: tuple[str, ...] = ()
    degraded: bool = False


class RetiredLease(msgspec.Struct, frozen=True, kw_only=True):
    """A lease that has ended: who held it, and what became of its functions. `absorbed_by` names its heir, if any.

    `accepted`: in these fields a function that recovered may say something else of itself than before (Lease.accept).
    """

    lease: LeaseRef
    outcomes: tuple[FunctionOutcome, ...] = ()
    absorbed_by: str | None = None
    accepted: tuple[IdentityField, ...] = ()


class Quarantine(msgspec.Struct, frozen=True, kw_only=True):
    """A port that is contained for good, and what its release will restore. The fabric's own record, in its ledger.

    The port is held down by containment where it has DPC, else by Link Disable; of its slot only Presence Detect
    Changed speaks. No lease is opened on it or below, but by the `lifts` of the coordinator.
    """

    port: Address
    lease: str  # under which it was entered
    why: str
    age_s: float = 0.0
    slots: tuple[SavedSlot, ...] = ()
    functions: tuple[SavedFunction, ...] = ()
    links: tuple[SavedLink, ...] = ()

    @property
    def release(self) -> str:
        """The command that ends it."""
        return f"holdfast quarantine release {self.port}"


def quarantine_over(path: Sequence[Address], quarantines: Iterable[Quarantine]) -> Quarantine | None:
    """Return the highest quarantine on a path (nearest first): those below it can end only after it."""
    by_port = {one.port: one for one in quarantines}
    return next((by_port[address] for address in reversed(path) if address in by_port), None)


# --- The five commands ---


class Open(Message, frozen=True):
    """Take a lease. With the id of one's own open lease: widen its reach (escalate), or ask again after a timeout."""

    id: str
    port: Address
    rank: Rank
    cause: str
    holder: str
    reach: Reach = Reach.RESET
    allowed_s: float = timing.LEASE_ALLOWED
    accept: tuple[IdentityField, ...] = ()
    quiet_errors: bool = False
    lifts: bool = False  # ends the quarantine of exactly this port, and inherits what it owes


class Execute(Message, frozen=True):
    """Do these operations in order, as one step. `n` counts up from 1 for each token."""

    token: int
    n: int
    operations: tuple[Operation, ...]
    provided: tuple[Condition, ...] = ()


class Beat(Message, frozen=True):
    """The holder lives."""

    token: int


class Adopt(Message, frozen=True):
    """Take over the lease of a holder that fell silent or died: its token dies first, durably."""

    id: str
    holder: str


class Close(Message, frozen=True):
    """Verify, drain, unmask and retire. `quarantine`: ports of the domain that stay contained, and `why`.

    Their containment (or Link Disable) is written before, under the lease; a port that nothing holds down refuses.
    """

    token: int
    quarantine: tuple[Address, ...] = ()
    why: str = ""


class Opened(Message, frozen=True, tag="opened"):
    """The lease, now masked as far as it reaches, and whose leases it absorbed."""

    lease: Lease
    absorbed: tuple[str, ...] = ()


class Executed(Message, frozen=True, tag="executed"):
    """One value per operation: what was read, what was written, None where nothing answered."""

    values: tuple[int | None, ...]
    lease: LeaseRef | None = None


class Alive(Message, frozen=True, tag="alive"):
    """The beat was accepted."""

    lease: LeaseRef


class Adopted(Message, frozen=True, tag="adopted"):
    """The lease under its new token, with its debts."""

    lease: Lease


class Closed(Message, frozen=True, tag="closed"):
    """The lease is retired; one outcome per function of its domain."""

    lease: LeaseRef
    outcomes: tuple[FunctionOutcome, ...]


# --- Questions, open to every role ---


class Read(Message, frozen=True):
    """Read registers. Only READ operations; no token."""

    operations: tuple[Operation, ...]


class Dump(Message, frozen=True):
    """Read one function's whole config space."""

    function: Address


class Leases(Message, frozen=True):
    """Ask for the open leases, all or those that cover `port` (its own, and those on its ancestors)."""

    port: Address | None = None


class AskTopology(Message, frozen=True):
    """Ask for the host's functions as last enumerated."""


class Values(Message, frozen=True, tag="values"):
    """One value per operation, None where nothing answered, and the lease that covers the first function read."""

    values: tuple[int | None, ...]
    lease: LeaseRef | None = None


class Dumped(Message, frozen=True, tag="dumped"):
    """4096 bytes, all ones where nothing answered."""

    function: Address
    config: bytes


class LeaseList(Message, frozen=True, tag="leases"):
    """Open leases (tokens struck out: 0), and those that ended last, newest first."""

    leases: tuple[Lease, ...]
    retired: tuple[RetiredLease, ...] = ()
    quarantines: tuple[Quarantine, ...] = ()
    edr: tuple[Address, ...] = ()  # firmware first: ports whose EDR event has not been answered yet
    ended_s: dict[str, float] = msgspec.field(default_factory=dict)  # retired lease -> seconds since, if known


class TopologyReply(Message, frozen=True, tag="topology"):
    """The host's functions."""

    topology: Topology


# --- Role aer ---


class Acknowledge(Message, frozen=True):
    """Clear error status bits that the sender has read and published (RW1C, exactly these bits).

    Correctable status, device status and root error status at any time; uncorrectable status only while a lease of
    the function's domain is open (no evidence is cleared before its lease), or, if `stale`, while no message that is
    latched and no containment could be about it. Everything else is refused.
    """

    operations: tuple[Operation, ...]
    stale: bool = False


OpenReply = Opened | Refused
ExecuteReply = Executed | Refused
BeatReply = Alive | Refused
AdoptReply = Adopted | Refused
CloseReply = Closed | Refused
ReadReply = Values | Refused
DumpReply = Dumped | Refused
LeasesReply = LeaseList | Refused
AskTopologyReply = TopologyReply | Refused
AcknowledgeReply = Executed | Refused
