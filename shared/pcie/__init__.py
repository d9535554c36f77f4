"""PCI Express as registers and rules: pure, no I/O.

Addresses, registers and their bits, the config space with its access semantics, capability chains, errors by the
kernel's names, identity, topology, and every duration with its source. Nothing here waits, reads a clock or talks to
anybody.
"""

from . import errors, registers, timing
from ._address import Address, AddressError
from ._answer import NO_ANSWER, NoAnswer, Value, all_ones, answered
from ._identity import Identity, IdentityField
from ._topology import Capabilities, Function, Topology, Vectors

__all__ = [
    "NO_ANSWER",
    "Address",
    "AddressError",
    "Capabilities",
    "Function",
    "Identity",
    "IdentityField",
    "NoAnswer",
    "Topology",
    "Value",
    "Vectors",
    "all_ones",
    "answered",
    "errors",
    "registers",
    "timing",
]
