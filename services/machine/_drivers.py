"""The drivers of the bench: they answer as the topology file says, each in its own time, some never."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from shared.pcie import Address
from shared.protocol.requests import DriverAnswer, DriverStep, Vote

from ._specs import DriverSpec, FunctionSpec

_SILENT = DriverAnswer(vote=Vote.NONE)


class Drivers:
    """Which driver is bound to which function. That is software: it stays when the card is pulled, until UNBIND."""

    def __init__(self, seated: Iterable[FunctionSpec], fitting: Callable[[Address], DriverSpec | None]) -> None:
        self._fitting = fitting
        self._changed: dict[Address, DriverSpec | None] = {}  # by injection: what BIND finds from then on
        self._bound: dict[Address, DriverSpec] = {
            spec.address: spec.driver for spec in seated if spec.driver is not None
        }

    def bound(self, function: Address) -> DriverSpec | None:
        """Return the driver that is bound to the function."""
        return self._bound.get(function)

    def change(self, function: Address, driver: DriverSpec | None) -> None:
        """Put another driver, or none, in place of what is bound, and of what will be (injection)."""
        self._changed[function] = driver
        self._bind(function, driver)

    async def call(self, function: Address, step: DriverStep) -> DriverAnswer:
        """Run one callback. A driver that hangs never returns."""
        if step is DriverStep.BIND:
            changed = function in self._changed
            self._bind(function, self._changed[function] if changed else self._fitting(function))
        driver = self._bound.get(function)
        if driver is None:
            return _SILENT
        if driver.never is True or (not isinstance(driver.never, bool) and step in driver.never):
            await asyncio.get_running_loop().create_future()
        await asyncio.sleep(driver.delay_s.get(step, 0.0) if isinstance(driver.delay_s, dict) else driver.delay_s)
        if step is DriverStep.UNBIND:
            self._bind(function, None)
        return DriverAnswer(vote=_vote(driver, step), driver=driver.name, has_callbacks=driver.callbacks)

    def _bind(self, function: Address, driver: DriverSpec | None) -> None:
        if driver is None:
            self._bound.pop(function, None)
        else:
            self._bound[function] = driver


def _vote(driver: DriverSpec, step: DriverStep) -> Vote:
    if step in {DriverStep.BIND, DriverStep.UNBIND}:
        return Vote.NONE
    if not driver.callbacks:
        return Vote.NO_HANDLER
    votes = {
        DriverStep.ERROR_DETECTED: driver.error_detected,
        DriverStep.MMIO_ENABLED: driver.mmio_enabled,
        DriverStep.SLOT_RESET: driver.slot_reset,
    }
    return votes.get(step, Vote.NONE)
