"""Closing: verify, drain, unmask. Run by the fabric at the hardware, so no command of anybody comes in between.

**What may happen in the middle.** A register may latch at any moment, also between two of these lines. So nothing is
cleared before the devices have been verified, and nothing is restored over a clear that was not followed by another
look. A status that latches after the last look raises its interrupt when the enable is restored: the edge is
*HPIE and (status and enable)*, and the status stays.

**Why a change is left latched.** The latch is hotplug's evidence. Restoring the enable over it raises the interrupt
that the lease had held back, and hotplug acts on the change once, after the lease (P4).

**What stays down.** A port that goes into quarantine, or was in it before the lease came, is not verified, and nor is
what is behind it. Of its slot only Presence Detect Changed is restored: DLLSC says what we did, and so does PDC where
presence follows the link, so these are cleared. Surprise Down stays masked.
"""

from __future__ import annotations

from enum import Enum, StrEnum
from typing import Final

import msgspec

from shared.pcie import Address, Function, IdentityField, Topology, answered
from shared.pcie import registers as reg
from shared.pcie.errors import PROVOKED_CORRECTABLE, PROVOKED_UNCORRECTABLE
from shared.protocol.fabric import FunctionOutcome, Lease, Operation, Result, SavedFunction, SavedSlot

from ._degraded import degraded_ports, marked
from ._effects import Do, Logic, ask, modify, read, write
from ._port import look_at
from ._quiet import speak
from ._verify import Finding, verify

ROUNDS_MAX: Final = 5  # DESIGN 4: clear and look again, five times at most
_CHANGED: Final = reg.SlotStatus.PRESENCE_CHANGED | reg.SlotStatus.LINK_STATE_CHANGED  # what pairs with SLOT_MASKED


class Verdict(StrEnum):
    """What to do next with one slot."""

    DROP = "drop"  # nothing can be restored
    LEAVE = "leave"  # restore the enables, keep every latch: hotplug will act
    CLEAR = "clear"  # clear the latches and what the reset provoked, then look again
    RESTORE = "restore"  # restore the enables: nothing is latched
    HOLD = "hold"  # the port stays down, in quarantine: restore Presence Detect Changed alone


class Seen(msgspec.Struct, frozen=True):
    """What one look at a slot tells, as conditions of the table."""

    reachable: bool  # the port answers
    holds: bool  # the link and every function are as they were
    out_of_band: bool  # presence does not follow the link (Slot Control bit 14)
    presence_latched: bool  # PDC was latched at any look, before we cleared it
    dirty: bool  # PDC, DLLSC or a provoked error is latched now
    exhausted: bool  # cleared as often as we may


class _Cell(Enum):
    ANY = "-"


_ANY: Final = _Cell.ANY
_N, _Y = False, True
_SOMEBODY: Final = "out-of-band presence changed: somebody was at the slot"


class Row(msgspec.Struct, frozen=True):
    """One row: conditions (in the order of Seen; ANY: don't care), the verdict and why."""

    label: str
    when: tuple[bool | _Cell, ...]
    verdict: Verdict
    because: str

    def fits(self, seen: Seen) -> bool:
        """Tell whether every condition that the row cares for is as it says."""
        return all(
            want is _ANY or want is have for want, have in zip(self.when, msgspec.structs.astuple(seen), strict=True)
        )


ROWS: Final = (
    #          reach holds  oob  pdc  dirty exhausted
    Row("C1", (_N, _ANY, _ANY, _ANY, _ANY, _ANY), Verdict.DROP, "the port does not answer"),
    Row("C2", (_Y, _N, _ANY, _ANY, _ANY, _ANY), Verdict.LEAVE, "link, identity or setup is not as it was"),
    Row("C3", (_Y, _Y, _Y, _Y, _ANY, _ANY), Verdict.LEAVE, _SOMEBODY),
    Row("C4", (_Y, _Y, _N, _ANY, _N, _ANY), Verdict.RESTORE, "unchanged, and nothing is latched"),
    Row("C5", (_Y, _Y, _Y, _N, _N, _ANY), Verdict.RESTORE, "unchanged, and nothing is latched"),
    Row("C6", (_Y, _Y, _N, _ANY, _Y, _N), Verdict.CLEAR, "unchanged; what latched was the reset"),
    Row("C7", (_Y, _Y, _Y, _N, _Y, _N), Verdict.CLEAR, "unchanged; what latched was the reset"),
    Row("C8", (_Y, _Y, _N, _ANY, _Y, _Y), Verdict.LEAVE, "it latches again as often as it is cleared"),
    Row("C9", (_Y, _Y, _Y, _N, _Y, _Y), Verdict.LEAVE, "it latches again as often as it is cleared"),
)  # fmt: skip


def judge(seen: Seen) -> Row:
    """Return the one row that fits."""
    (row,) = (row for row in ROWS if row.fits(seen))
    return row


class SlotClosed(msgspec.Struct, frozen=True):
    """How one slot was closed: for the fact, and for the test of P2."""

    port: Address
    row: str
    verdict: Verdict
    because: str
    rounds: int  # how often latches were cleared
    cleared: int = 0  # Slot Status bits, all rounds together
    latched: int = 0  # Slot Status bits that were left for hotplug
    enables: int | None = None  # the enables restored; None where the port does not answer
    surprise_down_masked: bool | None = None


class LeaseClosed(msgspec.Struct, frozen=True):
    """How all slots of a lease were closed, deepest first, and what became of its functions."""

    slots: tuple[SlotClosed, ...]
    outcomes: tuple[FunctionOutcome, ...]


class _Look(msgspec.Struct, frozen=True):
    """The registers of one look at a slot."""

    status: int | None
    control: int
    link_active: bool
    surprise_down: bool
    findings: tuple[Finding, ...]


def close_lease(lease: Lease, topology: Topology, quarantine: tuple[Address, ...] = ()) -> Logic[LeaseClosed]:
    """Close every slot of the lease, deepest first, then say what became of each function.

    `quarantine`: ports that stay down from now on; those of `lease.quarantined` do already. May run twice.
    """
    down = {*quarantine, *lease.quarantined}
    behind_down = {function.address for port in down for function in topology.below(port)}
    functions = tuple(one for one in lease.functions if one.address not in behind_down)
    slots: list[SlotClosed] = []
    for slot in sorted(lease.slots, key=lambda one: len(topology.ancestors(one.port)), reverse=True):
        if slot.port in behind_down:
            continue  # nothing there can be reached; the quarantine's record keeps it
        if slot.port in down:
            slots.append((yield from _hold_slot(slot, topology)))
            continue
        behind = {function.address for function in topology.below(slot.port)}
        saved = tuple(one for one in functions if one.address in behind)
        slots.append((yield from close_slot(slot, saved, topology, lease=lease)))
    findings = yield from verify(functions, topology, accept=lease.accept)
    visited = tuple(one.port for one in slots if one.because == _SOMEBODY)
    reseated = {function.address for port in visited for function in topology.below(port)}
    outcomes: list[FunctionOutcome] = []
    for finding in findings:
        outcome = yield from _outcome(finding, topology)
        if outcome.function in reseated and outcome.result is Result.RECOVERED:
            # Hotplug will take it for another card: nobody can tell the same one from its twin (P4).
            outcome = FunctionOutcome(function=outcome.function, result=Result.REPLACED)
        outcomes.append(outcome)
    lesser = yield from degraded_ports(lease.links, topology)
    judged = {outcome.function: outcome for outcome in marked(outcomes, lesser, topology)}
    for quiet in lease.quiet:
        function = topology.find(quiet.function)
        if function is not None:
            yield Do(speak(function, quiet))
    return LeaseClosed(
        slots=tuple(slots),
        outcomes=tuple(
            judged.get(one.address) or FunctionOutcome(function=one.address, result=Result.QUARANTINED)
            for one in lease.functions
        ),
    )


def _hold_slot(slot: SavedSlot, topology: Topology) -> Logic[SlotClosed]:
    """Leave the slot of a port that stays down with Presence Detect Changed as it was found, and nothing else."""
    port = topology.find(slot.port)
    done = SlotClosed(port=slot.port, row="Q1", verdict=Verdict.HOLD, because="the port is in quarantine", rounds=0)
    look = _Look(None, 0, link_active=False, surprise_down=False, findings=())
    if port is not None:
        look = yield from _look(port, (), topology, _Terms())
    if port is None or look.status is None:
        return msgspec.structs.replace(done, row="Q2", verdict=Verdict.DROP, because="the port does not answer")
    ours = reg.SlotStatus.LINK_STATE_CHANGED
    if not look.control & reg.SlotControl.IN_BAND_PRESENCE_DISABLE:
        ours |= reg.SlotStatus.PRESENCE_CHANGED
    cleared = look.status & ours
    if cleared:
        yield Do((write(port.address, port.capabilities.express + reg.SLOT_STATUS.offset, 2, cleared),))
    enables = slot.enables & int(reg.SlotControl.PRESENCE_CHANGED_ENABLE)
    # Where the mask is the firmware's, it is put back while it may be: who lifts the quarantine may not.
    masked = slot.surprise_down_masked if topology.firmware_first else None
    yield Do(_restore(port, SavedSlot(port=slot.port, enables=enables, surprise_down_masked=masked)))
    return msgspec.structs.replace(done, cleared=cleared, latched=look.status & _CHANGED & ~ours, enables=enables)


def close_slot(
    slot: SavedSlot, saved: tuple[SavedFunction, ...], topology: Topology, *, lease: Lease | None = None
) -> Logic[SlotClosed]:
    """Close one slot: look, judge, clear, look again, restore exactly what was masked. May run twice.

    `lease` says what may differ, and whether errors are the firmware's.
    """
    terms = _Terms() if lease is None else _Terms(lease.accept, lease.firmware_owned)
    port = topology.find(slot.port)
    rounds, cleared, presence = 0, 0, False
    while True:
        look = _Look(None, 0, link_active=False, surprise_down=False, findings=())
        if port is not None:
            look = yield from _look(port, saved, topology, terms)
        status = look.status or 0
        presence = presence or bool(status & reg.SlotStatus.PRESENCE_CHANGED)
        row = judge(
            Seen(
                reachable=look.status is not None,
                holds=_holds(port, look),
                out_of_band=bool(look.control & reg.SlotControl.IN_BAND_PRESENCE_DISABLE),
                presence_latched=presence,
                dirty=bool(status & _CHANGED) or look.surprise_down,
                exhausted=rounds >= ROUNDS_MAX,
            )
        )
        done = SlotClosed(
            port=slot.port, row=row.label, verdict=row.verdict, because=row.because, rounds=rounds, cleared=cleared
        )
        if row.verdict is Verdict.DROP or port is None:
            return done
        if row.verdict is Verdict.CLEAR:
            yield from _clear(port, status & _CHANGED, saved, topology, terms)
            rounds, cleared = rounds + 1, cleared | status & _CHANGED
            continue
        yield Do(_restore(port, slot))
        return msgspec.structs.replace(
            done,
            latched=status & _CHANGED,
            enables=slot.enables,
            surprise_down_masked=slot.surprise_down_masked,
        )


class _Terms(msgspec.Struct, frozen=True):
    """What a lease says about closing."""

    accept: tuple[IdentityField, ...] = ()
    firmware_owned: bool = False


def _look(port: Function, saved: tuple[SavedFunction, ...], topology: Topology, terms: _Terms) -> Logic[_Look]:
    """Verify first, read the latches last: what latches in between is then seen."""
    findings = yield from verify(saved, topology, accept=terms.accept)
    express, aer = port.capabilities.express, 0 if terms.firmware_owned else port.capabilities.aer
    operations = [
        read(port.address, express + reg.SLOT_CONTROL.offset, 2),
        read(port.address, express + reg.LINK_STATUS.offset, 2),
        read(port.address, express + reg.SLOT_STATUS.offset, 2),
    ]
    if aer:
        operations.append(read(port.address, aer + reg.UNCORRECTABLE_STATUS.offset, 4))
    got = [value for value in (yield from ask(operations)) if answered(value)]
    if len(got) != len(operations):
        return _Look(None, 0, link_active=False, surprise_down=False, findings=findings)
    control, link, status, *errors = got
    return _Look(
        status=status,
        control=control,
        link_active=bool(link & reg.LinkStatus.LINK_ACTIVE),
        surprise_down=bool(errors and errors[0] & reg.Uncorrectable.SURPRISE_DOWN),
        findings=findings,
    )


def _holds(port: Function | None, look: _Look) -> bool:
    """Tell whether link and devices are as they were. An empty slot is unchanged if it still is empty.

    So is one that is switched off with a card in it: a reset from above has switched it on, and its link has come up,
    until Slot Control was restored. Nobody has touched the card, or presence would have changed.
    """
    if port is None or look.status is None:
        return False
    if not look.findings:
        off = _switched_off(port, look) and not look.status & reg.SlotStatus.PRESENCE_CHANGED
        return not look.link_active and (off or not look.status & reg.SlotStatus.PRESENCE)
    linked = look.link_active or not port.link_active_reporting
    return linked and all(finding.holds for finding in look.findings)


def _switched_off(port: Function, look: _Look) -> bool:
    controlled = port.slot is not None and reg.SlotCapabilities.POWER_CONTROLLER in port.slot
    return controlled and bool(look.control & reg.SlotControl.POWER_OFF)


def _clear(
    port: Function, latched: int, saved: tuple[SavedFunction, ...], topology: Topology, terms: _Terms
) -> Logic[None]:
    """Clear what was seen latched, and what a reset provokes by itself at the port and below. Other errors stay."""
    operations = []
    if latched:
        operations.append(write(port.address, port.capabilities.express + reg.SLOT_STATUS.offset, 2, latched))
    errors = () if terms.firmware_owned else (port.address, *(one.address for one in saved))
    for address in errors:
        function = topology.find(address)
        if function is not None and function.capabilities.aer:
            operations.extend(_clear_provoked(address, function.capabilities.aer))
    yield Do(tuple(operations))


def _clear_provoked(address: Address, aer: int) -> tuple[Operation, Operation]:
    return (
        write(address, aer + reg.UNCORRECTABLE_STATUS.offset, 4, int(PROVOKED_UNCORRECTABLE)),
        write(address, aer + reg.CORRECTABLE_STATUS.offset, 4, int(PROVOKED_CORRECTABLE)),
    )


def _restore(port: Function, slot: SavedSlot) -> tuple[Operation, ...]:
    """Return the writes that put back the masked bits and no others; Slot Control last: it raises the interrupt."""
    operations = []
    if slot.surprise_down_masked is not None and port.capabilities.aer:
        bit = int(reg.Uncorrectable.SURPRISE_DOWN)
        at = port.capabilities.aer + reg.UNCORRECTABLE_MASK.offset
        operations.append(modify(port.address, at, 4, mask=bit, value=bit if slot.surprise_down_masked else 0))
    at = port.capabilities.express + reg.SLOT_CONTROL.offset
    operations.append(modify(port.address, at, 2, mask=int(reg.SLOT_MASKED), value=slot.enables))
    return tuple(operations)


def _outcome(finding: Finding, topology: Topology) -> Logic[FunctionOutcome]:
    """Judge one function: same is recovered, another replaced; no answer is removed if its slot says so, else failed.

    One that was reset after it had been restored has failed: hotplug finds the change latched, and sets it up anew.
    """
    if finding.same:
        result = Result.FAILED if finding.unset else Result.RECOVERED
        return FunctionOutcome(function=finding.function, result=result, differs=tuple(sorted(finding.accepted)))
    if finding.answers:
        differs = tuple(sorted(finding.differs))
        return FunctionOutcome(function=finding.function, result=Result.REPLACED, differs=differs)
    gone = yield from _gone(finding.function, topology)
    return FunctionOutcome(function=finding.function, result=Result.REMOVED if gone else Result.FAILED)


def _gone(address: Address, topology: Topology) -> Logic[bool]:
    """Tell whether the nearest slot above that answers is empty, and can be believed."""
    for port in topology.ancestors(address):
        if port.slot is None:
            continue
        view = yield from look_at(port)
        if view is not None:
            held_down = view.in_reset or view.disabled or view.contained
            return view.present is False and (view.out_of_band or not held_down)
    return False
