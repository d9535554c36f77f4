"""Who a function is: what must agree before a device counts as the one that went away."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class IdentityField(StrEnum):
    """A property by which two functions can differ."""

    VENDOR = "vendor"
    DEVICE = "device"
    CLASS = "class"
    REVISION = "revision"
    SUBSYSTEM = "subsystem"
    SERIAL = "serial"


class Identity(msgspec.Struct, frozen=True):
    """What a function says of itself.

    The kernel compares the same fields, of function 0 only (pciehp_device_replaced); Holdfast asks every function.
    `serial` is the Device Serial Number (§7.9.3), None where the function has none.
    """

    vendor: int
    device: int
    class_code: int
    revision: int
    subsystem: int
    serial: int | None = None

    def differences(self, other: Identity) -> frozenset[IdentityField]:
        """Return the fields in which the two differ: empty if they may be the same device."""
        pairs = (
            (IdentityField.VENDOR, self.vendor, other.vendor),
            (IdentityField.DEVICE, self.device, other.device),
            (IdentityField.CLASS, self.class_code, other.class_code),
            (IdentityField.REVISION, self.revision, other.revision),
            (IdentityField.SUBSYSTEM, self.subsystem, other.subsystem),
            (IdentityField.SERIAL, self.serial, other.serial),
        )
        return frozenset(name for name, mine, theirs in pairs if mine != theirs)

    def __str__(self) -> str:
        serial = "" if self.serial is None else f" serial {self.serial:016x}"
        return f"[{self.vendor:04x}:{self.device:04x}] class {self.class_code:06x} rev {self.revision:02x}{serial}"
