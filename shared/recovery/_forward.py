"""Rolling forward: from a link that was taken down to config space as it was. The one way out of every recovery.

Theory of operation
-------------------
A lease may find its domain anywhere between "reset bit just written" and "all is well": its holder may have died, and
its successor, or the fabric itself as the dead man's switch, knows no more than what the registers say. So rolling
forward never undoes and never asks how far somebody got. It reads, does what is missing, and looks again:

    RELEASE   clear Secondary Bus Reset (held 2 ms), Link Disable, DPC Trigger (link down, root port idle)
    LINK      wait for the link; no card and no link within the bound: gone; a card and no link: retrain once.
              Slower or narrower than it was: retrain once more, and say so if it stays that way
    READY     100 ms, then poll vendor IDs until the functions answer
    RESTORE   identity of every function, then its config space; top-down, with the lease's mask still on
    ERRORS    read what could not be read before, note it, clear what the lease was opened over or has provoked
    VERIFY    identity of every function once more, and that it is set up: no driver may resume on another device, nor
              on one that was reset again after it had been restored

Each step is idempotent: registers that hold what they should are not written. So a second run, by anybody, after a
crash anywhere, ends in the same place; and a run over a healthy domain writes nothing.

Ports nest. What is below a port can be read only when the port is up and restored (bus numbers), so the tree is
walked downwards: `_port` is RELEASE to RESTORE of one port and then of all ports behind it, and those run side by side
(`together`): their polls are one command, and three slow slots take as long as the slowest. A DPC trigger is sticky,
so a nested port that was contained before an upper one was reset is found and released here. Virtual functions come
after the physical function that has to be restored before they can exist. A bridge to a conventional bus has no link:
its bus is let go of and waited for.

A link that was up and went down again is released and awaited anew, three times. Then the port is `unstable`, which is
more than "no link": somebody is at its other end, and another reset may help (`hopeless`). A port in quarantine is
neither released nor awaited: it is held down again, should a reset from above have let go of it.

What was not there when the lease was opened is not waited for. The functions behind a port that fails are `removed` if
the card is gone, else `failed`; their siblings behind other ports go on.

What this never does: unmask, clear Slot Status, or write to a function that has not been identified. That is close.
"""

from __future__ import annotations

from itertools import chain
from typing import Final

import msgspec

from shared.pcie import Address, Function, Topology, timing
from shared.protocol.fabric import FunctionOutcome, Lease, Rank, Reach, Result

from ._degraded import degraded_ports, marked, regain
from ._effects import Logic, Note, Pause, Step, ask
from ._evidence import settle_errors
from ._link import Bounds, PortState, await_link, await_ready, hold_down, release, release_bus, still_up
from ._moved import in_place
from ._port import PortView, port_reads, port_view
from ._restore import Known, look, restore, wake
from ._together import together
from ._verify import Finding

RELEASE_TRIES: Final = 3  # a link that goes down while its functions are awaited is released and awaited anew


class PortOutcome(msgspec.Struct, frozen=True):
    """What became of one port of the domain."""

    port: Address
    state: PortState


class Verified(msgspec.Struct, frozen=True):
    """What rolling forward came to: one outcome per function that the lease knows, and one per port walked."""

    outcomes: tuple[FunctionOutcome, ...]
    ports: tuple[PortOutcome, ...] = ()

    def result(self, function: Address) -> Result:
        """Return the result of one function; FAILED for one that the lease does not know."""
        return next((one.result for one in self.outcomes if one.function == function), Result.FAILED)


def roll_forward(lease: Lease, topology: Topology, bounds: Bounds) -> Logic[Verified]:
    """Take the domain of `lease` from wherever it is to restored and verified. May run any number of times.

    A lease that masks nothing (FLR) has taken no link down: its endpoints are awaited and restored, no port is
    touched. A slot operation owes nothing: its functions are only looked at.
    """
    walk = _Walk(lease, topology, bounds)
    if lease.rank is not Rank.SLOT_OPERATION:
        port = topology.find(lease.port)
        if lease.reach is Reach.NOTHING or (port is not None and not port.kind.is_bridge):
            yield from walk.functions_only()
        elif port is not None and port.is_port:
            yield from walk.port(port)
        elif port is not None:
            yield from walk.bridge(port)
    return (yield from walk.settle())


def settle(lease: Lease, topology: Topology) -> Logic[Verified]:
    """Only ERRORS and VERIFY: for a recovery that has reset nothing."""
    return (yield from _Walk(lease, topology, Bounds()).settle())


class _Walk:
    """One walk down the domain. Its tables grow as it goes; whoever is missing in `lost` has been restored."""

    def __init__(self, lease: Lease, topology: Topology, bounds: Bounds) -> None:
        self._topology = topology
        self._bounds = bounds
        self._lease = lease
        self._disabled = frozenset(lease.debts.link_disabled)
        self._links = {link.port: link for link in lease.links}
        # A containment under a user's reset or a hold is evidence of an error: its recovery comes first, if it comes.
        self._grace_s = 0.0 if lease.rank is Rank.RECOVERY else timing.CONTAINMENT_GRACE
        slots = {slot.port: slot for slot in lease.slots}
        quiet = {one.function: one for one in lease.quiet}
        self._known = {
            saved.address: Known(
                function,
                saved,
                slots.get(saved.address),
                accept=(*lease.accept, *saved.accept),
                quarantined=saved.address in lease.quarantined,
                firmware_owned=lease.firmware_owned,
                quiet=quiet.get(saved.address),
            )
            for saved in lease.functions
            if (function := topology.find(saved.address)) is not None
        }
        self._unknown = tuple(saved.address for saved in lease.functions if saved.address not in self._known)
        self._ports: dict[Address, PortState] = {}
        self._lost: dict[Address, Result] = {}

    # --- RELEASE, LINK, READY, RESTORE ---

    def port(self, port: Function) -> Logic[None]:
        """Bring one port up, and what is behind it. One in quarantine is only held down."""
        if port.address in self._lease.quarantined:
            yield from hold_down(port)
            return
        state = yield from self._bring_up(port)
        self._ports[port.address] = state
        if state not in {PortState.UP, PortState.EMPTY}:
            yield Note(Step.LINK, {"port": str(port.address), "state": state.value})
            self._forget(port)
            self._lose(port, Result.REMOVED if state is PortState.GONE else Result.FAILED)

    def bridge(self, bridge: Function) -> Logic[None]:
        """Let go of the bus behind a bridge that is no port, and restore what is on it.

        The port above is outside of the lease, which may not even read it.
        """
        yield Note(Step.RELEASE, {"port": str(bridge.address)})
        state = yield from release_bus(bridge)
        if state is PortState.UP:
            state = yield from self._bus(bridge, None)
        if state is not PortState.UP:
            self._lose(bridge, Result.REMOVED if state is PortState.GONE else Result.FAILED)

    def _bring_up(self, port: Function) -> Logic[PortState]:
        expected = any(function.address in self._known for function in self._topology.children(port.address))
        owned = self._lease.firmware_owned
        for already_lost in (False, *(True,) * (RELEASE_TRIES - 1)):
            self._forget(port)
            yield Note(Step.RELEASE, {"port": str(port.address)})
            clear_disable = expected or port.address in self._disabled
            state = yield from release(port, clear_disable=clear_disable, grace_s=self._grace_s, firmware_owned=owned)
            if state is not PortState.UP:
                return state
            if not expected:
                return PortState.EMPTY
            yield Note(Step.LINK, {"port": str(port.address)})
            state = yield from self._up(port)
            if state is PortState.NO_LINK and already_lost:
                return PortState.UNSTABLE  # it was up: somebody is there
            if state is not PortState.LOST:
                return state
        return PortState.UNSTABLE

    def _up(self, port: Function) -> Logic[PortState]:
        """Await the link of a port that has been released, and restore what is behind it."""
        state = yield from await_link(port, self._bounds)
        if state is PortState.UP:
            yield Pause(timing.RESET_TO_FIRST_CONFIG, "first request after reset")
            if port.address in self._links:
                state = yield from regain(port, self._links[port.address], self._bounds)
        if state is PortState.UP:
            state = yield from self._bus(port, port)
        if state is PortState.UP:
            state = yield from still_up(port)
        return state

    def _bus(self, bridge: Function, port: Function | None) -> Logic[PortState]:
        """Await and restore what is on the bridge's secondary bus, then go on below it. `port` has the link above."""
        state, same = yield from self._in_turn(bridge, port, self._on_bus(bridge))
        if state is not PortState.UP:
            return state
        below = [self._below(known.function, port) for known in same if known.function.kind.is_bridge]
        if below:
            yield from together(*below)
        return PortState.UP

    def _in_turn(
        self, at: Function | None, port: Function | None, functions: tuple[Known, ...]
    ) -> Logic[tuple[PortState, tuple[Known, ...]]]:
        """Await and restore `functions`; virtual ones when their physical functions have been, whose enable they need.

        Returns the port's state and those that are the same device. `at` is the bridge whose bus they are on, if one.
        """
        virtual = tuple(known for known in functions if known.function.physical is not None)
        state, same = yield from self._await_and_restore(
            at, port, tuple(known for known in functions if known not in virtual)
        )
        if state is PortState.UP and virtual:
            back = {known.saved.address for known in same}
            for known in (one for one in virtual if one.function.physical not in back):
                self._lose_function(known.function, Result.FAILED)
            yield Pause(timing.RESET_TO_FIRST_CONFIG, "virtual functions, once enabled")
            state, found = yield from self._await_and_restore(
                at, port, tuple(known for known in virtual if known.function.physical in back)
            )
            same += found
        return state, same

    def _await_and_restore(
        self, at: Function | None, port: Function | None, functions: tuple[Known, ...]
    ) -> Logic[tuple[PortState, tuple[Known, ...]]]:
        if not functions:
            return PortState.UP, ()
        where = {"port": str(self._lease.port if at is None else at.address)}
        yield Note(Step.READY, where)
        awaited = yield from await_ready(port, functions, self._bounds)
        if awaited.state is not PortState.UP:
            return awaited.state, ()
        for known in awaited.missing:
            self._lose_function(known.function, Result.FAILED)
        yield Note(Step.RESTORE, where)
        same = yield from self._restore(tuple(known for known in functions if known not in awaited.missing))
        return PortState.UP, same

    def _restore(self, functions: tuple[Known, ...]) -> Logic[tuple[Known, ...]]:
        """Identify all, write to those that are the same device; return these."""
        findings = yield from look(functions)
        same = tuple(known for known, finding in zip(functions, findings, strict=True) if finding.same)
        for known, finding in zip(functions, findings, strict=True):
            if not finding.same:
                self._lose_function(known.function, Result.REPLACED if finding.answers else Result.FAILED)
        yield from wake(same)
        changed = {finding.function for finding in findings if finding.accepted}
        checked: dict[Address, Known] = {}
        for known in (one for one in same if one.saved.address in changed):
            checked[known.saved.address] = yield from in_place(known)
        yield from restore(tuple(checked.get(known.saved.address, known) for known in same))
        return same

    def _below(self, bridge: Function, port: Function | None) -> Logic[None]:
        """Go on below a bridge that has been restored: a port has a link of its own, any other bridge a bus."""
        if bridge.is_port:
            yield from self.port(bridge)
            return
        state = yield from self._bus(bridge, port)
        if state is not PortState.UP:
            self._lose(bridge, Result.FAILED)

    def functions_only(self) -> Logic[None]:
        """Await and restore endpoints without touching a port: for resets that leave the link up."""
        yield from self._in_turn(
            None, None, tuple(known for known in self._known.values() if not known.function.kind.is_bridge)
        )

    def _on_bus(self, bridge: Function) -> tuple[Known, ...]:
        children = self._topology.children(bridge.address)
        return tuple(known for child in children if (known := self._known.get(child.address)) is not None)

    def _forget(self, port: Function) -> None:
        """Judge everything behind the port afresh: what was found there holds no more."""
        for behind in self._topology.below(port.address):
            self._lost.pop(behind.address, None)
            self._ports.pop(behind.address, None)

    def _lose(self, bridge: Function, result: Result) -> None:
        for function in self._topology.children(bridge.address):
            self._lose_function(function, result)

    def _lose_function(self, function: Function, result: Result) -> None:
        """Write off a function and all behind it. Behind another device nothing is as it was: it is removed."""
        self._lost.setdefault(function.address, result)
        below = Result.REMOVED if result is Result.REPLACED else result
        for behind in self._topology.below(function.address):
            self._lost.setdefault(behind.address, below)

    # --- ERRORS, VERIFY ---

    def settle(self) -> Logic[Verified]:
        """Settle error status where it can be read, then verify every function once more."""
        here = tuple(known for known in self._known.values() if known.saved.address not in self._lost)
        if self._lease.firmware_owned:
            here = ()  # error status is the firmware's to read and clear
        before = yield from self._views()
        # While a port is contained its RP PIO log is evidence that nobody may have read.
        rp_pio = tuple(known for known, view in before if known in here and view.rp_pio and not view.contained)
        yield from settle_errors(here, rp_pio=rp_pio)
        yield Note(Step.VERIFY)
        known = tuple(self._known.values())
        findings = yield from look(known)
        gone = {
            behind.address
            for port, view in (yield from self._views())
            if view.looks_gone
            for behind in self._topology.below(port.saved.address)
        }
        lesser = yield from degraded_ports(self._lease.links, self._topology)
        judged = (self._outcome(finding, gone) for finding in findings)
        outcomes = list(marked(judged, lesser, self._topology))
        outcomes += [FunctionOutcome(function=address, result=Result.FAILED) for address in self._unknown]
        ports = tuple(PortOutcome(port, state) for port, state in self._ports.items())
        return Verified(outcomes=tuple(outcomes), ports=ports)

    def _outcome(self, finding: Finding, gone: set[Address]) -> FunctionOutcome:
        """Who answers decides; but a function that was given up has not been restored, whatever it answers now.

        Nor is one that is not set up (any more): its link fell and was up again between two looks at it.
        """
        function = finding.function
        if finding.answers and finding.differs:
            differs = tuple(sorted(finding.differs))
            return FunctionOutcome(function=function, result=Result.REPLACED, differs=differs)
        if finding.same:
            result = Result.RECOVERED if finding.holds and function not in self._lost else Result.FAILED
            return FunctionOutcome(function=function, result=result, differs=tuple(sorted(finding.accepted)))
        removed = function in gone or self._lost.get(function) is Result.REMOVED
        return FunctionOutcome(function=function, result=Result.REMOVED if removed else Result.FAILED)

    def _views(self) -> Logic[tuple[tuple[Known, PortView], ...]]:
        """Look at all ports of the domain in one step; those that do not answer are left out."""
        ports = tuple(known for known in self._known.values() if known.function.is_port)
        asked = [port_reads(known.function) for known in ports]
        held = yield from ask(chain.from_iterable(asked))
        found = []
        start = 0
        for known, reads in zip(ports, asked, strict=True):
            view = port_view(known.function, held[start : start + len(reads)])
            start += len(reads)
            if view is not None:
                found.append((known, view))
        return tuple(found)
