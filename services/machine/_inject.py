"""What a lab does to real hardware: each injection checked when it is planned, done when it is due."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog

from shared.pcie import Address
from shared.pcie import registers as r
from shared.pcie.errors import Severity
from shared.protocol.requests import Inject, Injection

from ._cards import next_card
from ._dpc import RpPioError
from ._error_names import status_bits
from ._errors import Detected, contain, detect, log_only
from ._function import SimulatedFunction
from ._interrupts import SERVICES
from ._port import Port
from ._slot import Slot
from ._specs import DriverSpec, LinkSpec, MachineError
from ._topology_file import driver_table, new_driver

if TYPE_CHECKING:
    from ._machine import Machine

_RP_PIO: Final = {bit.name.lower(): bit for bit in r.RpPio if bit.name is not None}
_FLAP_S: Final = 0.05  # ours: a flap that names no duration
_BURST_S: Final = 0.01  # ours: a flood comes in bursts so far apart, between which the bench settles
_UNSTABLE_S: Final = 0.006  # ours: a link that is unstable for no time named drops so soon after it is up
_OF_INTERRUPTS: Final = frozenset({Injection.INTERRUPT, Injection.INTERRUPT_DELAY, Injection.INTERRUPT_LOST})
_OF_PORTS: Final = frozenset(Injection) - {Injection.ERROR, Injection.DRIVER} - _OF_INTERRUPTS
_OF_SLOTS: Final = frozenset({Injection.BUTTON, Injection.POWER_FAULT, Injection.MRL})
_OF_CONTAINMENT: Final = frozenset({Injection.DPC, Injection.EDR})
_ENDLESS: Final = frozenset({Injection.UNSTABLE_LINK})  # of these a count of zero means: always

_log = structlog.get_logger()


class Injector:
    """Does to the machine what `Inject` asks for. `known` are the addresses of the topology file."""

    def __init__(self, machine: Machine, known: frozenset[Address]) -> None:
        self._machine = machine
        self._known = known
        self._actions: dict[Injection, Callable[[SimulatedFunction, Inject], None]] = {
            Injection.REMOVE: self._remove,
            Injection.INSERT: self._insert,
            Injection.SWAP: self._swap,
            Injection.LINK_FLAP: self._flap,
            Injection.LINK_DOWN: lambda target, _: _cut(target, True),
            Injection.LINK_UP: lambda target, _: _mend(target),
            Injection.STUCK_TRAINING: _stick,
            Injection.DEGRADED_LINK: self._degrade,
            Injection.UNSTABLE_LINK: _unsettle,
            Injection.SLOW_READY: _slow,
            Injection.BUTTON: lambda target, _: _press(target),
            Injection.POWER_FAULT: lambda target, request: _slot(target).fault(request.for_s),
            Injection.MRL: lambda target, request: _slot(target).move_latch(bool(request.state)),
            Injection.ERROR: self._error,
            Injection.DPC: self._contain,
            Injection.EDR: lambda target, _: self._notify(target),
            Injection.INTERRUPT_DELAY: self._delay,
            Injection.INTERRUPT_LOST: self._lose,
            Injection.INTERRUPT: self._interrupt,
        }

    def plan(self, request: Inject) -> None:
        """Check the request, then do it at once or later. Raises MachineError."""
        self._check(request)
        if request.after_s > 0:
            self._machine.clock.later(request.after_s, lambda: self._due(request))
            return
        self._do(request)
        self._machine.settle()

    def _check(self, request: Inject) -> None:
        target = self._machine.find(request.target)
        if request.target not in self._known and target is None:
            raise MachineError(f"there is no function {request.target} on this bench")
        if request.what is Injection.EDR and self._machine.firmware is None:
            raise MachineError("edr needs a host with firmware_first = true in its topology file")
        if target is not None:
            _check_target(request, target)
        elif request.after_s <= 0 and request.what is not Injection.DRIVER:
            raise MachineError(f"{request.target} is not seated now")
        _check_fields(request)
        if request.what in {Injection.INSERT, Injection.SWAP} and target is not None and request.after_s <= 0:
            next_card(_port(target), request.card)
            if request.what is Injection.INSERT and _port(target).seated:
                raise MachineError(f"{request.target} has a card already; swap it")

    def _due(self, request: Inject) -> None:
        """Do what was planned; by now the bench may have changed so that it makes no sense."""
        try:
            target = self._machine.find(request.target)
            if target is not None:
                _check_target(request, target)
            self._do(request)
        except MachineError as error:
            _log.warning("injection came to nothing", what=request.what, target=str(request.target), why=str(error))

    def _do(self, request: Inject) -> None:
        if request.what is Injection.DRIVER:
            self._change_driver(request)
            return
        target = self._machine.find(request.target)
        if target is None:
            raise MachineError(f"{request.target} is not seated now")
        self._actions[request.what](target, request)

    # --- Cards ---

    def _remove(self, target: SimulatedFunction, _: Inject) -> None:
        _port(target).unseat()
        self._machine.card_changed()

    def _insert(self, target: SimulatedFunction, request: Inject) -> None:
        port = _port(target)
        if port.seated:
            raise MachineError(f"{target.address} has a card already; swap it")
        card = next_card(port, request.card)
        port.steady()
        port.seat(card)

    def _swap(self, target: SimulatedFunction, request: Inject) -> None:
        """Change the card between two looks of anybody: the link falls, presence latches once."""
        port = _port(target)
        card = next_card(port, request.card)
        if port.slot is not None and port.slot.shows_presence:
            port.slot.presence_changed()  # however slowly the slot shows presence, it has seen this
        self._remove(target, request)
        self._machine.settle_links()
        port.steady()
        port.seat(card)

    # --- Links ---

    def _flap(self, target: SimulatedFunction, request: Inject) -> None:
        _cut(target, True)
        self._machine.clock.later(request.for_s or _FLAP_S, lambda: _cut(target, False))

    def _degrade(self, target: SimulatedFunction, request: Inject) -> None:
        link = _port(target).link
        whole = request.speed is None and request.width is None
        best = LinkSpec(speed=r.LINK_SPEED, width=r.LINK_WIDTH >> r.LINK_WIDTH_SHIFT)
        link.limit = None if whole else LinkSpec(speed=request.speed or best.speed, width=request.width or best.width)
        if request.for_s is not None:
            self._machine.clock.later(request.for_s, lambda: setattr(link, "limit", None))

    # --- Errors ---

    def _error(self, target: SimulatedFunction, request: Inject) -> None:
        """Detect the error `count` times: at once, or spread evenly over `for_s`."""
        error, for_s = _detected(request), request.for_s or 0.0
        bursts = min(request.count, max(1, int(for_s / _BURST_S)))
        for turn in range(bursts):
            share = (request.count + turn) // bursts  # sums up to the count
            if turn:
                self._machine.clock.later(for_s * turn / bursts, partial(self._err, target, error, share))
            else:
                self._err(target, error, share)

    def _err(self, target: SimulatedFunction, error: Detected, times: int) -> None:
        """Detect the error so many times at once, unless the card has been pulled in the meantime."""
        if self._machine.find(target.address) is target:
            for _ in range(times):
                detect(target, error)

    def _contain(self, target: SimulatedFunction, request: Inject) -> None:
        """Trigger containment for the reason; `names` are logged at the port, or at the source of a message."""
        reason = r.DpcReason[(request.reason or "").upper()]
        received = reason in {r.DpcReason.ERR_FATAL, r.DpcReason.ERR_NONFATAL}
        source = self._machine.find(request.source) if request.source is not None else None
        culprit = source if received else target
        rp_pio = None
        if reason is r.DpcReason.RP_PIO:
            status = sum({_RP_PIO[name] for name in request.names or ("memory_timeout",)})
            rp_pio = RpPioError(status, request.header)
        elif request.names and culprit is not None:
            log_only(culprit, _detected(request))
        contain(target, reason, request.source.requester_id if received and request.source is not None else 0, rp_pio)

    def _notify(self, target: SimulatedFunction) -> None:
        assert self._machine.firmware is not None
        self._machine.firmware.notify(target.address)

    # --- Drivers and interrupts ---

    def _change_driver(self, request: Inject) -> None:
        drivers = self._machine.drivers
        drivers.change(request.target, self._new_driver(request))

    def _new_driver(self, request: Inject) -> DriverSpec | None:
        if not request.driver:
            return None
        bound = self._machine.drivers.bound(request.target)
        return new_driver({**(driver_table(bound) if bound is not None else {}), **request.driver})

    def _delay(self, target: SimulatedFunction, request: Inject) -> None:
        assert request.service is not None
        self._machine.interrupts.delay(target.address, request.service, request.for_s or 0.0)

    def _lose(self, target: SimulatedFunction, request: Inject) -> None:
        assert request.service is not None
        self._machine.interrupts.lose(target.address, request.service, request.count)

    def _interrupt(self, target: SimulatedFunction, request: Inject) -> None:
        assert request.service is not None
        self._machine.interrupts.send(target, request.service)


def _check_target(request: Inject, target: SimulatedFunction) -> None:
    what = request.what
    if what in _OF_PORTS and target.port is None:
        above = f"; the port above it is {target.parent.address}" if target.parent is not None else ""
        raise MachineError(f"{what} needs a root port or a downstream port, and {target.address} is none{above}")
    if what in _OF_SLOTS and _port(target).slot is None:
        raise MachineError(f"{what} needs a slot; {target.address} has none")
    if what in _OF_INTERRUPTS and target.port is None and not target.spec.is_root:
        raise MachineError(f"{what} needs a port or an event collector; {target.address} raises no interrupts here")
    if what in _OF_CONTAINMENT and _port(target).containment is None:
        raise MachineError(f"{what} needs containment; {target.address} has none")


def _check_fields(request: Inject) -> None:
    what = request.what
    for name, seconds in (("after_s", request.after_s), ("for_s", request.for_s or 0.0)):
        if not 0 <= seconds < math.inf:
            raise MachineError(f"{name} is a time in seconds, not {seconds}")
    if request.count < (0 if what in _ENDLESS else 1):
        raise MachineError(f"{what} needs a count of at least 1, not {request.count}")
    if what is Injection.ERROR and not request.names:
        raise MachineError("error needs names, for example MalfTLP")
    if what is Injection.MRL and request.state is None:
        raise MachineError("mrl needs a state: true is open")
    if what in _OF_INTERRUPTS and request.service not in SERVICES:
        raise MachineError(f"{what} needs a service: {', '.join(SERVICES)}")
    if what is Injection.DPC:
        _check_reason(request)
    elif what is Injection.ERROR:
        _detected(request)


def _check_reason(request: Inject) -> None:
    reasons = [reason.name.lower() for reason in r.DpcReason]
    if request.reason not in reasons:
        raise MachineError(f"dpc needs a reason: {', '.join(reasons)}")
    if request.reason != r.DpcReason.RP_PIO.name.lower():
        _detected(request)
    elif not set(request.names) <= set(_RP_PIO):
        raise MachineError(f"rp_pio knows the names {', '.join(_RP_PIO)}")


def _detected(request: Inject) -> Detected:
    """Return the error that the request names. Raises MachineError for a name that the kernel does not print."""
    uncorrectable, correctable = status_bits(request.names)
    if request.severity not in {None, Severity.FATAL, Severity.NONFATAL}:
        raise MachineError(f"severity is fatal or nonfatal, not {request.severity!r}")
    fatal = None if request.severity is None else request.severity == Severity.FATAL
    return Detected(uncorrectable=uncorrectable, correctable=correctable, header=request.header, fatal=fatal)


def _port(target: SimulatedFunction) -> Port:
    assert target.port is not None
    return target.port


def _press(target: SimulatedFunction) -> None:
    slot = _slot(target)
    if not slot.spec.button:
        raise MachineError(f"the slot of {target.address} has no attention button")
    slot.press()


def _slot(target: SimulatedFunction) -> Slot:
    slot = _port(target).slot
    assert slot is not None
    return slot


def _cut(target: SimulatedFunction, cut: bool) -> None:
    _port(target).cut = cut


def _mend(target: SimulatedFunction) -> None:
    port = _port(target)
    port.cut = False
    port.steady()
    port.link.unstick()


def _stick(target: SimulatedFunction, request: Inject) -> None:
    """Make the next training take `for_s`; without it, make none end until LINK_UP or another card."""
    link = _port(target).link
    link.stuck = request.for_s is None
    link.next_training_s = request.for_s


def _unsettle(target: SimulatedFunction, request: Inject) -> None:
    after_s = _UNSTABLE_S if request.for_s is None else request.for_s
    _port(target).unsettle(after_s, request.count or None)


def _slow(target: SimulatedFunction, request: Inject) -> None:
    _port(target).be_ready_after(request.for_s)
