"""Interrupts are edges, as MSI's are: one message when a service's level rises, none until it has fallen (§6.7.3.4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from shared.pcie import Address
from shared.pcie import registers as r

from ._clock import Clock
from ._firmware_first import KEPT, FirmwareFirst
from ._function import SimulatedFunction

SERVICES: Final = ("hotplug", "aer", "dpc")

# Plain numbers: levels are looked at after every change of anything, and an IntFlag is slow to combine.
_MSI_ENABLE: Final = int(r.MsiControl.ENABLE)
_HOTPLUG_INTERRUPT_ENABLE: Final = int(r.SlotControl.HOTPLUG_INTERRUPT_ENABLE)
_LINK_STATE_CHANGED_ENABLE: Final = int(r.SlotControl.LINK_STATE_CHANGED_ENABLE)
_LINK_STATE_CHANGED: Final = int(r.SlotStatus.LINK_STATE_CHANGED)
_CONTAINMENT_INTERRUPT: Final = int(r.DpcStatus.INTERRUPT)
_CONTAINMENT_INTERRUPT_ENABLE: Final = int(r.DpcControl.INTERRUPT_ENABLE)
_MESSAGES: Final = (  # Root Error Status bit and what lets it interrupt
    (int(r.RootErrorStatus.CORRECTABLE_RECEIVED), int(r.RootErrorCommand.CORRECTABLE_ENABLE)),
    (int(r.RootErrorStatus.NONFATAL_RECEIVED), int(r.RootErrorCommand.NONFATAL_ENABLE)),
    (int(r.RootErrorStatus.FATAL_RECEIVED), int(r.RootErrorCommand.FATAL_ENABLE)),
)
# Slot Status bits whose enables stand at the same place in Slot Control; Link State Changed is the exception.
_SAME_PLACE: Final = 0x001F


def hotplug_level(control: int, status: int) -> bool:
    """Return whether an enabled slot event is latched, with the hotplug interrupt enabled."""
    if not control & _HOTPLUG_INTERRUPT_ENABLE:
        return False
    if status & _LINK_STATE_CHANGED and control & _LINK_STATE_CHANGED_ENABLE:
        return True
    return bool(status & control & _SAME_PLACE)


def aer_level(command: int, status: int) -> bool:
    """Return whether a kind of error message was received that Root Error Command lets interrupt (§6.2.4.1.2)."""
    return any(status & received and command & enable for received, enable in _MESSAGES)


def dpc_level(control: int, status: int) -> bool:
    """Return whether the containment interrupt is latched and enabled (§6.2.11.1)."""
    return bool(status & _CONTAINMENT_INTERRUPT and control & _CONTAINMENT_INTERRUPT_ENABLE)


def levels(function: SimulatedFunction) -> dict[str, bool]:
    """Return the level of every service of a port; without MSI nothing is raised."""
    if not function.msi.get(r.MSI_CONTROL) & _MSI_ENABLE:
        return dict.fromkeys(SERVICES, False)
    express, aer, dpc = function.express, function.aer, function.dpc
    return {
        "hotplug": function.spec.slot is not None
        and hotplug_level(express.get(r.SLOT_CONTROL), express.get(r.SLOT_STATUS)),
        "aer": aer is not None
        and function.spec.is_root
        and aer_level(aer.get(r.ROOT_ERROR_COMMAND), aer.get(r.ROOT_ERROR_STATUS)),
        "dpc": dpc is not None and dpc_level(dpc.get(r.DPC_CONTROL), dpc.get(r.DPC_STATUS)),
    }


class Interrupts:
    """Watches the levels of every port and delivers a message for each rise; to the firmware, where it keeps them."""

    def __init__(self, clock: Clock, deliver: Callable[[Address, int], None], firmware: FirmwareFirst | None) -> None:
        self._clock = clock
        self._deliver = deliver
        self._firmware = firmware
        self._high: set[tuple[Address, str]] = set()
        self._delay_s: dict[tuple[Address, str], float] = {}
        self._to_lose: dict[tuple[Address, str], int] = {}

    def look(self, function: SimulatedFunction) -> None:
        """Compare the port's levels with the last ones."""
        for service, level in levels(function).items():
            key = function.address, service
            if not level:
                self._high.discard(key)
            elif key not in self._high:
                self._high.add(key)
                self._raise(function, service)

    def forget(self, present: set[Address]) -> None:
        """Forget ports that are gone: a card that comes back starts low."""
        self._high = {key for key in self._high if key[0] in present}

    def delay(self, port: Address, service: str, for_s: float) -> None:
        """Deliver the service's messages so many seconds late from now on."""
        self._delay_s[port, service] = for_s

    def lose(self, port: Address, service: str, count: int) -> None:
        """Lose the next `count` messages of the service."""
        self._to_lose[port, service] = count

    def send(self, function: SimulatedFunction, service: str) -> None:
        """Send the message of the service's vector."""
        vector: int = getattr(function.spec.vectors, service)
        self._on_its_way(function.address, service, lambda: self._deliver(function.address, vector))

    def _raise(self, function: SimulatedFunction, service: str) -> None:
        firmware = self._firmware
        if firmware is None or service not in KEPT:
            self.send(function, service)
        else:
            self._on_its_way(function.address, service, lambda: firmware.interrupt(function.address, service))

    def _on_its_way(self, port: Address, service: str, arrive: Callable[[], None]) -> None:
        """Let a message arrive: now, late, or not at all."""
        left = self._to_lose.get((port, service), 0)
        if left:
            self._to_lose[port, service] = left - 1
            return
        delay_s = self._delay_s.get((port, service), 0.0)
        if delay_s > 0:
            self._clock.later(delay_s, arrive)
        else:
            arrive()
