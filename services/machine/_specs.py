"""The tables of a topology file: what each function, slot, link and driver of the bench is."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from shared.pcie import Address
from shared.protocol.requests import DriverStep, Vote

Kind = Literal["root_port", "upstream_port", "downstream_port", "endpoint", "integrated_endpoint"]

_BRIDGES: Final = frozenset({"root_port", "upstream_port", "downstream_port"})
_PORTS: Final = frozenset({"root_port", "downstream_port"})
_SEATED: Final = frozenset({"upstream_port", "endpoint"})  # what stands at the lower end of a link
_CLASS_BRIDGE: Final = 0x060400
_CLASS_UNASSIGNED: Final = 0xFF0000
_READY_S: Final = 0.01


class MachineError(ValueError):
    """The topology file, or an injection, asks for what no hardware could be. The text names the place."""


class _Spec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A table of the topology file. An unknown key is a mistake."""


class SlotSpec(_Spec, frozen=True):
    """What the slot of a port has. `command_completed` false: the port needs no pause between commands."""

    number: int = 0
    hotplug: bool = True
    surprise: bool = True
    power_controller: bool = False
    button: bool = False
    mrl: bool = False
    command_completed: bool = False
    out_of_band_presence: bool = False
    presence_s: float = 0.0  # presence follows link and card so many seconds late: a belated PDC


class VectorsSpec(_Spec, frozen=True):
    """Interrupt message numbers; equal ones share a vector."""

    hotplug: int = 0
    aer: int = 0
    dpc: int = 0


class LinkSpec(_Spec, frozen=True):
    """The best that this end of a link can do, and how long training takes, in seconds."""

    speed: int = 3
    width: int = 4
    training_s: float = 0.02


class DriverSpec(_Spec, frozen=True):
    """How the function's driver answers. `delay_s` and `never` hold for every step, or by step."""

    name: str
    error_detected: Vote = Vote.NEED_RESET
    mmio_enabled: Vote = Vote.RECOVERED
    slot_reset: Vote = Vote.RECOVERED
    delay_s: float | dict[DriverStep, float] = 0.0
    never: bool | tuple[DriverStep, ...] = False  # the driver hangs: no answer at all
    callbacks: bool = True


class FunctionSpec(_Spec, frozen=True):
    """One function. Defaults are those of a well-behaved device."""

    address: Address
    kind: Kind
    vendor: int
    device: int
    under: Address | None = None
    bus: tuple[int, int] | None = None
    class_code: int | None = msgspec.field(name="class", default=None)
    revision: int = 0
    subsystem: int = 0
    serial: str | int | None = None
    present: bool = True  # false: the card is not seated at the start; INSERT seats it
    aer: bool = True
    dpc: bool = False
    dpc_trigger: Literal["fatal", "nonfatal"] = "fatal"
    rp_busy_s: float = 0.0
    surprise_down: bool = True  # the port reports Surprise Down (Link Capabilities)
    slot: SlotSpec | None = None
    vectors: VectorsSpec = VectorsSpec()
    link: LinkSpec | None = None
    flr: bool = False
    pm_reset: bool = False  # No_Soft_Reset is clear: D3hot to D0 resets the function
    bars: tuple[int, ...] = ()
    ready_s: float | None = None
    driver: DriverSpec | None = None

    @property
    def is_bridge(self) -> bool:
        """Whether the function has a type 1 header."""
        return self.kind in _BRIDGES

    @property
    def is_port(self) -> bool:
        """Whether a link leads down from here."""
        return self.kind in _PORTS

    @property
    def is_seated(self) -> bool:
        """Whether the function stands at the lower end of a link, or could."""
        return self.kind in _SEATED

    @property
    def class_or_default(self) -> int:
        """The class code, 24 bits."""
        if self.class_code is not None:
            return self.class_code
        return _CLASS_BRIDGE if self.is_bridge else _CLASS_UNASSIGNED

    @property
    def ready_after_s(self) -> float:
        """How long after its link is up the function begins to answer, in seconds."""
        if self.ready_s is not None:
            return self.ready_s
        return _READY_S if self.is_seated else 0.0

    @property
    def serial_number(self) -> int | None:
        """The Device Serial Number as 64 bits."""
        if isinstance(self.serial, str):
            return int.from_bytes(bytes.fromhex(self.serial.replace("-", "")), "big")
        return self.serial


class TopologyFile(_Spec, frozen=True):
    """All functions of the bench, parents named by `under`."""

    function: tuple[FunctionSpec, ...]
