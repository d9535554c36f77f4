"""The tables of a topology file: what each function, slot, link and driver of the bench is."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from shared.pcie import Address
from shared.protocol.requests import DriverStep, Vote

Kind = Literal[
    "root_port", "upstream_port", "downstream_port", "endpoint", "pci_bridge", "conventional", "integrated_endpoint",
    "event_collector",
]  # fmt: skip

Quirk = Literal["reports_both"]  # a port that also passes on the message of an error that it contains (against §6.2.11)

_BRIDGES: Final = frozenset({"root_port", "upstream_port", "downstream_port", "pci_bridge"})
_PORTS: Final = frozenset({"root_port", "downstream_port"})
_ROOTS: Final = frozenset({"root_port", "event_collector"})
_SEATED: Final = frozenset({"upstream_port", "endpoint", "pci_bridge"})  # what stands at the lower end of a link
_ON_CARDS: Final = _SEATED | {"conventional"}
_CLASS_BRIDGE: Final = 0x060400
_CLASS_EVENT_COLLECTOR: Final = 0x080700
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


class SriovSpec(_Spec, frozen=True):
    """The virtual functions of a physical one: it has `total`, and firmware has enabled `enabled` of them.

    The first stands `offset` function numbers above the physical function, each other `stride` above the last.
    """

    total: int
    device: int  # VF Device ID: a virtual function itself says FFFFh
    enabled: int = 0
    offset: int = 1
    stride: int = 1
    driver: DriverSpec | None = None

    def addresses(self, physical: Address) -> tuple[Address, ...]:
        """Return where the virtual functions of the physical one stand."""
        first = physical.requester_id + self.offset
        return tuple(physical.with_requester_id(first + self.stride * number) for number in range(self.total))


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
    link_active_reporting: bool = True  # the port tells whether its link is active
    rrs_visibility: bool = True  # a root port: reads of a vendor ID that is not ready yet show it (RRS)
    slot: SlotSpec | None = None
    vectors: VectorsSpec = VectorsSpec()
    link: LinkSpec | None = None
    flr: bool = False
    af_flr: bool = False  # Function Level Reset by the Advanced Features capability
    pm_reset: bool = False  # No_Soft_Reset is clear: D3hot to D0 resets the function
    msi_x: int = 0  # how many MSI-X vectors there are; 0: no such capability
    acs: bool = False
    ltr: bool = False
    ari: bool = False  # the device has up to 256 functions: number 8 is 01.0, and so on (§6.13)
    sriov: SriovSpec | None = None
    collects: tuple[Address, ...] = ()  # event collectors: the integrated endpoints that report to it
    bars: tuple[int, ...] = ()
    ready_s: float | None = None
    driver: DriverSpec | None = None
    stale: tuple[str, ...] = ()  # AER errors whose status is latched at the start, of which no message was sent
    quirks: tuple[Quirk, ...] = ()

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
    def is_root(self) -> bool:
        """Whether error messages end here: the function has root error registers."""
        return self.kind in _ROOTS

    @property
    def is_express(self) -> bool:
        """Whether the function speaks PCI Express: it has that capability, and extended config space."""
        return self.kind != "conventional"

    @property
    def class_or_default(self) -> int:
        """The class code, 24 bits."""
        if self.class_code is not None:
            return self.class_code
        if self.kind == "event_collector":
            return _CLASS_EVENT_COLLECTOR
        return _CLASS_BRIDGE if self.is_bridge else _CLASS_UNASSIGNED

    @property
    def ready_after_s(self) -> float:
        """How long after its link is up the function begins to answer, in seconds."""
        if self.ready_s is not None:
            return self.ready_s
        return _READY_S if self.kind in _ON_CARDS else 0.0

    @property
    def serial_number(self) -> int | None:
        """The Device Serial Number as 64 bits."""
        if isinstance(self.serial, str):
            return int.from_bytes(bytes.fromhex(self.serial.replace("-", "")), "big")
        return self.serial


class TopologyFile(_Spec, frozen=True):
    """All functions of the bench, parents named by `under`."""

    function: tuple[FunctionSpec, ...]
    firmware_first: bool = False  # the firmware keeps AER and DPC, and hands containments over (EDR)
