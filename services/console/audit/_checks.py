"""What registers should not hold while nobody works on a function: a decision table over config images. Pure.

A row says what is wrong, why that hurts, and what to do. Bits that are wrong only for a while are told apart by whoever
knows the leases: here an image is judged as it is. A register that reads all ones is no answer, and never a finding
(P9); only of a mask of errors it means what it says, if the registers beside it do answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from typing import Final

import msgspec

from shared.pcie import Address, Function, all_ones, describe
from shared.pcie import registers as reg

HEADER_BYTES: Final = 64  # §7.5.1: what Linux lets anybody read
PLAIN_BYTES: Final = reg.EXTENDED_START
_CAPABILITIES_LIST: Final = 0x0010  # of Status (§7.5.1.1.4)
_NOBODY: Final = 0xFFFF
# Errors that every function of a kind must be able to report; if all of these are masked, so is everything that counts.
_UNCORRECTABLE: Final = (
    reg.Uncorrectable.DATA_LINK_PROTOCOL
    | reg.Uncorrectable.POISONED_TLP
    | reg.Uncorrectable.UNEXPECTED_COMPLETION
    | reg.Uncorrectable.MALFORMED_TLP
    | reg.Uncorrectable.UNSUPPORTED_REQUEST
)
_CORRECTABLE: Final = (
    reg.Correctable.BAD_TLP
    | reg.Correctable.BAD_DLLP
    | reg.Correctable.REPLAY_ROLLOVER
    | reg.Correctable.REPLAY_TIMEOUT
)


class Severity(StrEnum):
    """How bad a finding is. Notes alone leave an audit clean."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


class Image(msgspec.Struct, frozen=True):
    """One function as it was read: so many bytes as there were.

    `hotplug_driver`: whether a hotplug driver is bound to the port; None where that cannot be known.
    """

    address: Address
    config: bytes
    hotplug_driver: bool | None = None


class Readings(msgspec.Struct, frozen=True):
    """What a source gave: images, and of the other functions, by name, why there is none."""

    images: tuple[Image, ...]
    unread: dict[str, str] = msgspec.field(default_factory=dict)


class Finding(msgspec.Struct, frozen=True):
    """One thing that is not as it should be, and what to do about it. `value` is what `register` held."""

    function: str
    check: str
    severity: Severity
    why: str
    todo: str = ""
    register: str | None = None
    value: int | None = None


class View(msgspec.Struct, frozen=True):
    """An image with what it says of itself. `live`: it was read through a fabric, which knows who holds what."""

    function: Function
    image: Image
    live: bool

    def get(self, register: reg.Register, base: int = 0) -> int | None:
        """Return what a register holds; None beyond the end of the image."""
        end = base + register.offset + register.width
        if end > len(self.image.config):
            return None
        return int.from_bytes(self.image.config[end - register.width : end], "little")


class Rule(msgspec.Struct, frozen=True):
    """A row of the table. `base` is the capability that the register stands in, by its name; empty: the header."""

    check: str
    register: reg.Register
    base: str
    severity: Severity
    wrong: Callable[[View, int], bool]
    why: str
    linux: str  # what to do on a host that Linux runs
    live: str  # ... and on one that a fabric serves


def judge(image: Image, *, live: bool = False) -> tuple[Finding, ...]:
    """Return what is not as it should be in one function."""
    padded = image.config.ljust(reg.CONFIG_SPACE_SIZE, b"\0")
    function = describe(image.address, padded, None)
    if function is None:
        return (
            () if _is_virtual(image.config) else (_note(image, "unanswered", "it does not answer: gone, or in reset"),)
        )
    view = View(function, image, live)
    return (*_of_rules(view), *_of_length(view))


def unread(function: str, why: str) -> Finding:
    """Say of a function that nothing of it was read."""
    return Finding(function=function, check="unread", severity=Severity.NOTE, why=why)


def only_headers(images: Iterable[Image]) -> bool:
    """Tell whether there is nothing but headers, from which next to nothing can be judged."""
    return all(len(image.config) <= HEADER_BYTES for image in images)


def _of_rules(view: View) -> Iterator[Finding]:
    unanswered: list[str] = []
    for rule in RULES:
        base = getattr(view.function.capabilities, rule.base) if rule.base else 0
        value = view.get(rule.register, base)
        if value is None or (rule.base and not base):
            continue
        if value == all_ones(rule.register.width) and not (rule.register in _MASKS and _aer_answers(view)):
            unanswered.append(rule.register.name)
        elif rule.wrong(view, value):
            yield Finding(
                function=str(view.function.address),
                check=rule.check,
                severity=rule.severity,
                why=rule.why,
                todo=(rule.live if view.live else rule.linux).format(function=view.function.address),
                register=rule.register.name,
                value=value,
            )
    if unanswered:
        names = ", ".join(dict.fromkeys(unanswered))
        yield _note(view.image, "unanswered", f"reads all ones, which is no answer: {names}")


def _of_length(view: View) -> Iterator[Finding]:
    """Say what could not be judged, because the image ends before it."""
    length = len(view.image.config)
    listed = (view.get(reg.STATUS) or 0) & _CAPABILITIES_LIST
    if length < PLAIN_BYTES and listed:
        lacking = "slot, link, AER and DPC"
    elif length < reg.CONFIG_SPACE_SIZE and view.function.capabilities.express:
        lacking = "AER and DPC" if length == PLAIN_BYTES else f"what is behind byte {length:#x}"
    else:
        return
    told = f"{length} bytes are not enough bytes to judge {lacking}; read all 4096 as root: lspci -xxxx"
    yield _note(view.image, "cut", told)


def _note(image: Image, check: str, why: str) -> Finding:
    return Finding(function=str(image.address), check=check, severity=Severity.NOTE, why=why)


def _is_virtual(config: bytes) -> bool:
    """Tell a virtual function, whose Vendor ID alone reads all ones (§9.3.4.1.1), from one that does not answer."""
    return int.from_bytes(config[:2], "little") == _NOBODY and bool(config[4:].strip(b"\xff"))


# --- What is wrong ---


def _has_slot(view: View) -> bool:
    return view.function.hotplug_capable and view.image.hotplug_driver is not False


def _interrupts_off(view: View, control: int) -> bool:
    return view.function.hotplug_capable and not control & reg.SlotControl.HOTPLUG_INTERRUPT_ENABLE


def _missing(view: View, control: int) -> int:
    """Return the enables that should be set and are not.

    DLLSCE is there only with Link Active Reporting (§7.5.3.10). Linux leaves PDCE off in a slot with a button
    (pcie_enable_notification): what the button is for need not be told twice. Holdfast does not.
    """
    if not _has_slot(view):
        return 0
    assert view.function.slot is not None
    wanted = reg.SlotControl(0)
    if view.live or reg.SlotCapabilities.ATTENTION_BUTTON not in view.function.slot:
        wanted |= reg.SlotControl.PRESENCE_CHANGED_ENABLE
    if view.function.link_active_reporting:
        wanted |= reg.SlotControl.LINK_STATE_CHANGED_ENABLE
    return wanted & ~control


def _reports_nothing_fatal(view: View, control: int) -> bool:
    """Tell whether fatal errors go nowhere: either of two enables lets them through (§6.2.6)."""
    serr = (view.get(reg.COMMAND) or 0) & reg.Command.SERR
    return bool(view.function.capabilities.aer) and not control & reg.DeviceControl.FATAL_REPORTING and not serr


def _aer_answers(view: View) -> bool:
    severity = view.get(reg.UNCORRECTABLE_SEVERITY, view.function.capabilities.aer)
    return severity not in {None, all_ones(reg.UNCORRECTABLE_SEVERITY.width)}


_MASKS: Final = frozenset({reg.UNCORRECTABLE_MASK, reg.CORRECTABLE_MASK})
_WHO: Final = "`holdfast history {function}` says who wrote it; "
_RESCAN: Final = "find out which tool left it so; "

RULES: Final = (
    Rule(
        "interrupts_off", reg.SLOT_CONTROL, "express", Severity.ERROR,
        lambda view, control: _interrupts_off(view, control) and _has_slot(view),
        "HPIE is off in a slot that is hotplug capable: nobody hears of a removal, an insertion or the button",
        "bind pciehp to the port again, unless the firmware owns its slots",
        _WHO + "restart hotplug, which sets it again",
    ),
    Rule(
        "interrupts_off_undriven", reg.SLOT_CONTROL, "express", Severity.NOTE,
        lambda view, control: _interrupts_off(view, control) and not _has_slot(view),
        "HPIE is off, and no hotplug driver is bound to the port: nobody would listen",
        "bind pciehp to the port if its slot is to be watched",
        "",
    ),
    Rule(
        "masked", reg.SLOT_CONTROL, "express", Severity.ERROR,
        lambda view, control: _missing(view, control) != 0 and not control & reg.SLOT_MASKED,
        "PDCE and DLLSCE are off, as for a reset, and nobody set them again: a removal goes unnoticed",
        _RESCAN + "then unbind pciehp from the port and bind it again, which sets its enables",
        _WHO + "restart hotplug, which sets them again",
    ),
    Rule(
        "half_masked", reg.SLOT_CONTROL, "express", Severity.ERROR,
        lambda view, control: _missing(view, control) != 0 and control & reg.SLOT_MASKED != 0,
        "one of PDCE and DLLSCE is off: a change of presence, or of the link, goes unnoticed",
        _RESCAN + "then unbind pciehp from the port and bind it again, which sets its enables",
        _WHO + "restart hotplug, which sets it again",
    ),
    Rule(
        "link_disabled", reg.LINK_CONTROL, "express", Severity.ERROR,
        lambda view, control: view.function.is_port and control & reg.LinkControl.LINK_DISABLE != 0,
        "Link Disable is set: what is behind the port cannot be reached",
        _RESCAN + "setpci -s {function} CAP_EXP+10.w=0000:0010 lets the link train",
        _WHO + "`holdfast reset` of a function behind it takes a lease and brings the link back",
    ),
    Rule(
        "in_reset", reg.BRIDGE_CONTROL, "", Severity.ERROR,
        lambda view, control: view.function.kind.is_bridge and control & reg.BridgeControl.SECONDARY_BUS_RESET != 0,
        "Secondary Bus Reset is set: everything behind the bridge is held in reset",
        _RESCAN + "setpci -s {function} BRIDGE_CONTROL=0000:0040 ends the reset",
        _WHO + "`holdfast reset` of a function behind it takes a lease and ends the reset",
    ),
    Rule(
        "contained", reg.DPC_STATUS, "dpc", Severity.ERROR,
        lambda _, status: status & reg.DpcStatus.TRIGGER != 0,
        "DPC has triggered and was not released: the link is held down",
        "see the kernel log for its cause (`holdfast explain`); setpci -s {function} ECAP_DPC+8.w=0001:0001 releases it",
        "are dpc and coordinator running? `holdfast doctor` tells",
    ),
    Rule(
        "uncorrectable_masked", reg.UNCORRECTABLE_MASK, "aer", Severity.ERROR,
        lambda _, mask: mask & _UNCORRECTABLE == _UNCORRECTABLE,
        "every uncorrectable error is masked: a failure is neither reported nor contained",
        _RESCAN + "setpci -s {function} ECAP_AER+8.l=00000000 reports them all; a reboot sets what the firmware wants",
        _WHO + "a lease that is closed restores the masks as they were",
    ),
    Rule(
        "correctable_masked", reg.CORRECTABLE_MASK, "aer", Severity.WARNING,
        lambda _, mask: mask & _CORRECTABLE == _CORRECTABLE,
        "every correctable error is masked: a link that decays is not seen before it fails",
        "setpci -s {function} ECAP_AER+14.l=00002000 reports all but advisory errors",
        _WHO + "a lease that is closed restores the masks as they were",
    ),
    Rule(
        "fatal_unreported", reg.DEVICE_CONTROL, "express", Severity.WARNING,
        lambda view, control: view.function.kind.is_bridge and _reports_nothing_fatal(view, control),
        "neither Fatal Error Reporting nor SERR# is enabled: the port's own fatal errors are reported to nobody",
        "setpci -s {function} CAP_EXP+8.w=0004:0004; a tool that silences a port should set it again",
        _WHO + "a hold with --quiet-errors sets it again when it ends",
    ),
    Rule(
        "fatal_unreported_device", reg.DEVICE_CONTROL, "express", Severity.NOTE,
        lambda view, control: not view.function.kind.is_bridge and _reports_nothing_fatal(view, control),
        "neither Fatal Error Reporting nor SERR# is enabled: the device's fatal errors are reported to nobody",
        "usual where Linux before 6.2, or the firmware, owns AER; else setpci -s {function} CAP_EXP+8.w=0004:0004",
        "",
    ),
    Rule(
        "errors_not_forwarded", reg.BRIDGE_CONTROL, "", Severity.WARNING,
        lambda view, control: (
            view.function.kind.is_bridge
            and bool(view.function.capabilities.aer)
            and not control & reg.BridgeControl.SERR
        ),
        "SERR# of Bridge Control is off: no error message from behind the port reaches the root (§7.5.1.3.13)",
        "setpci -s {function} BRIDGE_CONTROL=0002:0002; a tool that silences a port should set it again",
        _WHO + "a hold with --quiet-errors sets it again when it ends",
    ),
)  # fmt: skip
