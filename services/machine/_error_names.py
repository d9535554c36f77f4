"""Errors by the names that the kernel prints, as topology files and injections name them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from shared.pcie.errors import CORRECTABLE_NAMES, UNCORRECTABLE_NAMES

from ._specs import MachineError

_UNCORRECTABLE: Final = {name: int(bit) for bit, name in UNCORRECTABLE_NAMES.items()}
_CORRECTABLE: Final = {name: int(bit) for bit, name in CORRECTABLE_NAMES.items()}


def status_bits(names: Iterable[str]) -> tuple[int, int]:
    """Return the bits of uncorrectable and of correctable status. Raises MachineError for a name that is none."""
    uncorrectable = correctable = 0
    for name in names:
        if name in _UNCORRECTABLE:
            uncorrectable |= _UNCORRECTABLE[name]
        elif name in _CORRECTABLE:
            correctable |= _CORRECTABLE[name]
        else:
            raise MachineError(f"no error is called {name!r}; there are {', '.join([*_UNCORRECTABLE, *_CORRECTABLE])}")
    return uncorrectable, correctable
