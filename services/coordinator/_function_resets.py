"""Resets of one function that leave its link up: FLR, its elder sibling of conventional PCI, and power management."""

from __future__ import annotations

from typing import Final

from shared.pcie import Function, answered, timing
from shared.pcie.registers import (
    AF_CAPABILITIES,
    AF_CONTROL,
    AF_FUNCTION_LEVEL_RESET,
    AF_INITIATE_FLR,
    DEVICE_CONTROL,
    PM_CONTROL,
    PM_POWER_STATE,
    DeviceControl,
)
from shared.protocol.requests import ResetMethod
from shared.recovery import Do, Logic, Pause, ask, modify
from shared.recovery import read as reading

IN_FUNCTION: Final = frozenset({ResetMethod.FLR, ResetMethod.AF_FLR, ResetMethod.PM})  # they take no link down (P1)

_D3_HOT: Final = 0x3
_NO_SOFT_RESET: Final = 0x8  # §7.5.2.2: D3hot to D0 keeps the function's state, so it is no reset


def abilities(function: Function) -> Logic[frozenset[ResetMethod]]:
    """Return which of these methods the function has, by its registers."""
    caps = function.capabilities
    able = {ResetMethod.FLR} if function.flr else set()
    asked = [
        (method, reading(function.address, base + register.offset, register.width))
        for method, base, register in (
            (ResetMethod.AF_FLR, caps.advanced_features, AF_CAPABILITIES),
            (ResetMethod.PM, caps.power_management, PM_CONTROL),
        )
        if base
    ]
    held = yield from ask(operation for _, operation in asked)
    for (method, _), value in zip(asked, held, strict=True):
        if answered(value) and _can(method, value):
            able.add(method)
    return frozenset(able)


def _can(method: ResetMethod, value: int) -> bool:
    if method is ResetMethod.AF_FLR:
        return bool(value & AF_FUNCTION_LEVEL_RESET)
    return not value & (_NO_SOFT_RESET | PM_POWER_STATE)  # as Linux: only from D0


def reset_function(function: Function, method: ResetMethod) -> Logic[None]:
    """Reset the function by one of IN_FUNCTION, and wait until that is done. It has not been awaited or restored then."""
    address, caps = function.address, function.capabilities
    if method is ResetMethod.PM:
        at = caps.power_management + PM_CONTROL.offset
        for state in (_D3_HOT, 0):
            yield Do((modify(address, at, PM_CONTROL.width, mask=PM_POWER_STATE, value=state),))
            yield Pause(timing.PM_D3HOT_TO_D0, "power state")
        return
    if method is ResetMethod.FLR:
        at, register, bit = caps.express + DEVICE_CONTROL.offset, DEVICE_CONTROL, int(DeviceControl.INITIATE_FLR)
    else:
        at, register, bit = caps.advanced_features + AF_CONTROL.offset, AF_CONTROL, AF_INITIATE_FLR
    yield Do((modify(address, at, register.width, mask=bit, value=bit),))
    yield Pause(timing.FLR_COMPLETION, "function level reset")
