"""Facts and interrupts: what happened. Facts are kept in the stream PCIE_FACTS, interrupts are only hints.

A fact is published by the one service that established it, on `pcie.<host>.<port>.<kind>.<what>`.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

import msgspec

from shared.pcie import Address

from ._base import Message


class Interrupt(Message, frozen=True):
    """Fabric → services: an interrupt of this port, with what its registers held. A hint: read before you act (P9).

    A register that did not answer is None. Registers by name: slot_control, slot_status, link_status,
    root_error_status, error_source, dpc_control, dpc_status, dpc_source. `edr`: the firmware's notification of a
    containment, which on a firmware-first host stands in for the DPC interrupt.
    """

    port: Address
    edr: bool = False
    registers: dict[str, int | None] = msgspec.field(default_factory=dict)


class What(StrEnum):
    """Every kind of fact; the value is the end of its subject."""

    # link.*, slot.* and device.*: hotplug
    LINK_DOWN = "link.down"
    LINK_UP = "link.up"
    SLOT_STATE = "slot.state"  # from, to, why
    SLOT_DEFERRED = "slot.deferred"  # events left latched for the lease that covers the slot
    SLOT_IGNORED = "slot.ignored"  # events that changed nothing: reason, why
    SLOT_BUTTON = "slot.button"
    SLOT_POWER_FAULT = "slot.power_fault"
    SLOT_LATCH = "slot.latch"  # MRL opened or closed
    SLOT_NOT_READY = "slot.not_ready"  # a bring-up failed: why
    SLOT_RECONCILED = "slot.reconciled"  # enables set again that nobody holds
    DEVICE_ADDED = "device.added"
    DEVICE_REMOVED = "device.removed"
    DEVICE_KEPT = "device.kept"  # judged after a lease or a flap: the same device answers
    DEVICE_REBOUND = "device.rebound"
    DEVICE_CHANNEL = "device.channel"
    # error.*: aer (and dpc for the port's own)
    ERROR_CORRECTABLE = "error.correctable"
    ERROR_NONFATAL = "error.nonfatal"
    ERROR_FATAL = "error.fatal"
    ERROR_IGNORED = "error.ignored"
    # containment.*: dpc; released: coordinator
    CONTAINMENT_ENTERED = "containment.entered"
    CONTAINMENT_IGNORED = "containment.ignored"
    CONTAINMENT_RELEASED = "containment.released"
    # lease.*: fabric
    LEASE_OPENED = "lease.opened"
    LEASE_MASKED = "lease.masked"  # per slot: saved enables, what was written
    LEASE_EXECUTED = "lease.executed"  # operations that wrote, with their values
    LEASE_REFUSED = "lease.refused"
    LEASE_ABSORBED = "lease.absorbed"
    LEASE_ADOPTED = "lease.adopted"
    LEASE_UNMASKED = "lease.unmasked"  # per slot: cleared or left latched, restored enables
    LEASE_CLOSED = "lease.closed"  # outcomes
    LEASE_ACKNOWLEDGED = "lease.acknowledged"  # error status cleared for aer
    LEASE_FIRMWARE_ANSWERED = "lease.firmware_answered"  # firmware first: _OST, and with which status
    # quarantine.*: fabric
    QUARANTINE_ENTERED = "quarantine.entered"
    QUARANTINE_LIFTED = "quarantine.lifted"
    # recovery.*: coordinator
    RECOVERY_STARTED = "recovery.started"
    RECOVERY_JOINED = "recovery.joined"
    RECOVERY_WAITING = "recovery.waiting"  # for whose lease
    RECOVERY_ESCALATED = "recovery.escalated"
    RECOVERY_STEP = "recovery.step"
    RECOVERY_VOTE = "recovery.vote"
    RECOVERY_PROGRESS = "recovery.progress"
    RECOVERY_ERRORS = "recovery.errors"  # error status read after the link returned
    RECOVERY_BROKEN = "recovery.broken"  # an operator ended it: by whom
    RECOVERY_CLOSED = "recovery.closed"  # outcome per function


class Ignored(StrEnum):
    """Why nothing was done about an event: `reason` of slot.ignored, error.ignored and containment.ignored."""

    SAME_DEVICE = "same_device"  # hotplug: the link came back, and the same device answers
    NOTHING_LEFT = "nothing_left"  # hotplug: a change that left an empty slot as it was
    CONTAINED = "contained"  # aer: the port or one above is contained, which is dpc's case
    PROVOKED = "provoked"  # aer: what a reset provokes, under its lease
    GONE = "gone"  # aer: a surprise removal, which is hotplug's case
    TRACELESS = "traceless"  # aer: a message that no function has the status of
    STALE = "stale"  # aer: older than the service
    SPURIOUS = "spurious"  # dpc: an interrupt status without a trigger
    REFUSED = "refused"  # aer, dpc: the coordinator will not recover it, whoever asks
    QUARANTINED = "quarantined"  # aer, dpc, hotplug: the port is in quarantine
    FIRMWARE = "firmware"  # aer, dpc: the firmware owns these registers now


class Fact(Message, frozen=True):
    """One thing that happened, and who says so. `seq` counts up per publisher; `at` is for people, never decides."""

    what: What
    host: str
    port: Address
    service: str
    seq: int
    at: datetime
    lease: str | None = None
    cause: str | None = None
    data: dict[str, Any] = msgspec.field(default_factory=dict)
