"""Config images for the audit's tests: a healthy root port with a hotplug slot, and what is behind it."""

from __future__ import annotations

from typing import Final

from services.console.audit._checks import Image
from shared.pcie import Address, ConfigSpace
from shared.pcie import registers as reg
from shared.pcie.registers import Register

PORT: Final = Address.parse("0000:00:01.0")
DRIVE: Final = Address.parse("0000:01:00.0")
EXPRESS: Final = 0x40
AER: Final = 0x100
DPC: Final = 0x150
_LISTED: Final = 0x0010  # Status: a list of capabilities
_ENABLED: Final = 0x1028 | reg.SlotControl.COMMAND_COMPLETED_ENABLE  # DLLSCE, HPIE, PDCE
_REPORTING: Final = 0x000F
_CAPABLE: Final = reg.SlotCapabilities.HOTPLUG_CAPABLE | 41 << reg.SLOT_NUMBER_SHIFT
_LINK_ACTIVE_REPORTING: Final = 0x0010_0000

Changes = dict[tuple[Register, int], int]  # register, base of its capability -> value


def port(changes: Changes | None = None, *, slot: int = _CAPABLE, driver: bool | None = None) -> Image:
    """A root port with slot, AER and DPC, as it should be but for `changes`."""
    values: Changes = {
        (reg.VENDOR_ID, 0): 0x8086, (reg.DEVICE_ID, 0): 0x6F04, (reg.COMMAND, 0): 0x0506, (reg.STATUS, 0): _LISTED,
        (reg.REVISION_AND_CLASS, 0): 0x0604_0001, (reg.HEADER_TYPE, 0): reg.HeaderType.BRIDGE,
        (reg.SECONDARY_BUS, 0): 1, (reg.SUBORDINATE_BUS, 0): 1, (reg.BRIDGE_CONTROL, 0): reg.BridgeControl.SERR,
        (reg.EXPRESS_CAPABILITIES, EXPRESS): 0x0142, (reg.DEVICE_CONTROL, EXPRESS): _REPORTING,
        (reg.LINK_CAPABILITIES, EXPRESS): _LINK_ACTIVE_REPORTING | 0x43, (reg.LINK_STATUS, EXPRESS): 0x2043,
        (reg.SLOT_CAPABILITIES, EXPRESS): slot, (reg.SLOT_CONTROL, EXPRESS): _ENABLED,
        (reg.UNCORRECTABLE_SEVERITY, AER): reg.UNCORRECTABLE_FATAL_DEFAULT, (reg.CORRECTABLE_MASK, AER): 0x2000,
        (reg.DPC_CONTROL, DPC): 0x0009,
    }  # fmt: skip
    return Image(PORT, _config(values | (changes or {}), dpc=True), driver)


def drive(changes: Changes | None = None) -> Image:
    """An NVMe drive with AER."""
    values: Changes = {
        (reg.VENDOR_ID, 0): 0x144D, (reg.DEVICE_ID, 0): 0xA808, (reg.COMMAND, 0): 0x0506, (reg.STATUS, 0): _LISTED,
        (reg.REVISION_AND_CLASS, 0): 0x0108_0200, (reg.EXPRESS_CAPABILITIES, EXPRESS): 0x0002,
        (reg.DEVICE_CONTROL, EXPRESS): _REPORTING, (reg.UNCORRECTABLE_SEVERITY, AER): 0x0046_2030,
    }  # fmt: skip
    return Image(DRIVE, _config(values | (changes or {}), dpc=False))


def cut(image: Image, length: int) -> Image:
    """The same with only its first bytes, as who is not root reads it, or as `lspci -xxx` writes it."""
    return Image(image.address, image.config[:length], image.hotplug_driver)


def dumped(*images: Image) -> str:
    """As `lspci -xxxx` writes it."""
    blocks = []
    for image in images:
        rows = [f"{at:02x}: {image.config[at : at + 16].hex(' ')}" for at in range(0, len(image.config), 16)]
        blocks.append("\n".join((f"{str(image.address).removeprefix('0000:')} Some device", *rows)))
    return "\n\n".join(blocks) + "\n"


def _config(values: Changes, *, dpc: bool) -> bytes:
    space = ConfigSpace()
    space.set(reg.CAPABILITY_POINTER, 1, EXPRESS)
    space.set(EXPRESS, 2, reg.CapabilityId.EXPRESS)
    space.set(AER, 4, reg.ExtendedId.AER | 2 << 16 | (DPC if dpc else 0) << 20)
    if dpc:
        space.set(DPC, 4, reg.ExtendedId.DPC | 1 << 16)
    for (register, base), value in values.items():
        space.set(base + register.offset, register.width, value)
    return space.image()
