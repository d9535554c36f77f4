"""The way to hardware: four verbs. The machine's socket today, Linux sysfs later; nothing above this knows which.

What it does **not** promise: that a write arrived (config writes to nothing are dropped in silence), that an interrupt
is delivered, or that anything is there. A read that nobody completes is all ones (PCIe r6.2 §2.3.2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

from shared.pcie import Address

# Called with the function and its interrupt message number; may only hand them to a mailbox.
InterruptHandler: TypeAlias = Callable[[Address, int], None]


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
