"""The way to hardware: four verbs, and three for its firmware. The machine's socket today, Linux sysfs later.

Nothing above this knows which.

What it does **not** promise: that a write arrived (config writes to nothing are dropped in silence), that an interrupt
is delivered, or that anything is there. A read that nobody completes is all ones (PCIe r6.2 §2.3.2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

from shared.pcie import Address

# Called with the function and its interrupt message number; may only hand them to a mailbox.
InterruptHandler: TypeAlias = Callable[[Address, int], None]
# Called with the port whose containment the firmware notifies of; may only hand it to a mailbox.
FirmwareHandler: TypeAlias = Callable[[Address], None]


class Hardware(Protocol):
    """Raw config space of one host. One caller at a time."""

    async def enumerate(self) -> tuple[Address, ...]:
        """Return the functions that answer now, by walking the buses as they are numbered now."""

    async def read(self, address: Address, offset: int, length: int) -> bytes:
        """Return `length` bytes at `offset`; all ones where nothing completes the read."""

    async def write(self, address: Address, offset: int, data: bytes) -> None:
        """Write `data` at `offset`."""

    def on_interrupt(self, handler: InterruptHandler) -> None:
        """Call `handler` for every interrupt from now on."""

    async def firmware_first(self) -> bool | None:
        """Tell whether the firmware keeps AER and DPC for itself (_OSC grants neither); None while nobody answers."""

    def on_firmware_event(self, handler: FirmwareHandler) -> None:
        """Call `handler` for every EDR notification from now on (PCI Firmware Spec 3.3 §4.6.12).

        One that has not been answered may come again when the connection to the hardware is made anew.
        """

    async def answer_firmware(self, address: Address, status: int) -> bool:
        """Answer the notification of a port: _OST with `status` (§4.6.13: 80h success, 81h failure).

        False: nobody was there to take it, and the event stays open.
        """
