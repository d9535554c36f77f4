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
        self._taken_over: dict[Address, asyncio.Event] = {}  # set when another driver comes in mid-call

    def bound(self, function: Address) -> DriverSpec | None:
        """Return the driver that is bound to the function."""
        return self._bound.get(function)

    def change(self, function: Address, driver: DriverSpec | None) -> None:
        """Put another driver, or none, in place of what is bound, and of what will be (injection).

        A call under way is the new one's, from its beginning: so a driver that hangs can be told to go on.
        """
        self._changed[function] = driver
        self._bind(function, driver)
        if function in self._taken_over:
            self._taken_over.pop(function).set()

    async def call(self, function: Address, step: DriverStep) -> DriverAnswer:
        """Run one callback. A driver that hangs never returns."""
        if step is DriverStep.BIND:
            changed = function in self._changed
            self._bind(function, self._changed[function] if changed else self._fitting(function))
        driver = await self._answering(function, step)
        if driver is None:
            return _SILENT
        if step is DriverStep.UNBIND:
            self._bind(function, None)
        return DriverAnswer(vote=_vote(driver, step), driver=driver.name, has_callbacks=driver.callbacks)

    async def _answering(self, function: Address, step: DriverStep) -> DriverSpec | None:
        """Wait as long as the driver that is bound takes; return who is bound then."""
        while (driver := self._bound.get(function)) is not None:
            taken_over = self._taken_over.setdefault(function, asyncio.Event())
            try:
                async with asyncio.timeout(_takes_s(driver, step)):
                    await taken_over.wait()
            except TimeoutError:
                return driver
        return None

    def _bind(self, function: Address, driver: DriverSpec | None) -> None:
        if driver is None:
            self._bound.pop(function, None)
        else:
            self._bound[function] = driver


def _takes_s(driver: DriverSpec, step: DriverStep) -> float | None:
    """Return how long a driver takes for one callback; None: it never returns."""
    if driver.never is True or (not isinstance(driver.never, bool) and step in driver.never):
        return None
    return driver.delay_s.get(step, 0.0) if isinstance(driver.delay_s, dict) else driver.delay_s


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
