"""What the fabric's facts about its leases carry. Register values are numbers as they were read or written."""

from __future__ import annotations

import msgspec

from shared.pcie import Address

from ._fact_data import Data
from .fabric import Reach, Role, Verb


class LeaseOpenedData(Data, frozen=True):
    """Who took a lease, how far it reaches, and how long (seconds) its holder may be silent."""

    rank: str
    reach: Reach
    holder: str
    allowed_s: float


class MaskedSlot(msgspec.Struct, frozen=True, kw_only=True):
    """One slot of a mask: the Slot Control enables as they were found, and whether the port could be reached."""

    port: Address
    saved_enables: int
    surprise_down_was_masked: bool | None
    reached: bool


class LeaseMaskedData(Data, frozen=True):
    """The slots that were masked, and the functions whose reporting of errors is silenced as well."""

    slots: tuple[MaskedSlot, ...]
    quiet: tuple[Address, ...] = ()


class Written(Data, frozen=True):
    """One register access that was done; `value` is what was written, None where nothing answered."""

    verb: Verb
    function: Address
    value: int | None
    offset: int | None = None
    width: int | None = None
    mask: int | None = None


class LeaseExecutedData(Data, frozen=True):
    """Command `n` of a lease wrote; `masked` are the slots that were masked when it set a reset bit (P1)."""

    n: int
    operations: tuple[Written, ...]
    masked: tuple[Address, ...] | None = None


class LeaseRefusedData(Data, frozen=True):
    """A command that was refused, and whose."""

    command: str
    reason: str
    why: str
    role: Role


class LeaseAbsorbedData(Data, frozen=True):
    """The lease that took this one over."""

    heir: str


class LeaseAdoptedData(Data, frozen=True):
    """The holder, the one before, how long that one had been silent (seconds), and whether it was longer than allowed."""

    holder: str
    before: str
    silent_s: float
    expired: bool


class LeaseUnmaskedData(Data, frozen=True):
    """One slot was unmasked: by which row of the closing table, what was cleared, left latched and restored."""

    row: str
    verdict: str
    because: str
    rounds: int
    cleared: int
    latched: int
    enables: int | None
    surprise_down_masked: bool | None


class LeaseFirmwareAnsweredData(Data, frozen=True):
    """The status that `_OST` told the firmware of an EDR event: 0x80 recovered, 0x81 not (PCI Firmware 3.3, 4.6.12)."""

    status: int


class QuarantineEnteredData(Data, frozen=True):
    """Why, and what holds the port down: `dpc` or `link_disable`."""

    why: str
    held_by: str


class QuarantineLiftedData(Data, frozen=True):
    """By which lease, and who wanted it."""

    by: str


class LeaseClosedData(Data, frozen=True):
    """Function -> its result, followed by the fields of its identity that differ."""

    outcomes: dict[str, tuple[str, ...]]
