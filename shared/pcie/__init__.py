"""PCI Express as registers and rules: pure, no I/O.

Addresses, registers and their bits, the config space with its access semantics, capability chains, errors by the
kernel's names, identity, topology, and every duration with its source. Nothing here waits, reads a clock or talks to
anybody.
"""

from . import error_wording, errors, registers, timing
from ._address import Address, AddressError
from ._answer import NO_ANSWER, NoAnswer, Value, all_ones, answered
from ._capabilities import capabilities_of, describe, describe_virtual, identity_of, restorable, virtual_functions
from ._config import ConfigSpace
from ._error_registers import ErrorRegisters, aer_reads, decode_aer
from ._identity import Identity, IdentityField
from ._topology import Capabilities, Function, Topology, Vectors, same_device

__all__ = [
    "NO_ANSWER",
    "Address",
    "AddressError",
    "Capabilities",
    "ConfigSpace",
    "ErrorRegisters",
    "Function",
    "Identity",
    "IdentityField",
    "NoAnswer",
    "Topology",
    "Value",
    "Vectors",
    "aer_reads",
    "all_ones",
    "answered",
    "capabilities_of",
    "decode_aer",
    "describe",
    "describe_virtual",
    "error_wording",
    "errors",
    "identity_of",
    "registers",
    "restorable",
    "same_device",
    "timing",
    "virtual_functions",
]
