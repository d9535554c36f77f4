"""The registry: one record per function, which this service alone writes, on condition that it owns the host.

Every function is registered but root ports: endpoints, and the ports of switch cards, which can be swapped as well. A
record outlives its device: `generation` counts on when another, or the same, is added at that address.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from shared.pcie import Address, Function, Identity
from shared.pcie.registers import DeviceType
from shared.protocol import decode, subjects
from shared.protocol.facts import What
from shared.protocol.records import Device
from shared.protocol.requests import Channel
from shared.runtime import Context, Ownership

_NEVER_REGISTERED: Final = frozenset({DeviceType.ROOT_PORT, DeviceType.ROOT_COMPLEX_EVENT_COLLECTOR})


def belongs(function: Function) -> bool:
    """Tell whether the function has a place in the registry."""
    return function.kind not in _NEVER_REGISTERED


class Registry:
    """The devices of one host. In memory as last stored: no record changes here before it has changed there."""

    def __init__(self, context: Context) -> None:
        assert context.ownership is not None
        self._context = context
        self._ownership: Ownership = context.ownership
        self._devices: dict[Address, Device] = {}
        self._leaving: set[Address] = set()  # functions whose removal is being stored

    async def load(self) -> None:
        """Read all records."""
        entries = await self._context.bus.keys(f"device.{self._context.host}.")
        devices: list[Device] = [decode(entry.value, Device) for entry in entries]
        self._devices = {device.function: device for device in devices}

    def device(self, function: Address) -> Device | None:
        """Return the record of a function, present or not."""
        return self._devices.get(function)

    def present(self) -> tuple[Device, ...]:
        """Return the devices that are present, in address order."""
        return tuple(self._devices[address] for address in sorted(self._devices) if self._devices[address].present)

    def switched_off(self, port: Address) -> bool:
        """Tell whether the slot was switched off on purpose when its functions were removed."""
        return any(one.switched_off for one in self._devices.values() if one.port == port)

    async def add(
        self,
        function: Address,
        port: Address,
        identity: Identity,
        *,
        driver: str | None,
        counted: Iterable[str],
        lease: str | None,
        why: str,
    ) -> None:
        """Register a function. `counted` are the recoveries whose verdicts are older than the registration."""
        before = self._devices.get(function)
        device = Device(
            function=function,
            port=port,
            identity=identity,
            generation=1 if before is None else before.generation + 1,
            present=True,
            driver=driver,
            rebound=tuple(counted),
        )
        await self._put(device)
        self._say(What.DEVICE_ADDED, device, lease, why=why, identity=identity, driver=driver)

    async def remove(
        self, function: Address, *, lease: str | None, why: str, switched_off: Address | None = None
    ) -> bool:
        """Note that a function is gone. False: the actor of another slot has, or is about to (scenario 33).

        `switched_off`: the port of the slot that is switched off on purpose, perhaps with others further down.
        """
        device = self._devices[function]
        if not device.present or function in self._leaving:
            return False
        self._leaving.add(function)
        try:
            device = msgspec.structs.replace(
                device,
                present=False,
                driver=None,
                channel=Channel.PERM_FAILURE,
                switched_off=device.port == switched_off,
            )
            await self._put(device)
        finally:
            self._leaving.discard(function)
        self._say(What.DEVICE_REMOVED, device, lease, why=why)
        return True

    async def rebound(self, function: Address, counted: Iterable[str], *, lease: str) -> None:
        """Note that the function's driver was bound again under `lease`: a new generation of the same device."""
        device = self._devices[function]
        rebound = msgspec.structs.replace(device, generation=device.generation + 1, rebound=tuple(counted))
        await self._put(rebound)
        self._say(What.DEVICE_REBOUND, rebound, lease, driver=device.driver)

    async def identify(self, function: Address, identity: Identity) -> None:
        """Note what the same device says of itself from now on."""
        await self._put(msgspec.structs.replace(self._devices[function], identity=identity))

    async def channel(self, function: Address, channel: Channel, *, lease: str | None, why: str) -> None:
        """Set the state of the way to a device that is present and stays so; say so if it changes."""
        device = self._devices[function]
        if not device.present or function in self._leaving or device.channel is channel:
            return
        await self._put(msgspec.structs.replace(device, channel=channel))
        data = {"from": device.channel, "to": channel}
        self._say(What.DEVICE_CHANNEL, device, lease, why=why, **data)

    def kept(self, device: Device, *, lease: str | None, why: str) -> None:
        """Say that the same device answers."""
        self._say(What.DEVICE_KEPT, device, lease, why=why)

    async def _put(self, device: Device) -> None:
        key = subjects.device_key(self._context.host, device.function)
        await self._ownership.put_owned(key, device)
        self._devices[device.function] = device

    def _say(self, what: What, device: Device, lease: str | None, **data: Any) -> None:
        facts = self._context.facts
        facts.say(what, device.port, lease=lease, function=device.function, generation=device.generation, **data)
