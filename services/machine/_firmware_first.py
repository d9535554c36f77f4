"""A host whose firmware keeps AER and DPC for itself, and hands each containment over (PCI Firmware Spec 3.3 §4.6.12).

Its interrupts of these two services never reach the operating system. Of a containment the firmware notifies (EDR),
once, and waits for the answer (_OST); of errors that reach a root port it tells nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import structlog

from shared.pcie import Address

KEPT: Final = frozenset({"aer", "dpc"})  # the services whose interrupts are the firmware's

_log = structlog.get_logger()

OnEvent = Callable[[Address], None]


class FirmwareFirst:
    """The firmware of one host. `waiting`: ports whose notification is not answered; `answers`: each _OST, in order."""

    def __init__(self) -> None:
        self.waiting: list[Address] = []
        self.answers: list[tuple[Address, int]] = []
        self._listeners: list[OnEvent] = []

    def listen(self, on_event: OnEvent) -> Callable[[], None]:
        """Tell `on_event` each port that is notified of; the function returned ends that."""
        self._listeners.append(on_event)
        return lambda: self._listeners.remove(on_event)

    def interrupt(self, port: Address, service: str) -> None:
        """Take an interrupt of a service that is the firmware's."""
        if service == "dpc":
            self.notify(port)

    def notify(self, port: Address) -> None:
        """Notify of a port (EDR)."""
        if port not in self.waiting:
            self.waiting.append(port)
        for listener in tuple(self._listeners):
            listener(port)

    def answer(self, port: Address, status: int) -> None:
        """Take the answer (_OST, §4.6.13). One that nobody waits for changes nothing."""
        _log.info("firmware answered", port=str(port), status=status)
        self.answers.append((port, status))
        if port in self.waiting:
            self.waiting.remove(port)
