"""One downstream port: its link, its slot, its containment and the card behind it, acting on one another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

from shared.pcie import registers as r

from ._clock import Clock
from ._dpc import Containment
from ._errors import Detected, detect
from ._function import SimulatedFunction
from ._link import Conditions, Link, LinkState
from ._slot import Slot
from ._specs import FunctionSpec, LinkSpec

Card = tuple[FunctionSpec, ...]  # every function of it, parents first
BuildCard = Callable[[Card, SimulatedFunction], list[SimulatedFunction]]


# Plain numbers: conditions are looked at after every change of anything, and an IntFlag is slow to combine.
_LINK_DISABLE: Final = int(r.LinkControl.LINK_DISABLE)
_IN_RESET: Final = int(r.BridgeControl.SECONDARY_BUS_RESET)


class Drops:
    """How often an unstable link still drops by itself, and how soon after it is up (injection)."""

    def __init__(self, after_s: float = 0.0, times: int | None = 0) -> None:
        self._after_s = after_s
        self._left = times  # None: for ever
        self._timer: asyncio.TimerHandle | None = None

    def plan(self, clock: Clock, drop: Callable[[], None]) -> None:
        """Let the link that is up now drop in time, if there is a drop left."""
        if self._left != 0:
            self._timer = clock.later(self._after_s, lambda: self._due(drop))

    def _due(self, drop: Callable[[], None]) -> None:
        self._timer = None
        self._left = None if self._left is None else self._left - 1
        drop()

    def cancel(self) -> None:
        """Forget the drop that was planned: the link is down before it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Port:
    """A root port or switch downstream port. `settle` makes link and presence follow whatever has changed."""

    def __init__(self, function: SimulatedFunction, link: LinkSpec, clock: Clock, build_card: BuildCard) -> None:
        spec = function.spec
        self.function = function
        self.card: Card = ()  # what is in the slot, or was last
        self.cut = False  # the wires are cut (injection)
        self.ready_s: float | None = None  # the card answers so long after its link is up (injection)
        self.link = Link(function.express, link, clock, self._link_up)
        self.slot = Slot(function.express, spec.slot, clock) if spec.slot is not None else None
        self.containment = Containment(function.dpc, spec.rp_busy_s, clock) if function.dpc is not None else None
        self._best = link  # a card that says nothing of its link is as good as the port
        self._clock = clock
        self._build_card = build_card
        self._was_powered = True
        self._up_at = 0.0  # loop time at which the link came up
        self._presence_timer: asyncio.TimerHandle | None = None
        self._drops = Drops()

    @property
    def seated(self) -> bool:
        """Whether a card is there."""
        return bool(self.function.children)

    def seat(self, card: Card) -> None:
        """Put a card in, as it is at power-on."""
        self.card = card
        self.link.stuck = False
        self.function.children = self._build_card(card, self.function)
        self.link.connect((child.express, child.spec.link or self._best) for child in self.function.children)

    def unseat(self) -> None:
        """Pull the card."""
        self.function.children = []
        self.link.connect(())

    def unsettle(self, after_s: float, times: int | None) -> None:
        """Have the link drop so many seconds after each of its next trainings; `times` None: for ever."""
        self._drops.cancel()
        self._drops = Drops(after_s, times)

    def steady(self) -> None:
        """Have the link drop no more by itself."""
        self.unsettle(0.0, 0)

    def boot(self) -> None:
        """Be as firmware leaves a port: the link is up if there is a card, and nothing has latched."""
        if self.seated:
            self.link.boot()
        self._show_presence(latch=False)

    def conditions(self) -> Conditions:
        """Return what holds the link up or down now."""
        header, express = self.function.header, self.function.express
        return Conditions(
            seated=self.seated,
            intact=not self.cut,
            powered=self.slot is None or self.slot.powered,
            enabled=not express.get(r.LINK_CONTROL) & _LINK_DISABLE,
            out_of_reset=not header.get(r.BRIDGE_CONTROL) & _IN_RESET,
            released=self.containment is None or not self.containment.active,
            reachable=self._reachable(),
        )

    def settle(self) -> bool:
        """Follow the conditions; return whether anything changed (so that others must look again)."""
        conditions = self.conditions()
        changed = False
        if self.link.state is LinkState.DOWN and conditions.hold:
            self.link.train()
            changed = True
        elif self.link.state is not LinkState.DOWN and not conditions.hold:
            self._fall(conditions)
            changed = True
        if self._was_powered and not conditions.powered and self.seated:
            self.seat(self.card)  # what comes back later comes from power-on, its sticky bits lost too
        self._was_powered = conditions.powered
        return self._follow_presence() or changed

    def readiness_s(self, function: SimulatedFunction) -> float:
        """Return how long after a reset a function of the card begins to answer."""
        return function.spec.ready_after_s if self.ready_s is None else self.ready_s

    def reset_from_above(self) -> None:
        """Let the link fall with the port's own component. Nobody is told: its enables are gone."""
        self._drops.cancel()
        self.link.fall()
        self._show_presence(latch=False)

    def _reachable(self) -> bool:
        """Tell whether the port's component is out of reset: the link above is active, no switch holds it in reset."""
        above = self.function.parent
        if above is None:
            return True
        in_reset = above.header.get(r.BRIDGE_CONTROL) & _IN_RESET
        port = self.function.port_above()
        return not in_reset and port is not None and port.link.state is LinkState.ACTIVE

    def _fall(self, conditions: Conditions) -> None:
        was_active = self.link.state is LinkState.ACTIVE
        self._drops.cancel()
        self.link.fall()
        for child in self.function.children:
            hot_reset(child.subtree())
        if not was_active:
            return
        if self.slot is not None:
            self.slot.link_changed()
        reporting = self.function.express.get(r.LINK_CAPABILITIES) & r.LinkCapabilities.SURPRISE_DOWN_REPORTING
        if reporting and not conditions.deliberate:
            detect(self.function, Detected(uncorrectable=r.Uncorrectable.SURPRISE_DOWN))

    def _link_up(self) -> None:
        if self.slot is not None:
            self.slot.link_changed()
        self._up_at = self._clock.now()
        for function in self._card_functions():
            function.ready_at = self._up_at + self.readiness_s(function)
        self._drops.plan(self._clock, lambda: self._fall(self.conditions()))

    def be_ready_after(self, seconds: float | None) -> None:
        """Have the card answer so many seconds after its link is up; one that is waited for longer is so now."""
        self.ready_s = seconds
        for function in self._card_functions():
            function.ready_at = min(function.ready_at, self._up_at + self.readiness_s(function))

    def _card_functions(self) -> Iterable[SimulatedFunction]:
        return (function for child in self.function.children for function in child.same_component())

    def _follow_presence(self) -> bool:
        """Show presence as it is, at once or as late as the slot is; return whether it changed now."""
        if self.slot is None or self.slot.spec.presence_s <= 0:
            return self._show_presence(latch=True)
        if self._presence_timer is None and self._present() != self.slot.shows_presence:
            self._presence_timer = self._clock.later(self.slot.spec.presence_s, self._presence_due)
        return False

    def _presence_due(self) -> None:
        self._presence_timer = None
        self._show_presence(latch=True)

    def _show_presence(self, *, latch: bool) -> bool:
        return self.slot is not None and self.slot.show_presence(self._present(), latch=latch)

    def _present(self) -> bool:
        assert self.slot is not None
        conditions = self.conditions()
        in_band = conditions.seated and not conditions.deliberate
        return self.slot.present(in_band, conditions.seated)


def hot_reset(functions: Iterable[SimulatedFunction]) -> None:
    """Reset functions as a hot reset does, ports of switches with their links included."""
    for function in functions:
        function.space.hot_reset()
        if function.port is not None:
            function.port.reset_from_above()
