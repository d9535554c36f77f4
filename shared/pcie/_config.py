"""A function's 4 KiB of configuration space as hardware sees it: values, and what software may do to each bit."""

from __future__ import annotations

from .registers import CONFIG_SPACE_SIZE, Register


class ConfigSpace:
    """A register file of 4096 bytes, little endian (§7.2).

    Software comes in through `write` and changes only what the register table lets it change; hardware comes in
    through `set` and may change anything. Bits that no register claims are read-only and read as zero.
    """

    __slots__ = ("_power_on", "_rw", "_rw1c", "_sticky", "_value")

    def __init__(self) -> None:
        self._value = bytearray(CONFIG_SPACE_SIZE)
        self._power_on = bytearray(CONFIG_SPACE_SIZE)
        self._rw = bytearray(CONFIG_SPACE_SIZE)
        self._rw1c = bytearray(CONFIG_SPACE_SIZE)
        self._sticky = bytearray(CONFIG_SPACE_SIZE)

    def place(self, register: Register, value: int = 0, base: int = 0) -> None:
        """Put a register at `base` + its offset, with its value at power-on."""
        offset, width = base + register.offset, register.width
        for store, bits in (
            (self._value, value),
            (self._power_on, value),
            (self._rw, register.rw),
            (self._rw1c, register.rw1c),
            (self._sticky, register.sticky),
        ):
            _put(store, offset, width, bits)

    def read(self, offset: int, width: int) -> int:
        """Return `width` bytes as a number."""
        return _get(self._value, offset, width)

    def write(self, offset: int, width: int, value: int) -> None:
        """Write as software does: RW bits take the value, RW1C bits are cleared where it is one, others stay."""
        rw = _get(self._rw, offset, width)
        cleared = value & _get(self._rw1c, offset, width)
        before = _get(self._value, offset, width)
        _put(self._value, offset, width, (before & ~rw & ~cleared) | (value & rw))

    def set(self, offset: int, width: int, value: int) -> None:
        """Set every bit, as hardware does."""
        _put(self._value, offset, width, value)

    def hot_reset(self) -> None:
        """Give writable bits their power-on values; sticky ones stay (§6.6.1), and so do those hardware drives."""
        fall_back = (_all(self._rw) | _all(self._rw1c)) & ~_all(self._sticky)
        value = (_all(self._value) & ~fall_back) | (_all(self._power_on) & fall_back)
        self._value[:] = value.to_bytes(CONFIG_SPACE_SIZE, "little")

    def image(self) -> bytes:
        """Return all 4096 bytes."""
        return bytes(self._value)


def _get(store: bytearray, offset: int, width: int) -> int:
    assert 0 <= offset <= CONFIG_SPACE_SIZE - width, f"offset {offset:#x} with {width} bytes leaves the config space"
    return int.from_bytes(store[offset : offset + width], "little")


def _put(store: bytearray, offset: int, width: int, value: int) -> None:
    assert 0 <= offset <= CONFIG_SPACE_SIZE - width, f"offset {offset:#x} with {width} bytes leaves the config space"
    store[offset : offset + width] = (value & ((1 << 8 * width) - 1)).to_bytes(width, "little")


def _all(store: bytearray) -> int:
    return int.from_bytes(store, "little")
