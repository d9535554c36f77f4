"""What every function's registers hold as software set them: taken at enumeration, renewed at every write by software.

After containment everything below the port reads all ones, and a hot reset clears Slot Control and bus numbers. The
snapshot then is the only place that knows what to put back (DESIGN 4, "What cannot be reached cannot be masked").

It holds the slots' enables as software set them. The fabric masks behind software's back, and so does whoever restores
config space under a lease; neither shows here.
"""

from __future__ import annotations

import msgspec

from shared.pcie import Function, all_ones, restorable
from shared.pcie import registers as reg
from shared.protocol.fabric import Operation, SavedLink, SavedRegister, SavedReporting, SavedSlot, Verb
from shared.recovery import saved_link, silenced

from ._layout import written

_SURPRISE_DOWN = int(reg.Uncorrectable.SURPRISE_DOWN)


class Known(msgspec.Struct, frozen=True):
    """A function, and what software puts back after a reset, in the order in which it does."""

    function: Function
    registers: tuple[SavedRegister, ...] = ()
    link: SavedLink | None = None  # what the link below negotiated when it was last seen up, if this is a port

    def held(self, register: reg.Register, base: int = 0) -> int | None:
        """Return the snapshot's value of a register; None if it is not restorable."""
        at = base + register.offset
        return next((one.value for one in self.registers if one.offset == at and one.width == register.width), None)


def take(function: Function, image: bytes) -> Known:
    """Take the snapshot from a function's config space."""
    link = None
    if function.is_port:
        at = function.capabilities.express + reg.LINK_STATUS.offset
        link = saved_link(function, int.from_bytes(image[at : at + reg.LINK_STATUS.width], "little"))
    return Known(
        function=function,
        registers=tuple(SavedRegister(offset, width, value) for offset, width, value in restorable(function, image)),
        link=link,
    )


def renew(
    known: Known, operation: Operation, value: int, *, keep_enables: bool, quiet: SavedReporting | None = None
) -> Known:
    """Return the snapshot after software wrote `value`. `keep_enables`: the slot is masked, its enables stay.

    `quiet`: the reporting of errors is silenced, and what was found stays.
    """
    actual = msgspec.structs.replace(operation, verb=Verb.WRITE, value=value)
    kept = {
        one.offset: (_enables(known.function, one.offset) if keep_enables else 0)
        | (silenced(known.function, quiet, one) if quiet is not None else 0)
        for one in known.registers
    }
    fresh = tuple(_renewed(known.function, one, actual, keep=kept[one.offset]) for one in known.registers)
    return known if fresh == known.registers else msgspec.structs.replace(known, registers=fresh)


def _renewed(function: Function, one: SavedRegister, operation: Operation, *, keep: int) -> SavedRegister:
    touched = written(operation, reg.Register("", 0, one.width, ""), one.offset)
    mask = touched.mask & ~_transient(function, one.offset) & ~keep
    return SavedRegister(one.offset, one.width, (one.value & ~mask) | (touched.value & mask))


def _transient(function: Function, offset: int) -> int:
    """Return the bits of a register that act, and that nobody wants put back."""
    caps = function.capabilities
    acting: dict[int, int] = {}
    if caps.power_management:  # a reset by power management goes by D3hot, and may be taken over there
        acting[caps.power_management + reg.PM_CONTROL.offset] = reg.PM_POWER_STATE
    if caps.express:
        acting[caps.express + reg.DEVICE_CONTROL.offset] = reg.DeviceControl.INITIATE_FLR
        acting[caps.express + reg.LINK_CONTROL.offset] = reg.LinkControl.LINK_DISABLE | reg.LinkControl.RETRAIN_LINK
    if caps.dpc:
        acting[caps.dpc + reg.DPC_CONTROL.offset] = reg.DpcControl.SOFTWARE_TRIGGER
    if function.kind.is_bridge:
        acting[reg.BRIDGE_CONTROL.offset] = reg.BridgeControl.SECONDARY_BUS_RESET
    return acting.get(offset, 0)


def _enables(function: Function, offset: int) -> int:
    """Return the bits of a register that masking a slot changes."""
    caps = function.capabilities
    if function.slot is not None and offset == caps.express + reg.SLOT_CONTROL.offset:
        return int(reg.SLOT_MASKED)
    if caps.aer and offset == caps.aer + reg.UNCORRECTABLE_MASK.offset:
        return _SURPRISE_DOWN
    return 0


def saved_slot(known: Known, control: int | None, mask: int | None, *, firmware_owned: bool = False) -> SavedSlot:
    """Return a slot's enables: from its registers where they answered, else from the snapshot.

    `firmware_owned`: Surprise Down is not touched, so there is nothing to restore.
    """
    caps = known.function.capabilities
    if control is None:
        control = known.held(reg.SLOT_CONTROL, caps.express) or 0
    if mask is None and caps.aer:
        mask = known.held(reg.UNCORRECTABLE_MASK, caps.aer)
    return SavedSlot(
        port=known.function.address,
        enables=control & int(reg.SLOT_MASKED),
        surprise_down_masked=None if mask is None or firmware_owned else bool(mask & _SURPRISE_DOWN),
    )


def as_masked(known: Known) -> tuple[SavedRegister, ...]:
    """Return the registers as a holder may restore them: every slot's enables clear, Surprise Down masked."""
    function = known.function
    if not function.hotplug_capable:
        return known.registers
    slot_control = function.capabilities.express + reg.SLOT_CONTROL.offset
    return tuple(
        _masked(one, _enables(function, one.offset), clear=one.offset == slot_control) for one in known.registers
    )


def _masked(one: SavedRegister, bits: int, *, clear: bool) -> SavedRegister:
    value = one.value & ~bits if clear else one.value | bits
    return SavedRegister(one.offset, one.width, value & all_ones(one.width))
