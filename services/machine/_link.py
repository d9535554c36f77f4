"""One link: what keeps it down, how long it trains, and what its two ends show of it (§4.2, §7.5.3.6 to §7.5.3.8)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from shared.pcie import registers as r

from ._clock import Clock
from ._function import Block
from ._specs import LinkSpec


class LinkState(StrEnum):
    """What is true of the link."""

    DOWN = "down"  # the data link layer is inactive and nobody trains
    TRAINING = "training"  # both ends are there and allowed to; the data link layer is still inactive
    ACTIVE = "active"  # packets pass


@dataclass(frozen=True, slots=True)
class Conditions:
    """All that must hold for a link to be up."""

    seated: bool  # a card is there
    intact: bool  # nobody has cut the wires (injection)
    powered: bool  # the slot's power is on
    enabled: bool  # Link Disable is clear
    out_of_reset: bool  # Secondary Bus Reset is clear
    released: bool  # no containment
    reachable: bool  # the port's own component is not in reset: every link above is active

    @property
    def deliberate(self) -> bool:
        """Whether software or containment holds the link down: then its loss is no surprise (§3.2.1)."""
        return not (self.powered and self.enabled and self.out_of_reset and self.released and self.reachable)

    @property
    def hold(self) -> bool:
        """Whether the link may be up."""
        return self.seated and self.intact and not self.deliberate


class Link:
    """The state machine of one link. `on_up` and `on_down` are told of the data link layer, in the same instant."""

    def __init__(self, port: Block, spec: LinkSpec, clock: Clock, on_up: Callable[[], None]) -> None:
        self.state = LinkState.DOWN
        self.limit: LinkSpec | None = None  # what a degraded link reaches (injection)
        self.next_training_s: float | None = None  # the next training takes so long (injection)
        self.stuck = False  # trainings never end (injection)
        self._port = port
        self._spec = spec
        self._clock = clock
        self._on_up = on_up
        self._far: tuple[tuple[Block, LinkSpec], ...] = ()
        self._timer: asyncio.TimerHandle | None = None

    def connect(self, far: Iterable[tuple[Block, LinkSpec]]) -> None:
        """Put these functions at the far end: their Link Status follows."""
        self._far = tuple(far)

    def train(self) -> None:
        """Begin to train from the start."""
        assert self.state is LinkState.DOWN
        self.state = LinkState.TRAINING
        self._show()
        if self.stuck:
            return
        training_s = self._spec.training_s if self.next_training_s is None else self.next_training_s
        self.next_training_s = None
        self._timer = self._clock.later(training_s, self._trained)

    def retrain(self) -> None:
        """Negotiate speed and width again; the data link layer stays active (§7.5.3.7, Retrain Link)."""
        if self.state is not LinkState.ACTIVE or self._timer is not None:
            return
        self._port.latch(r.LINK_STATUS, r.LinkStatus.LINK_TRAINING)
        self._timer = self._clock.later(self._spec.training_s, self._renegotiated)

    def unstick(self) -> None:
        """Let a training that would never end begin anew."""
        self.stuck = False
        if self.state is LinkState.TRAINING and self._timer is None:
            self.fall()

    def fall(self) -> None:
        """Go down at once."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.state = LinkState.DOWN
        self._show()

    def boot(self) -> None:
        """Be up from the start, as firmware leaves a link."""
        self.state = LinkState.ACTIVE
        self._show()

    def _trained(self) -> None:
        self._timer = None
        self.state = LinkState.ACTIVE
        self._show()
        self._on_up()

    def _renegotiated(self) -> None:
        self._timer = None
        self._show()

    def _show(self) -> None:
        """Write the state into Link Status of both ends."""
        field = r.LINK_SPEED | r.LINK_WIDTH
        bits = {
            LinkState.DOWN: 0,
            LinkState.TRAINING: int(r.LinkStatus.LINK_TRAINING),
            LinkState.ACTIVE: int(r.LinkStatus.LINK_ACTIVE) if self._reports_active() else 0,
        }[self.state]
        negotiated = self._negotiated()
        self._port.drop(r.LINK_STATUS, field | r.LinkStatus.LINK_TRAINING | r.LinkStatus.LINK_ACTIVE)
        self._port.latch(r.LINK_STATUS, bits | negotiated)
        for block, _ in self._far:
            block.drop(r.LINK_STATUS, field)
            block.latch(r.LINK_STATUS, negotiated)

    def _reports_active(self) -> bool:
        """Whether the port tells that its link is active (§7.5.3.6); the bit is zero for ever where it does not."""
        return bool(self._port.get(r.LINK_CAPABILITIES) & r.LinkCapabilities.LINK_ACTIVE_REPORTING)

    def _negotiated(self) -> int:
        """Return the speed and width fields: the best that both ends, the target speed and the wires allow."""
        if self.state is not LinkState.ACTIVE:
            return 0
        ends = [self._spec, *(spec for _, spec in self._far)] + ([self.limit] if self.limit is not None else [])
        target = self._port.get(r.LINK_CONTROL_2) & r.LINK_SPEED
        speed = min([end.speed for end in ends] + ([target] if target else []))
        return speed | min(end.width for end in ends) << r.LINK_WIDTH_SHIFT
