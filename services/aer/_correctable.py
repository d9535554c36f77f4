"""Correctable errors: counted, told, acknowledged. Nobody recovers from them."""

from __future__ import annotations

from typing import Final

from shared.pcie import Address, ErrorRegisters, Function, Topology, error_wording
from shared.pcie.errors import ErrorReport, Severity, uncorrectable_names
from shared.pcie.registers import (
    CORRECTABLE_STATUS,
    DEVICE_STATUS,
    ROOT_ERROR_STATUS,
    UNCORRECTABLE_STATUS,
    DeviceStatus,
    RootErrorStatus,
)
from shared.protocol.fabric import Operation
from shared.protocol.facts import Ignored, What
from shared.recovery import write
from shared.runtime import Facts

from ._counters import Counters, Limit
from ._sources import advisory
from ._survey import Survey

_UNCORRECTABLE_DETECTED: Final = (
    DeviceStatus.NONFATAL_DETECTED | DeviceStatus.FATAL_DETECTED | DeviceStatus.UNSUPPORTED_REQUEST_DETECTED
)
TRACELESS: Final = "no function below the root port has the status of it"


def acknowledge_root(root: Function, bits: int) -> Operation:
    """Return the write that clears these bits of the root port's latch, and no others (RW1C)."""
    aer = root.capabilities.aer
    return write(root.address, aer + ROOT_ERROR_STATUS.offset, ROOT_ERROR_STATUS.width, bits)


def acknowledge_function(function: Function, errors: ErrorRegisters, report: ErrorReport) -> tuple[Operation, ...]:
    """Return the writes that clear exactly the correctable bits that were read.

    Of Device Status only Correctable Error Detected goes: the other bits are evidence of uncorrectable errors.
    """
    capabilities = function.capabilities
    writes = [
        write(function.address, capabilities.aer + CORRECTABLE_STATUS.offset, CORRECTABLE_STATUS.width, report.status)
    ]
    detected = errors.device_status & DeviceStatus.CORRECTABLE_DETECTED
    if detected:
        writes.append(
            write(function.address, capabilities.express + DEVICE_STATUS.offset, DEVICE_STATUS.width, detected)
        )
    return tuple(writes)


def acknowledge_stale(function: Function, errors: ErrorRegisters, bits: int) -> tuple[Operation, ...]:
    """Return the writes that clear uncorrectable bits which no message is about, and what Device Status says of them."""
    capabilities = function.capabilities
    writes = [write(function.address, capabilities.aer + UNCORRECTABLE_STATUS.offset, UNCORRECTABLE_STATUS.width, bits)]
    detected = errors.device_status & _UNCORRECTABLE_DETECTED
    if detected:
        writes.append(
            write(function.address, capabilities.express + DEVICE_STATUS.offset, DEVICE_STATUS.width, detected)
        )
    return tuple(writes)


class Correctables:
    """What one root port's domain, or one event collector's devices, report as corrected."""

    def __init__(self, facts: Facts, root: Address, counters: Counters) -> None:
        self._facts = facts
        self._root = root
        self._counters = counters
        self._limit = Limit()
        self._traceless = Limit()
        self._last: dict[Address, tuple[ErrorRegisters, ErrorReport]] = {}

    def handle(self, topology: Topology, survey: Survey, now: float) -> tuple[Operation, ...]:
        """Count and tell every correctable error of a survey; return the writes that acknowledge them.

        The root port's latch comes first: a message that arrives between the writes latches anew.
        """
        root = topology.get(self._root)
        latched = survey.latch.correctable
        writes = [acknowledge_root(root, latched)] if latched else []
        reports = {function: errors.correctable for function, errors in survey.errors.items()}
        for address, report in sorted((address, report) for address, report in reports.items() if report is not None):
            errors = survey.errors[address]
            self._counters.count(address, report)
            self._last[address] = (errors, report)
            if self._limit.admit(address, now):
                self._tell(topology, address)
            writes.extend(acknowledge_function(topology.get(address), errors, report))
        if latched and len(writes) == 1 and self._traceless.admit(self._root, now):
            self._tell_traceless(survey)
        return tuple(writes)

    def tell_owed(self, topology: Topology, now: float) -> float | None:
        """Tell what was held back and may be told now; return when there is more to tell, if there is."""
        for address in self._limit.due(now):
            self._limit.admit(address, now)
            self._tell(topology, address)
        return self._limit.next_due()

    def _tell(self, topology: Topology, address: Address) -> None:
        errors, report = self._last[address]
        function = topology.find(address)
        port = topology.lease_port(address) or function
        self._facts.say(
            What.ERROR_CORRECTABLE,
            self._root if port is None else port.address,
            function=address,
            **error_wording.particulars(report),
            advisory=uncorrectable_names(advisory(errors)),
            counts=self._counters.totals(address, Severity.CORRECTABLE),
            held_back=self._limit.owed(address),
            text=() if function is None else error_wording.bus_error(function, errors, report),
        )

    def _tell_traceless(self, survey: Survey) -> None:
        source = self._root.with_requester_id(survey.latch.correctable_id)
        multiple = RootErrorStatus.MULTIPLE_CORRECTABLE in survey.latch.status
        held_back = self._traceless.owed(self._root)
        self._facts.say(
            What.ERROR_IGNORED,
            self._root,
            functions=[source],
            severity=Severity.CORRECTABLE,
            reason=Ignored.TRACELESS,
            why=f"{TRACELESS}, as of {held_back} before it that were not told" if held_back else TRACELESS,
            text=(error_wording.message_received(Severity.CORRECTABLE, source, multiple=multiple, found=False),),
        )
