"""Several pieces of logic at once, over one register access: their reads travel together, their waits run in parallel.

So three nested ports that each may need 60 s cost 60 s, not 180, and one poll of all of them is one command.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

from shared.pcie import Value

from ._effects import Do, Logic, Note, Pause


class _Strand:
    """One piece of logic: what it asks next, or until when it sleeps; neither once it has ended."""

    def __init__(self, logic: Logic[None]) -> None:
        self._logic = logic
        self.asks: Do | None = None
        self.sleeps: Pause | None = None
        self.until = 0.0  # seconds, on the clock that Pause returns

    def go_on(self, sent: Any, now: float) -> Logic[None]:
        """Send an answer and run to the next Do or Pause; notes are passed through."""
        self.asks = self.sleeps = None
        while True:
            try:
                effect = self._logic.send(sent)
            except StopIteration:
                return
            if isinstance(effect, Note):
                yield effect
                sent = None
                continue
            if isinstance(effect, Do):
                self.asks = effect
            else:
                self.sleeps = effect
                self.until = now + effect.seconds
            return


def together(*logics: Logic[None]) -> Logic[None]:
    """Run all to their end. `Do`s that are due at the same time are executed as one step, in the order given."""
    strands = tuple(_Strand(logic) for logic in logics)
    now: float = yield Pause(0.0)
    for strand in strands:
        yield from strand.go_on(None, now)
    while True:
        asking = tuple((strand, strand.asks) for strand in strands if strand.asks is not None)
        if asking:
            now = yield from _ask(asking)
            continue
        sleeping = tuple((strand, strand.sleeps) for strand in strands if strand.sleeps is not None)
        if not sleeping:
            return
        first, pause = min(sleeping, key=lambda pair: pair[0].until)
        now = yield Pause(max(first.until - now, 0.0), pause.why)
        for strand, _ in sleeping:
            if strand.until <= now:
                yield from strand.go_on(now, now)


def _ask(asking: tuple[tuple[_Strand, Do], ...]) -> Logic[float]:
    """Execute all as one step, hand each its share of the answer, and return the clock."""
    sent: tuple[Value, ...] = yield Do(
        tuple(chain.from_iterable(do.operations for _, do in asking)),
        tuple(chain.from_iterable(do.provided for _, do in asking)),
    )
    now: float = yield Pause(0.0)
    start = 0
    for strand, do in asking:
        end = start + len(do.operations)
        yield from strand.go_on(sent[start:end], now)
        start = end
    return now
