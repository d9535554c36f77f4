"""Performing operations on hardware: values or no answer, and one hotplug command at a time.

Command Completed is the fabric's alone. A port that reports it accepts the next command only after the last has
completed (PCIe r6.2 §6.7.3.2), so before a write to Slot Control the fabric waits for it, at most
COMMAND_COMPLETED_MAX after the last command was issued, and clears it. Masking is such a command too. Nothing else is
ever waited for here (P5).
"""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from shared.pcie import Address, Function, Topology, all_ones, registers, timing
from shared.pcie.registers import SLOT_STATUS, VENDOR_ID, SlotCapabilities, SlotStatus
from shared.protocol.fabric import Operation, Verb

from ._hardware import Hardware
from ._layout import clears_slot_events, write_clear_bits, writes_slot_control

_POLL_S: Final = 0.01  # Linux pcie_poll_cmd
_BYTE: Final = 1

_log = structlog.get_logger()


class Registers:
    """Typed access over Hardware. None stands for "no answer"."""

    def __init__(self, hardware: Hardware) -> None:
        self._hardware = hardware
        # When the last command was issued to a slot that reports completion, on the loop's clock; missing: it has
        # completed. A fabric that has just started does not know, and assumes the moment of its start.
        self._commanded: dict[Address, float] = {}
        self._met: set[Address] = set()
        self._started = asyncio.get_running_loop().time()

    async def perform(self, operation: Operation, topology: Topology) -> int | None:
        """Do one READ, WRITE or MODIFY. Return what was read or written; None where nothing answers."""
        function = topology.get(operation.function)
        if operation.verb is Verb.READ:
            return await self.read(operation.function, operation.offset, operation.width)
        presence = function.presence
        if await self.read(operation.function, presence.offset, presence.width) is None:
            return None
        is_command = writes_slot_control(function, operation)
        if is_command:
            await self._await_completion(function)
        value = operation.value & all_ones(operation.width)
        if operation.verb is Verb.MODIFY:
            held = await self.read(operation.function, operation.offset, operation.width)
            if held is None:
                return None
            kept = held & ~write_clear_bits(function, operation.offset, operation.width)
            value = (kept & ~operation.mask) | (value & operation.mask)
        data = value.to_bytes(operation.width, "little")
        await self._hardware.write(operation.function, operation.offset, data)
        if is_command and _reports_completion(function):
            self._met.add(function.address)
            self._commanded[function.address] = asyncio.get_running_loop().time()
        if clears_slot_events(function, operation):
            await self.complete(function)
        return value

    async def read(self, address: Address, offset: int, width: int) -> int | None:
        """Read one register. A single byte of all ones is believed only if the function has a vendor ID."""
        value = int.from_bytes(await self._hardware.read(address, offset, width), "little")
        if value != all_ones(width):
            return value
        if width > _BYTE:
            return None
        vendor = await self._hardware.read(address, VENDOR_ID.offset, VENDOR_ID.width)
        return None if int.from_bytes(vendor, "little") == all_ones(VENDOR_ID.width) else value

    async def image(self, address: Address) -> bytes:
        """Return the whole config space, all ones where nothing answers."""
        return await self._hardware.read(address, 0, registers.CONFIG_SPACE_SIZE)

    async def complete(self, port: Function) -> bool:
        """Clear Command Completed if it is set, and say whether it was, or nothing can be awaited.

        Asked at every interrupt of the slot too, and whenever its events are cleared: a completion that stays latched
        is an enabled status that stays set, and no other change could raise an edge. One that latches while an event
        is pending raises no interrupt itself.
        """
        if not _reports_completion(port):
            return True
        at = port.capabilities.express + SLOT_STATUS.offset
        status = await self.read(port.address, at, SLOT_STATUS.width)
        if status is not None and not status & SlotStatus.COMMAND_COMPLETED:
            return False
        if status is not None:
            bit = SlotStatus.COMMAND_COMPLETED.to_bytes(SLOT_STATUS.width, "little")
            await self._hardware.write(port.address, at, bit)
        self._met.add(port.address)
        self._commanded.pop(port.address, None)
        return True

    async def _await_completion(self, port: Function) -> None:
        """Wait until the slot's last command has completed, or can no longer be waited for."""
        is_ours = port.address in self._met
        issued = self._commanded.get(port.address) if is_ours else self._started
        if issued is None:
            return
        loop = asyncio.get_running_loop()
        while not await self.complete(port):
            waited = loop.time() - issued
            if waited >= timing.COMMAND_COMPLETED_MAX:
                if is_ours:
                    _log.warning("timeout on hotplug command", port=str(port.address), issued_s_ago=round(waited, 3))
                return
            await asyncio.sleep(_POLL_S)


def _reports_completion(port: Function) -> bool:
    return port.slot is not None and SlotCapabilities.NO_COMMAND_COMPLETED not in port.slot
