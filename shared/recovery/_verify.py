"""Is it the same device? Asked of every function, before its first write after a reset and again before the unmask.

The kernel looks at function 0 alone (pciehp_device_replaced, 6.11); a card of several functions can come back with
another behind the first. A function that does not answer is neither the same nor another: see Finding.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final, TypeGuard

import msgspec

from shared.pcie import NO_ANSWER, Address, Function, Identity, IdentityField, Topology, Value, answered
from shared.pcie import registers as reg
from shared.protocol.fabric import Operation, SavedFunction

from ._effects import Logic, ask, read

_VENDOR: Final = 0xFFFF  # §7.5.1.1.1: below the Device ID
_CLASS_SHIFT: Final = 8  # §7.5.1.1.6: the class code stands above the revision
_REVISION: Final = 0xFF
_EXTENDED_ID: Final = 0xFFFF  # §7.6.3: the id in an extended capability's header


class Finding(msgspec.Struct, frozen=True):
    """What one function says of itself now, compared with what it said before."""

    function: Address
    answers: bool  # it completes requests, and is ready
    differs: frozenset[IdentityField] = frozenset()  # empty where it does not answer
    unset: bool = False  # the same, but it decodes no memory any more: it has been reset, and nobody set it up again
    accepted: frozenset[IdentityField] = frozenset()  # differs too, as the holder of the lease intends

    @property
    def same(self) -> bool:
        """Tell whether the function answers with the identity it had."""
        return self.answers and not self.differs

    @property
    def holds(self) -> bool:
        """Tell whether it is the same function, and set up."""
        return self.same and not self.unset


def presence_read(function: Function) -> Operation:
    """Return the one read that tells whether a function is there and ready: Vendor and Device ID.

    A virtual function answers those with all ones by rule (§9.3.4.1.1); its Command and Status tell instead.
    """
    return read(function.address, function.presence.offset, 4)


def is_ready(value: Value) -> TypeGuard[int]:
    """Tell what the answer to `presence_read` says: nobody, nobody yet (§2.3.1: RRS), or somebody."""
    return answered(value) and value & _VENDOR != reg.RRS_VENDOR_ID


def identity_reads(function: Function) -> tuple[Operation, ...]:
    """Return the reads that tell who a function is; `identify` takes their values in this order."""
    address, serial = function.address, function.capabilities.serial_number
    common = []
    if function.physical is None:
        common.append(read(address, reg.VENDOR_ID.offset, 2))
        common.append(read(address, reg.DEVICE_ID.offset, 2))
    common.append(read(address, reg.REVISION_AND_CLASS.offset, 4))
    if not function.kind.is_bridge:
        common.append(read(address, reg.SUBSYSTEM_VENDOR_ID.offset, 4))
    if serial:
        common.append(read(address, serial, 4))
        common.append(read(address, serial + reg.SERIAL_NUMBER_LOW.offset, 4))
        common.append(read(address, serial + reg.SERIAL_NUMBER_HIGH.offset, 4))
    return tuple(common)


def identify(function: Function, sent: tuple[Value, ...]) -> Identity | None:
    """Return who answered `identity_reads`, or None where nobody did, or nobody who is ready yet.

    A bridge's subsystem stands in a capability of its own that Holdfast does not follow: it is taken as it was. So are
    vendor and device of a virtual function: its physical function answers for them.
    """
    assert len(sent) == len(identity_reads(function))  # else a value left out would read as a device that is gone
    got = [value for value in sent if answered(value)]
    if len(got) != len(sent):
        return None
    if function.physical is not None:
        got = [function.identity.vendor, function.identity.device, *got]
    elif got[0] == reg.RRS_VENDOR_ID:
        return None
    vendor, device, class_and_revision, *rest = got
    subsystem = function.identity.subsystem if function.kind.is_bridge else rest.pop(0)
    serial = None
    if rest and rest[0] & _EXTENDED_ID == reg.ExtendedId.DEVICE_SERIAL_NUMBER:
        serial = rest[2] << 32 | rest[1]
    return Identity(
        vendor=vendor,
        device=device,
        class_code=class_and_revision >> _CLASS_SHIFT,
        revision=class_and_revision & _REVISION,
        subsystem=subsystem,
        serial=serial,
    )


def find(
    function: Function,
    before: Identity,
    sent: tuple[Value, ...],
    command: Value = NO_ANSWER,
    *,
    accept: Collection[IdentityField] = (),
) -> Finding:
    """Compare the answers to `identity_reads` with who the function was; `command` of one that was set up, if read.

    `accept`: what may differ and still count as the same, because who holds the lease intends it.
    """
    now = identify(function, sent)
    if now is None:
        return Finding(function=function.address, answers=False)
    changed = before.differences(now)
    differs = changed.difference(accept)
    unset = not differs and answered(command) and not command & reg.Command.MEMORY_SPACE
    return Finding(
        function=function.address, answers=True, differs=differs, unset=unset, accepted=changed.intersection(accept)
    )


def command_read(function: Address) -> Operation:
    """Return the read that tells whether a function is set up. Nothing but a reset takes Memory Space Enable away."""
    return read(function, reg.COMMAND.offset, reg.COMMAND.width)


def verify(
    saved: Iterable[SavedFunction], topology: Topology, *, accept: Collection[IdentityField] = ()
) -> Logic[tuple[Finding, ...]]:
    """Ask every saved function who it is, and whether it is set up. One that the topology has lost does not answer."""
    findings = []
    for one in saved:
        function = topology.find(one.address)
        if function is None:
            findings.append(Finding(function=one.address, answers=False))
            continue
        sent = yield from ask(verify_reads(function, one))
        findings.append(judge(function, one, sent, accept=(*accept, *one.accept)))
    return tuple(findings)


def verify_reads(function: Function, saved: SavedFunction) -> tuple[Operation, ...]:
    """Return the reads that tell who a function is, and whether it is set up if it was; `judge` takes their values."""
    asked = identity_reads(function)
    return (*asked, command_read(saved.address)) if _was_set_up(saved) else asked


def judge(
    function: Function, saved: SavedFunction, sent: tuple[Value, ...], *, accept: Collection[IdentityField] = ()
) -> Finding:
    """Compare the answers to `verify_reads` with what was saved."""
    command = sent[-1] if _was_set_up(saved) else NO_ANSWER
    return find(function, saved.identity, sent[: len(identity_reads(function))], command, accept=accept)


def _was_set_up(saved: SavedFunction) -> bool:
    return any(
        register.offset == reg.COMMAND.offset and register.value & reg.Command.MEMORY_SPACE
        for register in saved.registers
    )
