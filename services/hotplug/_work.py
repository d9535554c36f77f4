"""What is done to a slot under its lease: taking a card away, switching it off, bringing one in.

Each runs inside a slot operation and ends with Fenced wherever it is when a recovery takes the lease (P5). What is
then half done is seen by the next judgement: a function is in the registry or not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, Final

from shared.pcie import Function, Topology, Value, answered, timing
from shared.pcie import registers as r
from shared.protocol.facts import What
from shared.protocol.records import Device
from shared.protocol.requests import Channel
from shared.recovery import command_read, modify, read, write

from ._bring_up import Readiness, await_device, enumerate_below
from ._configure import Unconfigurable, assign_buses, plan, size_bars, switch_on, window_of
from ._indicators import clear, has, lamps, power
from ._keeper import Keeper, has_driver
from ._operation import SlotOperation
from ._presence import Presence
from ._reading import CHANGES, look, seen

_GONE_LOOK_S: Final = 1.0  # between looks at a card whose driver takes long to bind
_LEVELS_MAX: Final = 8  # of switches within one card: each needs an enumeration of its own
_QUIET: Final = r.Command.BUS_MASTER | r.Command.SERR  # what a safe removal switches off (pciehp_unconfigure_device)


class NotReady(Exception):  # noqa: N818 - named for what is true
    """The card did not come up. `silent`: it may only be slow, so another try may help."""

    def __init__(self, why: str, *, silent: bool) -> None:
        super().__init__(why)
        self.silent = silent


def status_of(port: Function) -> tuple[int, int]:
    """Return offset and width of Slot Status."""
    return port.capabilities.express + r.SLOT_STATUS.offset, r.SLOT_STATUS.width


def first_request_s(fresh: Iterable[Function]) -> float:
    """Return the wait between giving bridges their buses and the first request to what is behind them."""
    conventional = any(one.is_conventional_bridge and not one.secondary for one in fresh)
    return timing.PCI_RESET_TO_FIRST_CONFIG if conventional else timing.LINK_TO_FIRST_CONFIG


class Work:
    """The work on one slot, in the name of its keeper."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._shop = keeper.shop
        self._before = Topology()  # as it was before a card was taken away: its bridges' bus numbers

    @property
    def _port(self) -> Function:
        return self._shop.topology.get(self._keeper.port)

    # --- Away ---

    async def take_away(self, operation: SlotOperation, why: str, *, on_purpose: bool = False) -> None:
        """Remove every function behind the slot, which is gone, about to be replaced, or without power."""
        self._before = self._shop.topology
        # The registry first: what is decided must not wait for a driver whose device has vanished (scenario 20).
        off = self._keeper.port if on_purpose else None
        gone = sorted(self._keeper.behind(), key=lambda device: device.function, reverse=True)
        removed = [
            device
            for device in gone
            if await self._shop.registry.remove(device.function, lease=operation.lease, why=why, switched_off=off)
        ]
        unbinding = (
            self._shop.drivers.unbind(device.function, operation.lease, Channel.PERM_FAILURE, operation.token)
            for device in removed
            if has_driver(device)
        )
        await operation.unless_lost(_all(unbinding))
        await self._forget_surprise(operation)
        await self._power_down(operation)

    async def _forget_surprise(self, operation: SlotOperation) -> None:
        """Clear the Surprise Down that the removal logged, or the next card's first error would be blamed on it.

        Not where the firmware is first: there it reads and clears what has been logged.
        """
        port = self._port
        caps = port.capabilities
        if not caps.aer or self._shop.topology.firmware_first:
            return
        logged = (caps.aer + r.UNCORRECTABLE_STATUS.offset, r.UNCORRECTABLE_STATUS.width)
        surprise = int(r.Uncorrectable.SURPRISE_DOWN)
        (status,) = await operation.do(read(port.address, *logged))
        if not answered(status) or not status & surprise:
            return
        writes = [write(port.address, *logged, surprise)]
        if status == surprise:
            # Device Status tells of no other uncorrectable error than this one.
            detected = int(r.DeviceStatus.FATAL_DETECTED | r.DeviceStatus.NONFATAL_DETECTED)
            writes.append(write(port.address, caps.express + r.DEVICE_STATUS.offset, r.DEVICE_STATUS.width, detected))
        await operation.do(*writes)

    async def switch_off(self, operation: SlotOperation, why: str) -> None:
        """Remove every function behind the slot safely: drivers first, while their devices still answer."""
        self._before = self._shop.topology
        port = self._keeper.port
        leaving = sorted(self._keeper.behind(), key=lambda device: device.function, reverse=True)
        for device in leaving:
            await self._release(operation, device)
            await self._shop.registry.remove(device.function, lease=operation.lease, why=why, switched_off=port)
        await self._power_down(operation)

    async def _release(self, operation: SlotOperation, device: Device) -> None:
        if has_driver(device):
            await operation.unless_lost(
                self._shop.drivers.unbind(device.function, operation.lease, Channel.NORMAL, operation.token)
            )
        if self._shop.topology.find(device.function) is not None:
            off = r.Command.INTX_DISABLE
            await operation.do(modify(device.function, r.COMMAND.offset, 2, mask=_QUIET | off, value=off))

    async def _power_down(self, operation: SlotOperation, attention: r.Indicator | None = None) -> None:
        """Switch the slot off as far as it can be, forget what that has latched, and enumerate."""
        port = self._port
        await operation.do(*power(port, on=False, attention=attention))
        if has(port, r.SlotCapabilities.POWER_CONTROLLER):
            await operation.pause(timing.POWER_OFF_SETTLE)
            # Pins do not follow the power: what they tell is of somebody at the slot (P4).
            await self.clear(operation, r.SlotStatus.LINK_STATE_CHANGED if port.in_band_disable else CHANGES)
        await operation.do(enumerate_below(port))
        await self._shop.refresh()

    async def clear(self, operation: SlotOperation, bits: int) -> int:
        """Clear those of `bits` that are latched; return them."""
        port = self._port
        (status,) = await operation.do(read(port.address, *status_of(port)))
        latched = status & bits if answered(status) else 0
        if latched:
            await operation.do(clear(port, latched))
        return latched

    # --- In ---

    async def bring_in(self, operation: SlotOperation, why: str) -> None:
        """Bring the card up and register its functions. Raises NotReady, with the slot switched off again."""
        try:
            await self._bring_in(operation, why)
        except NotReady as failure:
            self._say(What.SLOT_NOT_READY, operation, why=str(failure))
            await self._power_down(operation, attention=r.Indicator.ON)
            raise

    async def _bring_in(self, operation: SlotOperation, why: str) -> None:
        port = self._port
        # What has latched so far is why we are here; what latches from now on is news.
        await self.clear(operation, CHANGES)
        (status,) = await operation.do(read(port.address, *status_of(port)))
        if has(port, r.SlotCapabilities.MRL_SENSOR) and answered(status) and status & r.SlotStatus.MRL_OPEN:
            raise NotReady("latch open", silent=False)
        await operation.do(*power(port, on=True, attention=r.Indicator.OFF))
        settings = self._keeper.context.settings
        readiness = await operation.perform(
            await_device(port, link_s=settings.link_s, vendor_id_s=settings.vendor_id_s)
        )
        if readiness is not Readiness.READY:
            raise NotReady(readiness.value, silent=True)
        self._say(What.LINK_UP, operation, why=why)
        try:
            functions = await self._configure(operation)
        except Unconfigurable as lack:
            raise NotReady(str(lack), silent=False) from lack
        # The link has come up for good, so what that has latched is no news any more (scenario 36). What latches from
        # now on is: a driver may take long to bind, and the card be changed meanwhile.
        await self.clear(operation, CHANGES)
        if not await self._still_set_up(operation, functions):
            raise NotReady("the card was out, or reset, while it was set up", silent=True)
        await self.introduce(operation, functions, why)
        await operation.do(*lamps(port, power=r.Indicator.ON))

    async def introduce(self, operation: SlotOperation, functions: Iterable[Function], why: str) -> None:
        """Bind drivers to the functions and register them."""
        for function in functions:
            driver = None
            if not function.kind.is_bridge:
                driver = await self._bind(operation, function)
            await self._keeper.register(function, driver=driver, lease=operation.lease, why=why)

    async def _bind(self, operation: SlotOperation, function: Function) -> str | None:
        """Have a driver bind. Raises NotReady once the card is gone, on which a driver may hang (scenario 20)."""
        binding = asyncio.create_task(self._shop.drivers.bind(function.address, operation.lease, operation.token))
        try:
            while True:
                await operation.unless_lost(asyncio.wait({binding}, timeout=_GONE_LOOK_S))
                if binding.done():
                    return binding.result()
                if await self._gone():
                    raise NotReady("the card was taken out while its driver was binding", silent=False)
        finally:
            binding.cancel()

    async def _gone(self) -> bool:
        """Tell whether the card is not there, and no recovery is concerned that would say why."""
        port = self._port
        above = self._shop.topology.ancestors(port.address)
        reading = seen(port, above, await self._shop.fabric.read(look(port, above)))
        concerned = reading.silent or reading.contained or reading.fatal
        return not concerned and not reading.link and reading.presence is Presence.ABSENT

    async def _still_set_up(self, operation: SlotOperation, functions: Iterable[Function]) -> bool:
        """Tell whether every function still decodes memory: nothing but a reset takes that away."""
        asked = [command_read(one.address) for one in functions if one.physical is None]
        commands = await operation.do(*asked)
        return all(answered(command) and command & r.Command.MEMORY_SPACE for command in commands)

    async def _configure(self, operation: SlotOperation) -> tuple[Function, ...]:
        """Assign buses and addresses, and switch everything on; return the functions behind the slot."""
        topology = await self._shop.refresh()
        for _ in range(_LEVELS_MAX):
            port, fresh = self._port, topology.below(self._keeper.port)
            if not await operation.perform(assign_buses(port, fresh, self._before)):
                break
            await operation.pause(first_request_s(fresh))
            await operation.do(enumerate_below(port))
            topology = await self._shop.refresh()
        functions = topology.below(port.address)
        bars = await operation.perform(size_bars(functions))
        base, limit, line = await operation.do(
            read(port.address, r.MEMORY_BASE.offset, 2),
            read(port.address, r.MEMORY_LIMIT.offset, 2),
            read(port.address, r.INTERRUPT_LINE.offset, 1),
        )
        made = plan(port.address, window_of(_or_zero(base), _or_zero(limit)), topology, bars)
        await operation.perform(
            switch_on(functions, made, line if answered(line) else None, firmware_first=topology.firmware_first)
        )
        await operation.do(enumerate_below(port))
        topology = await self._shop.refresh()
        return topology.below(port.address)

    def _say(self, what: What, operation: SlotOperation, **data: Any) -> None:
        self._keeper.context.facts.say(what, self._keeper.port, lease=operation.lease, **data)


async def _all(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    await asyncio.gather(*work)


def _or_zero(value: Value) -> int:
    return value if answered(value) else 0
