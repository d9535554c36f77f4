"""Addresses of functions, as `lspci` writes them: `DDDD:BB:DD.F`."""

from __future__ import annotations

import re
from functools import total_ordering
from typing import Final

_PATTERN: Final = re.compile(
    r"(?:(?P<domain>[0-9a-fA-F]{1,4}):)?(?P<bus>[0-9a-fA-F]{1,2}):(?P<device>[0-9a-fA-F]{1,2})\.(?P<function>[0-7])"
)
_DOMAIN_MAX: Final = 0xFFFF
_BUS_MAX: Final = 0xFF
_DEVICES_PER_BUS: Final = 32
_FUNCTIONS_PER_DEVICE: Final = 8


class AddressError(ValueError):
    """Text that does not name a PCI function."""


@total_ordering
class Address:
    """One PCI function: domain (16 bits), bus (8), device (5), function (3). Immutable, ordered, hashable."""

    __slots__ = ("_key", "bus", "device", "domain", "function")

    def __init__(self, domain: int, bus: int, device: int, function: int) -> None:
        assert 0 <= domain <= _DOMAIN_MAX
        assert 0 <= bus <= _BUS_MAX
        assert 0 <= device < _DEVICES_PER_BUS
        assert 0 <= function < _FUNCTIONS_PER_DEVICE
        object.__setattr__(self, "domain", domain)
        object.__setattr__(self, "bus", bus)
        object.__setattr__(self, "device", device)
        object.__setattr__(self, "function", function)
        # One number to compare and hash by: every look into a topology compares addresses.
        object.__setattr__(self, "_key", domain << 16 | bus << 8 | device << 3 | function)

    domain: int
    bus: int
    device: int
    function: int
    _key: int

    def shares_device(self, other: Address) -> bool:
        """Tell whether both stand at the same bus and device number."""
        return self._key >> 3 == other._key >> 3

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable")

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read `0000:3b:00.0`, `3b:00.0` (domain 0) or a subject token `0000-3b-00-0`.

        Raises AddressError, naming the text and the accepted form.
        """
        match = _PATTERN.fullmatch(_from_token(text))
        if match is None or int(match["device"], 16) >= _DEVICES_PER_BUS:
            raise AddressError(f"{text!r} is not a PCI address; write it as lspci does, for example 0000:3b:00.0")
        domain = int(match["domain"] or "0", 16)
        return cls(domain, int(match["bus"], 16), int(match["device"], 16), int(match["function"]))

    @property
    def token(self) -> str:
        """The address as a NATS subject token and key: `0000-3b-00-0`."""
        return f"{self.domain:04x}-{self.bus:02x}-{self.device:02x}-{self.function}"

    @property
    def requester_id(self) -> int:
        """Bus, device and function in 16 bits, as Error Source Identification carries them (PCIe r6.2 §7.8.4.10)."""
        return self._key & 0xFFFF

    def with_requester_id(self, requester_id: int) -> Address:
        """Return the function of this domain that a 16-bit requester id names."""
        return Address(self.domain, requester_id >> 8, requester_id >> 3 & 0x1F, requester_id & 7)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Address) and self._key == other._key

    def __lt__(self, other: Address) -> bool:
        return self._key < other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __str__(self) -> str:
        return f"{self.domain:04x}:{self.bus:02x}:{self.device:02x}.{self.function}"

    def __repr__(self) -> str:
        return f"Address.parse({str(self)!r})"


def _from_token(text: str) -> str:
    """Turn `0000-3b-00-0` into `0000:3b:00.0`; leave everything else as it is."""
    parts = text.split("-")
    return f"{parts[0]}:{parts[1]}:{parts[2]}.{parts[3]}" if len(parts) == 4 else text  # noqa: PLR2004 - four fields
