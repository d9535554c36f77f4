"""The register file: what software may change, and what a hot reset leaves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.pcie import ConfigSpace
from shared.pcie.registers import Register

MIXED = Register("Mixed", 0x04, 2, "test", rw=0x00FF, rw1c=0x0F00, sticky=0x0F0F)
WORDS = st.integers(0, 0xFFFF)


def test_software_writes_rw_clears_rw1c_and_leaves_the_rest() -> None:
    space = ConfigSpace()
    space.place(MIXED, 0xFF00, base=0x10)
    space.write(0x14, 2, 0x01AA)
    assert space.read(0x14, 2) == 0xFEAA


def test_hardware_sets_anything() -> None:
    space = ConfigSpace()
    space.place(MIXED)
    space.set(0x04, 2, 0xFFFF)
    assert space.read(0x04, 2) == 0xFFFF


@given(power_on=WORDS, written=WORDS, hardware=WORDS)
def test_a_hot_reset_gives_back_power_on_values_but_for_sticky_and_read_only_bits(
    power_on: int, written: int, hardware: int
) -> None:
    space = ConfigSpace()
    space.place(MIXED, power_on)
    space.set(0x04, 2, hardware)
    space.write(0x04, 2, written)
    before = space.read(0x04, 2)
    space.hot_reset()
    falls_back = (MIXED.rw | MIXED.rw1c) & ~MIXED.sticky
    assert space.read(0x04, 2) == (before & ~falls_back) | (power_on & falls_back)


@given(value=WORDS, start=WORDS)
def test_a_write_byte_by_byte_is_the_same_as_a_word(value: int, start: int) -> None:
    whole, parts = ConfigSpace(), ConfigSpace()
    for space in (whole, parts):
        space.place(MIXED, start)
    whole.write(0x04, 2, value)
    parts.write(0x05, 1, value >> 8)
    parts.write(0x04, 1, value & 0xFF)
    assert whole.image() == parts.image()


def test_an_access_outside_is_our_own_bug() -> None:
    with pytest.raises(AssertionError, match="leaves the config space"):
        ConfigSpace().read(4094, 4)
