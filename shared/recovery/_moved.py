"""A device that was meant to change may have moved its capabilities: what is not where it was is not written to.

A firmware or FPGA reload may lay config space out anew. A register of the old layout would then be written into
whatever stands there now. So each capability's header is asked whether it still is that capability; the header of
type 0 or 1, which every function has at its place, needs no asking.
"""

from __future__ import annotations

from typing import Final

import msgspec

from shared.pcie import Capabilities, answered
from shared.pcie.registers import CapabilityId, ExtendedId
from shared.protocol.fabric import Operation, SavedRegister

from ._effects import Logic, ask, read
from ._restore import Known

_HEADER_END: Final = 0x40  # the first byte behind the header that every function has
_EXTENDED_BEGIN: Final = 0x100  # §7.6: extended capabilities stand behind the first 256 bytes
_PLAIN_ID, _EXTENDED_ID = 1, 2  # bytes of the id, which comes first
_IDS: Final[dict[str, int]] = {
    name: {**CapabilityId.__members__, **ExtendedId.__members__}[
        "DEVICE_SERIAL_NUMBER" if name == "serial_number" else name.upper()
    ]
    for name in Capabilities.__struct_fields__
}


def in_place(known: Known) -> Logic[Known]:
    """Return `known` without the registers of capabilities that are no longer where they were."""
    bases = {base: _IDS[name] for name, base in msgspec.structs.asdict(known.function.capabilities).items() if base}
    held = yield from ask(_header(known, base) for base in bases)
    gone = {base for (base, wanted), got in zip(bases.items(), held, strict=True) if not answered(got) or got != wanted}
    kept = tuple(one for one in known.saved.registers if _base(one, tuple(bases)) not in gone)
    return msgspec.structs.replace(known, saved=msgspec.structs.replace(known.saved, registers=kept))


def _header(known: Known, base: int) -> Operation:
    return read(known.saved.address, base, _EXTENDED_ID if base >= _EXTENDED_BEGIN else _PLAIN_ID)


def _base(register: SavedRegister, bases: tuple[int, ...]) -> int:
    """Return the capability that a register is part of: the last that begins before it. 0: of the header."""
    if register.offset < _HEADER_END:
        return 0
    return max((base for base in bases if base <= register.offset), default=0)
