"""What hotplug's facts carry: link, slot and device."""

from __future__ import annotations

from shared.pcie import Address, Identity

from ._fact_data import Data
from .facts import Ignored
from .requests import Channel, SlotState


class LinkDownData(Data, frozen=True):
    """The link of a slot went down for good. `presence`: present, absent, or unknown where it means nothing."""

    slot: int
    presence: str


class LinkUpData(Data, frozen=True):
    """The link of a slot came up, and why it was brought up."""

    why: str


class SlotStateData(Data, frozen=True, rename={"before": "from"}):
    """A slot changed its state."""

    slot: int
    before: SlotState
    to: SlotState
    why: str


class SlotDeferredData(Data, frozen=True):
    """Events that hotplug leaves latched (Slot Status bits), and by which row of its decision table."""

    slot: int
    why: str
    latched: int | None = None
    row: str | None = None


class SlotIgnoredData(Data, frozen=True):
    """Events (Slot Status bits) that changed nothing."""

    slot: int
    latched: int
    reason: Ignored
    why: str


class SlotButtonData(Data, frozen=True):
    """The attention button was pressed; `state` is that of the slot after it."""

    slot: int
    state: SlotState


class SlotPowerFaultData(Data, frozen=True):
    """A power fault, whether it asserted again when cleared, and whether the slot can be switched off."""

    slot: int
    lasts: bool
    power_controller: bool | None = None
    why: str | None = None


class SlotLatchData(Data, frozen=True):
    """The slot's latch was opened or closed."""

    slot: int
    open: bool
    state: SlotState


class SlotNotReadyData(Data, frozen=True):
    """A bring-up failed."""

    why: str


class SlotReconciledData(Data, frozen=True):
    """Slot Control bits that were set again."""

    slot: int
    set: int
    why: str


class DeviceData(Data, frozen=True):
    """A registered function; `generation` counts its registrations."""

    function: Address
    generation: int


class DeviceAddedData(DeviceData, frozen=True):
    """A function was registered; `driver` is None where none was bound."""

    why: str
    identity: Identity
    driver: str | None


class DeviceJudgedData(DeviceData, frozen=True):
    """A function was found gone, or found to be the same."""

    why: str


class DeviceReboundData(DeviceData, frozen=True):
    """A function's driver was bound anew."""

    driver: str | None


class DeviceChannelData(DeviceData, frozen=True, rename={"before": "from"}):
    """The state of the way to a device changed."""

    why: str
    before: Channel
    to: Channel
