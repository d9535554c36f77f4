"""One line of a kernel log into one event: a table of shapes, old wording and new (prior-art/linux-kernel.md, 2).

Each shape has a marker, which says what the line means to be, and a pattern, which must match all of it. A line with
the marker that does not match the pattern was cut or garbled: `CutLineError`.
"""

from __future__ import annotations

import re
from typing import Final

from shared.pcie import Address
from shared.pcie.errors import Severity, dpc_reason
from shared.protocol.requests import DriverStep, Vote

from ._events import (
    BusRange,
    Callback,
    Containment,
    ContainmentHeader,
    Decided,
    Decision,
    ErrorHeader,
    ErrorHeading,
    ErrorName,
    ErrorStatus,
    FirmwareAnswered,
    FirmwareEvent,
    Found,
    Instance,
    LogEvent,
    NoCallback,
    PowerFault,
)
from ._hardware import SHAPES as HARDWARE
from ._said import ADDRESS, UNBOUND, CutLineError, Said
from ._shape import Build, Shape

_DWORDS: Final = r"(?P<header>(?:0x)?[0-9a-f]{8}(?: (?:0x)?[0-9a-f]{8}){3,13})(?: E-E Prefixes:.*)?"

_CONTAINMENT: Final = (
    r"DPC: containment event, status:0x(?P<status>[0-9a-f]{4})"
    r"(?: source:0x(?P<source>[0-9a-f]{4})|: [A-Za-z ]+ detected"
    rf"|, ERR_(?:NON)?FATAL received from (?P<sender>{ADDRESS}))"
)
_BUS_ERROR: Final = (
    r"(?:AER: )?(?:PCIe|CXL) Bus Error: severity=(?P<severity>[^,]+), type=(?P<layer>[A-Za-z ]+),"
    r" ?(?:id=[0-9a-f]{4} ?)?\([A-Za-z ]+\)"
)
_ERROR_STATUS: Final = (
    r"\s*device \[(?P<vendor>[0-9a-f]{4}):(?P<device>[0-9a-f]{4})\]"
    r" error status/mask=(?P<status>[0-9a-f]{8})/(?P<mask>[0-9a-f]{8})"
)

_SEVERITIES: Final = {
    "Corrected": Severity.CORRECTABLE,
    "Correctable": Severity.CORRECTABLE,
    "Uncorrected (Non-Fatal)": Severity.NONFATAL,
    "Uncorrectable (Non-Fatal)": Severity.NONFATAL,
    "Uncorrected (Fatal)": Severity.FATAL,
    "Uncorrectable (Fatal)": Severity.FATAL,
}
# Kernel: pci_ers_result_t, as drivers print it.
_VOTES: Final = {1: Vote.NONE, 2: Vote.CAN_RECOVER, 3: Vote.NEED_RESET, 4: Vote.DISCONNECT, 5: Vote.RECOVERED}
_STEPS: Final = {
    "err_detected": DriverStep.ERROR_DETECTED,
    "detected callback": DriverStep.ERROR_DETECTED,
    "slot_reset": DriverStep.SLOT_RESET,
    "slot reset callback": DriverStep.SLOT_RESET,
}
_SLOT_WORDS: Final = {
    "Link Down/Up ignored": Decided.IGNORED,
    "Link Down": Decided.LINK_DOWN,
    "Link Up": Decided.LINK_UP,
    "Card not present": Decided.CARD_NOT_PRESENT,
    "Card present": Decided.CARD_PRESENT,
    "No link": Decided.NO_LINK,
    "Cannot train link": Decided.NO_LINK,
}


def _words(text: str) -> tuple[int, ...]:
    return tuple(int(word, 16) for word in text.split())


def _containment(said: Said, match: re.Match[str]) -> LogEvent:
    status = int(match["status"], 16)
    source = int(match["source"] or "0", 16)
    if match["sender"]:
        source = Address.parse(match["sender"]).requester_id
    return Containment(
        line=said.line, at=said.at, port=said.address, status=status, source=source, reason=dpc_reason(status)
    )


def _heading(said: Said, match: re.Match[str]) -> LogEvent:
    severity = _SEVERITIES.get(match["severity"])
    if severity is None:
        raise CutLineError(f"{match['severity']!r} is not a severity")
    return ErrorHeading(
        line=said.line, at=said.at, function=said.address, severity=severity, layer=match["layer"].strip()
    )


def _status(said: Said, match: re.Match[str]) -> LogEvent:
    vendor, device, status, mask = (int(match[name], 16) for name in ("vendor", "device", "status", "mask"))
    return ErrorStatus(
        line=said.line, at=said.at, function=said.address, vendor=vendor, device=device, status=status, mask=mask
    )


def _name(said: Said, match: re.Match[str]) -> LogEvent:
    return ErrorName(line=said.line, at=said.at, function=said.address, bit=int(match["bit"]), name=match["name"])


def _header(said: Said, match: re.Match[str]) -> LogEvent:
    return ErrorHeader(line=said.line, at=said.at, function=said.address, header=_words(match["header"]))


def _containment_header(said: Said, match: re.Match[str]) -> LogEvent:
    return ContainmentHeader(line=said.line, at=said.at, port=said.address, header=_words(match["header"]))


def _callback(said: Said, match: re.Match[str]) -> LogEvent:
    found = match.groupdict()
    vote = _VOTES.get(int(found["result"])) if found.get("result") else None
    return Callback(
        line=said.line,
        at=said.at,
        driver=said.driver,
        step=_STEPS[found.get("step") or "err_detected"],
        entered=not found.get("exit"),
        function=said.function,
        instance=said.instance,
        vote=vote,
    )


def _restarted(said: Said, _match: re.Match[str]) -> LogEvent:
    return Callback(
        line=said.line,
        at=said.at,
        driver=said.driver,
        step=DriverStep.SLOT_RESET,
        entered=True,
        function=said.function,
        instance=said.instance,
    )


def _no_callback(said: Said, _match: re.Match[str]) -> LogEvent:
    driver = None if said.driver in UNBOUND else said.driver
    return NoCallback(line=said.line, at=said.at, function=said.address, driver=driver)


def _firmware(said: Said, match: re.Match[str]) -> LogEvent:
    reported = Address.parse(match["reported"]) if match["reported"] else None
    return FirmwareEvent(line=said.line, at=said.at, receiver=said.address, reported=reported)


def _answered(said: Said, match: re.Match[str]) -> LogEvent:
    port = Address.parse(match["port"])
    return FirmwareAnswered(line=said.line, at=said.at, port=port, status=int(match["status"], 16))


def _slot(said: Said, match: re.Match[str]) -> LogEvent | None:
    text = match["text"].strip()
    if text.startswith("Power fault"):
        return PowerFault(line=said.line, at=said.at, port=said.address, slot=match["slot"])
    if text not in _SLOT_WORDS and any(words.startswith(text) for words in _SLOT_WORDS):
        raise CutLineError(f"{text!r} is not the whole sentence")
    for words, what in _SLOT_WORDS.items():
        if text.startswith(words):
            return Decision(line=said.line, at=said.at, what=what, function=said.address, slot=match["slot"], text=text)
    return None


def _decided(what: Decided) -> Build:
    def build(said: Said, match: re.Match[str]) -> LogEvent:
        named = match.groupdict().get("named")
        function = Address.parse(f"{named}.0") if named else said.address
        text = said.message.strip()
        return Decision(line=said.line, at=said.at, what=what, function=function, text=text, card=bool(named))

    return build


def _recovery(said: Said, match: re.Match[str]) -> LogEvent:
    what = Decided.RECOVERED if match["result"] == "successful" else Decided.FAILED
    return Decision(line=said.line, at=said.at, what=what, function=said.address, text=said.message.strip())


def _found(said: Said, match: re.Match[str]) -> LogEvent:
    vendor, device, code = (int(match[name], 16) for name in ("vendor", "device", "code"))
    return Found(line=said.line, at=said.at, function=said.address, vendor=vendor, device=device, class_code=code)


def _instance(said: Said, match: re.Match[str]) -> LogEvent | None:
    if said.instance is None:
        return None
    return Instance(line=said.line, at=said.at, name=said.instance, function=Address.parse(match["function"]))


def _bus_range(said: Said, match: re.Match[str]) -> LogEvent:
    first = int(match["first"], 16)
    return BusRange(
        line=said.line, at=said.at, bridge=said.address, first=first, last=int(match["last"] or match["first"], 16)
    )


# The first shape that fits decides.
_SHAPES: Final = (
    Shape("DPC: containment event", _CONTAINMENT, _containment),
    Shape("DPC: TLP Header", rf"DPC: TLP Header(?: \(Flit\))?: {_DWORDS}", _containment_header),
    Shape("Bus Error: severity", _BUS_ERROR, _heading),
    Shape("error status/mask", _ERROR_STATUS, _status),
    Shape("TLP Header", rf"(?:AER: )?\s*TLP Header(?: \(Flit\))?: {_DWORDS}", _header),
    Shape(
        "mlx5_pci_err_detected",
        r".*mlx5_pci_(?P<step>err_detected).*(?:Enter, pci channel state = \d|(?P<exit>Exit), result = (?P<result>\d),.*)",
        _callback,
    ),
    Shape(
        "mlx5_pci_slot_reset",
        r".*mlx5_pci_(?P<step>slot_reset).*(?:Enter|(?P<exit>Exit), (?:err = \d+, )?result = (?P<result>\d),.*)",
        _callback,
    ),
    Shape("state error detected", r"frozen state error detected, reset controller", _callback, anybody=True),
    Shape("restart after slot", r"restart after slot reset", _restarted, anybody=True),
    Shape(
        "PCI error: ",
        r"PCI error: (?P<step>detected callback|slot reset callback)(?:, state\(\d\))?!!",
        _callback,
        anybody=True,
    ),
    Shape("no error_detected", r"AER: can't recover \(no error_detected callback\)", _no_callback),
    Shape("no AER-aware", r"(?:AER: )?device has no AER-aware driver", _no_callback),
    Shape("EDR: EDR event", r"EDR: EDR event received(?P<reported>)", _firmware),
    Shape("EDR: Reported", rf"EDR: Reported EDR dev: (?P<reported>{ADDRESS})", _firmware),
    Shape("EDR: Status", rf"EDR: Status for (?P<port>{ADDRESS}): 0x(?P<status>[0-9a-f]+)", _answered),
    Shape("Slot(", r"(?:pciehp: )?Slot\((?P<slot>[^)]+)\): (?P<text>.+)", _slot),
    Shape("Link Active not set", r".*Data Link Layer Link Active not set in \d+ msec", _decided(Decided.NO_LINK)),
    Shape("broadcast slot_reset", r"(?:AER: )?broadcast slot_reset message", _decided(Decided.SLOT_RESET)),
    Shape(
        "has been reset", r"(?:AER: )?(?:Root|Downstream) Port (?:link )?has been reset.*", _decided(Decided.SLOT_RESET)
    ),
    Shape("Failed to reset", r"Failed to reset Root Port: -\d+", _decided(Decided.RESET_FAILED)),
    Shape("subordinate device", r"(?:AER: )?subordinate device reset failed", _decided(Decided.RESET_FAILED)),
    Shape("device recovery ", r"(?:AER: )?device recovery (?P<result>successful|failed)", _recovery),
    Shape(
        "pciehp_unconfigure",
        r".*domain:bus:dev = (?P<named>[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2})",
        _decided(Decided.REMOVED),
    ),
    Shape("E-Switch: cleanup", r"E-Switch: cleanup", _decided(Decided.REMOVED)),
    Shape("mlx5_uninit_one", r"mlx5_uninit_one:.*", _decided(Decided.REMOVED)),
    Shape("Removing from iommu", r"Removing from iommu group \d+", _decided(Decided.REMOVED)),
    Shape(
        " type ",
        r"\[(?P<vendor>[0-9a-f]{4}):(?P<device>[0-9a-f]{4})\] type [0-9a-f]{2} class 0x(?P<code>[0-9a-f]{6}).*",
        _found,
    ),
    Shape("pci function ", rf"pci function (?P<function>{ADDRESS})", _instance, anybody=True),
    Shape("PCI bridge to", r"PCI bridge to \[bus (?P<first>[0-9a-f]{2})(?:-(?P<last>[0-9a-f]{2}))?\].*", _bus_range),
    *HARDWARE,
)
_NAMED_BIT: Final = re.compile(r"\s*\[\s*(?P<bit>\d{1,2})\] (?P<name>[A-Za-z][\w /.]*?)\s*(?:\(First\))?")


def event_of(said: Said) -> LogEvent | None:
    """Return what the line says, None for a line that is no concern of ours. Raises CutLineError."""
    if said.function is not None and (match := _NAMED_BIT.fullmatch(said.message)):
        return _name(said, match)
    shape = next((shape for shape in _SHAPES if shape.fits(said)), None)
    return None if shape is None else shape.read(said)
