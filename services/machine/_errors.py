"""Errors: logged where they are detected, sent up as messages, received by the root port (§6.2).

A port with containment catches what triggers it, its own errors and messages from below, and the message ends there.
"""

from __future__ import annotations

from dataclasses import dataclass

from shared.pcie import registers as r
from shared.pcie.errors import Severity

from ._dpc import RpPioError, triggers
from ._error_names import status_bits
from ._function import Block, SimulatedFunction
from ._link import LinkState

_SIGNALED_SYSTEM_ERROR = 0x4000  # §7.5.1.1.4; in Secondary Status the same bit is Received System Error
_DETECTED = {
    Severity.CORRECTABLE: r.DeviceStatus.CORRECTABLE_DETECTED,
    Severity.NONFATAL: r.DeviceStatus.NONFATAL_DETECTED,
    Severity.FATAL: r.DeviceStatus.FATAL_DETECTED,
}
_REPORTING = {
    Severity.CORRECTABLE: r.DeviceControl.CORRECTABLE_REPORTING,
    Severity.NONFATAL: r.DeviceControl.NONFATAL_REPORTING,
    Severity.FATAL: r.DeviceControl.FATAL_REPORTING,
}
_SOURCE_MASK = 0xFFFF


@dataclass(frozen=True, slots=True)
class Detected:
    """What a function detects at once: bits of its AER status, and the header of the packet concerned.

    `fatal` overrides the severity register. ADVISORY_NONFATAL among the correctable bits makes the non-fatal errors
    advisory: logged, and reported as correctable at most (§6.2.3.2.4).
    """

    uncorrectable: int = 0
    correctable: int = 0
    header: tuple[int, ...] = ()
    fatal: bool | None = None


def detect(function: SimulatedFunction, error: Detected) -> None:
    """Log the error, and report what is not masked."""
    for severity, bits in _log(function, error).items():
        containment = function.port.containment if function.port is not None else None
        if containment is not None and triggers(containment.control, severity, received=False):
            contain(function, r.DpcReason.UNCORRECTABLE)
            if not _reports_both(function):
                continue
        if _reports(function, severity, bits):
            _send(function, severity)


def contain(
    function: SimulatedFunction, reason: r.DpcReason, source: int = 0, rp_pio: RpPioError | None = None
) -> None:
    """Trigger the port's containment; with its ERR_COR if software asked for one (§6.2.11)."""
    port = function.port
    assert port is not None
    assert port.containment is not None
    entered = port.containment.enter(reason, source, rp_pio)
    if entered and port.containment.control & r.DpcControl.ERR_COR_ENABLE:
        function.express.latch(r.DEVICE_STATUS, r.DeviceStatus.CORRECTABLE_DETECTED)
        _send(function, Severity.CORRECTABLE)


def log_only(function: SimulatedFunction, error: Detected) -> None:
    """Log the error and report nothing: the status that containment, which is injected apart, would have left."""
    _log(function, error)


def log_stale(function: SimulatedFunction) -> None:
    """Latch what the topology file says that firmware has left behind."""
    uncorrectable, correctable = status_bits(function.spec.stale)
    if uncorrectable or correctable:
        _log(function, Detected(uncorrectable=uncorrectable, correctable=correctable))


def _log(function: SimulatedFunction, error: Detected) -> dict[Severity, int]:
    """Latch status; return the unmasked bits by severity, the severest first."""
    severities = _by_severity(function, error)
    for severity, bits in severities.items():
        function.express.latch(r.DEVICE_STATUS, _DETECTED[severity] if bits else 0)
    if error.uncorrectable & r.Uncorrectable.UNSUPPORTED_REQUEST:
        function.express.latch(r.DEVICE_STATUS, r.DeviceStatus.UNSUPPORTED_REQUEST_DETECTED)
    if function.aer is None:
        return {severity: bits for severity, bits in severities.items() if bits}
    _log_uncorrectable(function.aer, error)
    function.aer.latch(r.CORRECTABLE_STATUS, error.correctable)
    masks = {Severity.CORRECTABLE: function.aer.get(r.CORRECTABLE_MASK)}
    uncorrectable_mask = function.aer.get(r.UNCORRECTABLE_MASK)
    unmasked = {severity: bits & ~masks.get(severity, uncorrectable_mask) for severity, bits in severities.items()}
    return {severity: bits for severity, bits in unmasked.items() if bits}


def _by_severity(function: SimulatedFunction, error: Detected) -> dict[Severity, int]:
    fatal = function.aer.get(r.UNCORRECTABLE_SEVERITY) if function.aer is not None else r.UNCORRECTABLE_FATAL_DEFAULT
    if error.fatal is not None:
        fatal = int(error.uncorrectable) if error.fatal else 0
    advisory = bool(error.correctable & r.Correctable.ADVISORY_NONFATAL)
    return {
        Severity.FATAL: error.uncorrectable & fatal,
        Severity.NONFATAL: 0 if advisory else error.uncorrectable & ~fatal,
        Severity.CORRECTABLE: int(error.correctable),
    }


def _log_uncorrectable(aer: Block, error: Detected) -> None:
    """Latch status; the first unmasked error owns pointer and header log until it is cleared (§6.2.4.2)."""
    before = aer.get(r.UNCORRECTABLE_STATUS)
    control = aer.get(r.AER_CONTROL)
    unmasked = error.uncorrectable & ~aer.get(r.UNCORRECTABLE_MASK)
    if unmasked and not before >> (control & r.FIRST_ERROR_POINTER) & 1:
        first = (unmasked & -unmasked).bit_length() - 1
        aer.put(r.AER_CONTROL, (control & ~r.FIRST_ERROR_POINTER) | first)
        padded = (*error.header, 0, 0, 0, 0)
        for register, value in zip(r.HEADER_LOG, padded, strict=False):
            aer.put(register, value)
    aer.latch(r.UNCORRECTABLE_STATUS, error.uncorrectable)


def _reports(function: SimulatedFunction, severity: Severity, bits: int) -> bool:
    """Tell whether the function may send the message (§6.2.6, figure 6-3)."""
    function = function.reports_by
    control = function.express.get(r.DEVICE_CONTROL)
    if severity is Severity.CORRECTABLE:
        return bool(control & _REPORTING[severity])
    if function.header.get(r.COMMAND) & r.Command.SERR:
        return True
    if bits == r.Uncorrectable.UNSUPPORTED_REQUEST and not control & r.DeviceControl.UNSUPPORTED_REQUEST_REPORTING:
        return False
    return bool(control & _REPORTING[severity])


def _send(function: SimulatedFunction, severity: Severity) -> None:
    """Send the message up, from bridge to bridge, until it is caught, dropped or received.

    An integrated endpoint sends it to its event collector, if it has one (§6.2.4.1).
    """
    source = function.requester_id
    at = function
    while at.parent is not None:
        above = at.parent
        if above.port is not None:
            if above.port.link.state is not LinkState.ACTIVE:
                return
            containment = above.port.containment
            if containment is not None and triggers(containment.control, severity, received=True):
                fatal = severity is Severity.FATAL
                contain(above, r.DpcReason.ERR_FATAL if fatal else r.DpcReason.ERR_NONFATAL, source)
                if not _reports_both(above):
                    return
        if severity is not Severity.CORRECTABLE and not _forwards(above):
            return
        at = above
    receiver = at if at.spec.is_root else at.collector
    if receiver is not None:
        _receive(receiver, severity, source)


def _reports_both(port: SimulatedFunction) -> bool:
    """Tell whether the port passes on what it contains, which §6.2.11 forbids."""
    return "reports_both" in port.spec.quirks


def _forwards(bridge: SimulatedFunction) -> bool:
    """Tell whether the bridge passes an uncorrectable message on: SERR on its lower and its upper side (§6.2.6)."""
    bridge.header.latch(r.SECONDARY_STATUS, _SIGNALED_SYSTEM_ERROR)
    lower = bridge.header.get(r.BRIDGE_CONTROL) & r.BridgeControl.SERR
    upper = bridge.header.get(r.COMMAND) & r.Command.SERR
    if lower and upper:
        bridge.header.latch(r.STATUS, _SIGNALED_SYSTEM_ERROR)
    return bool(lower and upper)


def _receive(root: SimulatedFunction, severity: Severity, source: int) -> None:
    """Record the message in Root Error Status and Error Source Identification (§7.8.4.10, §7.8.4.11)."""
    if root.aer is None:
        return
    bits = r.RootErrorStatus
    status = root.aer.get(r.ROOT_ERROR_STATUS)
    sources = root.aer.get(r.ERROR_SOURCE)
    if severity is Severity.CORRECTABLE:
        if status & bits.CORRECTABLE_RECEIVED:
            status |= bits.MULTIPLE_CORRECTABLE
        else:
            sources = (sources & ~_SOURCE_MASK) | source
        status |= bits.CORRECTABLE_RECEIVED
    else:
        fatal = severity is Severity.FATAL
        if status & bits.UNCORRECTABLE_RECEIVED:
            status |= bits.MULTIPLE_UNCORRECTABLE
        else:
            sources = (sources & _SOURCE_MASK) | source << 16
            status |= bits.FIRST_FATAL if fatal else 0
        status |= bits.UNCORRECTABLE_RECEIVED | (bits.FATAL_RECEIVED if fatal else bits.NONFATAL_RECEIVED)
    root.aer.put(r.ROOT_ERROR_STATUS, status)
    root.aer.put(r.ERROR_SOURCE, sources)
