"""The extended capabilities of a function at power-on, one after another, the first at 0x100 (§7.6)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from shared.pcie import ConfigSpace
from shared.pcie import registers as r

from ._specs import FunctionSpec

Values = dict[r.Register, int]

_DWORD: Final = 0xFFFF_FFFF
_RP_PIO_LOG_DWORDS: Final = 4 << 8  # §7.9.14.2: RP PIO Log Size
_ALIGNMENT: Final = 0x10
_VERSION_SHIFT, _NEXT_SHIFT = 16, 20  # §7.6.3
# Advisory errors are masked at power-on (§7.8.4.6). Internal errors are not, although §7.8.4.3 would: this machine's
# firmware wants to hear of them, and so does whoever injects one.
_CORRECTABLE_MASK_POWER_ON: Final = r.Correctable.ADVISORY_NONFATAL
_NO_FURTHER_BUSES: Final = 0xFF << 8  # §7.9.10.3: next bus FFh, last bus 00h
_ACS: Final = 0x005F  # §7.7.11.2: everything but egress control, which would want a vector
_PAGES: Final = 0x553  # §9.3.3.12: the sizes that every device supports
_PAGE_4K: Final = 0x1


def extend(space: ConfigSpace, spec: FunctionSpec) -> None:
    """Place the extended capabilities that the specification asks for."""
    chain = [capability for capability in _CHAIN if capability.is_given(spec)]
    at = r.EXTENDED_START
    for each in chain:
        following = -(-(at + each.size) // _ALIGNMENT) * _ALIGNMENT
        link = 0 if each is chain[-1] else following
        space.set(at, 4, each.identifier | each.version << _VERSION_SHIFT | link << _NEXT_SHIFT)
        for register, value in each.values(spec).items():
            space.place(register, value, at)
        at = following


def _aer(spec: FunctionSpec) -> Values:
    values = dict.fromkeys(r.AER_ROOT if spec.is_root else r.AER, 0)
    values[r.UNCORRECTABLE_SEVERITY] = r.UNCORRECTABLE_FATAL_DEFAULT
    values[r.CORRECTABLE_MASK] = _CORRECTABLE_MASK_POWER_ON
    if spec.is_root:
        values[r.ROOT_ERROR_STATUS] = spec.vectors.aer << r.ROOT_ERROR_MESSAGE_SHIFT
    return values


def _serial_number(spec: FunctionSpec) -> Values:
    serial = spec.serial_number
    assert serial is not None
    return {r.SERIAL_NUMBER_LOW: serial & _DWORD, r.SERIAL_NUMBER_HIGH: serial >> 32}


def _dpc(spec: FunctionSpec) -> Values:
    is_root = spec.kind == "root_port"
    values = dict.fromkeys(r.DPC_ROOT if is_root else r.DPC, 0)
    extensions = r.DpcCapabilities.RP_EXTENSIONS | _RP_PIO_LOG_DWORDS if is_root else 0
    values[r.DPC_CAPABILITIES] = spec.vectors.dpc | r.DpcCapabilities.SOFTWARE_TRIGGERING | extensions
    return values


def _event_collector(spec: FunctionSpec) -> Values:
    """Its own device is always in the bitmap (§7.9.10.2)."""
    bitmap = 0
    for address in (spec.address, *spec.collects):
        bitmap |= 1 << address.device
    return {r.ASSOCIATION_BITMAP: bitmap, r.ASSOCIATED_BUSES: _NO_FURTHER_BUSES}


def _acs(_spec: FunctionSpec) -> Values:
    return {r.ACS_CAPABILITIES: _ACS, r.ACS_CONTROL: 0}


def _ltr(_spec: FunctionSpec) -> Values:
    return dict.fromkeys(r.LTR, 0)


def _ari(_spec: FunctionSpec) -> Values:
    return dict.fromkeys(r.ARI, 0)  # the next function is known when the whole card is


def _sriov(spec: FunctionSpec) -> Values:
    assert spec.sriov is not None
    values = dict.fromkeys(r.SRIOV, 0)
    return values | {
        r.INITIAL_VFS: spec.sriov.total,
        r.TOTAL_VFS: spec.sriov.total,
        r.VF_DEPENDENCY: spec.address.requester_id & 0xFF,
        r.FIRST_VF_OFFSET: spec.sriov.offset,
        r.VF_STRIDE: spec.sriov.stride,
        r.VF_DEVICE_ID: spec.sriov.device,
        r.SUPPORTED_PAGE_SIZES: _PAGES,
        r.SYSTEM_PAGE_SIZE: _PAGE_4K,
    }


@dataclass(frozen=True, slots=True)
class _Capability:
    """One extended capability: which functions have it, and its registers at power-on."""

    identifier: r.ExtendedId
    version: int
    size: int
    is_given: Callable[[FunctionSpec], bool]
    values: Callable[[FunctionSpec], Values]


_CHAIN: Final = (
    _Capability(r.ExtendedId.AER, 2, r.AER_SIZE, lambda spec: spec.aer, _aer),
    _Capability(
        r.ExtendedId.DEVICE_SERIAL_NUMBER, 1, r.SERIAL_NUMBER_SIZE, lambda spec: spec.serial is not None, _serial_number
    ),
    _Capability(r.ExtendedId.DPC, 1, r.DPC_SIZE, lambda spec: spec.dpc, _dpc),
    _Capability(
        r.ExtendedId.EVENT_COLLECTOR,
        2,
        r.EVENT_COLLECTOR_SIZE,
        lambda spec: spec.kind == "event_collector",
        _event_collector,
    ),
    _Capability(r.ExtendedId.ACS, 1, r.ACS_SIZE, lambda spec: spec.acs, _acs),
    _Capability(r.ExtendedId.LTR, 1, r.LTR_SIZE, lambda spec: spec.ltr, _ltr),
    _Capability(r.ExtendedId.ARI, 1, r.ARI_SIZE, lambda spec: spec.ari, _ari),
    _Capability(r.ExtendedId.SRIOV, 1, r.SRIOV_SIZE, lambda spec: spec.sriov is not None, _sriov),
)
