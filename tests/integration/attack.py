"""What the attacks share: a fleet whose ports may be broken, and what their status registers say."""

from __future__ import annotations

from shared.pcie import Address
from shared.pcie import registers as r
from tests.integration.fleet import Bench

SERVICES = ("hotplug", "aer", "dpc")
LOST_S = 1000.0  # an interrupt that late is lost to any test


async def lose_hints(bench: Bench, port: str, *, lost: bool = True) -> None:
    """Have no interrupt of the port reach anybody any more; or again."""
    for service in SERVICES:
        await bench.inject("interrupt_delay", port, service=service, for_s=LOST_S if lost else 0.0)


async def pending(bench: Bench, port: str) -> dict[str, int]:
    """Return the status registers of a port that still hold an event or an error."""
    function = (await bench.topology()).get(Address.parse(port))
    caps = function.capabilities
    held = {
        "slot": await bench.read(function.address, r.SLOT_STATUS, caps.express),
        "device": await bench.read(function.address, r.DEVICE_STATUS, caps.express),
        "uncorrectable": await bench.read(function.address, r.UNCORRECTABLE_STATUS, caps.aer),
        "correctable": await bench.read(function.address, r.CORRECTABLE_STATUS, caps.aer),
    }
    if function.kind is r.DeviceType.ROOT_PORT:
        held["root"] = await bench.read(function.address, r.ROOT_ERROR_STATUS, caps.aer)
    return {name: value for name, value in held.items() if value and value & ~int(r.SlotStatus.PRESENCE)}
