"""The steps of a recovery on one screen: what is owed before each, what it writes, what is true after; and what follows.

A step is written into the journal before it begins, so a successor finds in the journal a step that has *begun*. Every
step may run twice: registers are read before they are written, and drivers that have been told are not told again.

    OPENED ─ ERROR_DETECTED ─┬──────────── reset asked ────────────┬─ RESET ─ RELEASE…VERIFY ─ SLOT_RESET ─┐
                             ├─ CAN_RECOVER ─ MMIO_ENABLED ─ reset ┤      └─ again ─┤└ QUARANTINE ┘        │
                             └──────── nothing asked ─┴─ ERRORS ───┘ (a second cause escalates)            │
                                                        └──────────────── RESUME ─ CLOSE ─ CLOSED ─────────┘

A storm goes from OPENED to QUARANTINE, the lifting of a quarantine from OPENED to RELEASE, and the firmware's word of a
containment that is not there by ERRORS to CLOSE.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from shared.protocol.requests import Vote
from shared.recovery import Step


class Row(msgspec.Struct, frozen=True):
    """One step: the debts that it starts from, what it writes, and what is true of the world after it."""

    owed: str
    written: str
    true: str


STEPS: Final[dict[Step, Row]] = {
    Step.OPENED: Row("the mask", "nothing", "no hotplug event of the domain interrupts; the lease is ours"),
    Step.ERROR_DETECTED: Row("the mask", "nothing", "no driver that has callbacks starts new I/O"),
    Step.MMIO_ENABLED: Row("the mask", "nothing", "drivers that can recover have looked at their devices"),
    Step.RESET: Row(
        "the mask; containment, if there is any",
        "Secondary Bus Reset, unless contained or gone",
        "the link is down; drivers without callbacks are unbound",
    ),
    Step.RELEASE: Row("the mask, reset bits, triggers", "reset bits and triggers, cleared", "nothing holds the link"),
    Step.LINK: Row("the mask", "Retrain Link, at most once", "the link is active, or the card is gone"),
    Step.READY: Row("the mask", "nothing", "the functions answer, or have failed"),
    Step.RESTORE: Row("the mask", "config space, top-down", "every function that is the same is configured as it was"),
    Step.ERRORS: Row("the mask", "error status, cleared", "old and provoked errors are published and cleared"),
    Step.VERIFY: Row("the mask", "nothing", "we know who answers; further causes queue from here on"),
    Step.QUARANTINE: Row(
        "the mask",
        "Software Trigger or Link Disable",
        "ports that do not come up are held down, whoever dies from here on",
    ),
    Step.SLOT_RESET: Row("the mask", "nothing", "drivers know of the reset; those without callbacks are bound again"),
    Step.RESUME: Row("the mask", "nothing", "drivers go on"),
    Step.CLOSE: Row("the mask", "the masked bits, as found", "the lease is retired"),
    Step.CLOSED: Row("nothing", "nothing", "the journal and the facts say what became of every function"),
}

_ORDER: Final = {step: position for position, step in enumerate(STEPS)}


class Situation(msgspec.Struct, frozen=True):
    """What decides the next step."""

    reset: bool  # by plan, by vote, or by a second cause
    votes: Vote = Vote.NONE  # of the last callback step, merged
    retry: bool = False  # ports did not come up, and are reset once more
    quarantine: bool = False  # ports are to be held down for good
    lift: bool = False  # a quarantine ends: its drivers have heard long ago, and the link is down
    idle: bool = False  # there is nothing to recover


def before(one: Step, other: Step) -> bool:
    """Tell whether `one` comes before `other`."""
    return _ORDER[one] < _ORDER[other]


def joinable(step: Step) -> bool:
    """Tell whether a second cause still may join: until verification has begun (DESIGN 4)."""
    return before(step, Step.VERIFY)


def following(step: Step, now: Situation) -> Step:
    """Return the step that follows: the first branch that fits, else the usual one.

    Raises KeyError for CLOSED and for steps inside rolling forward.
    """
    for at, fits, then in _BRANCHES:
        if step in at and fits(now):
            return then
    return _NEXT[step]


_BRANCHES: Final[tuple[tuple[frozenset[Step], Callable[[Situation], bool], Step], ...]] = (
    (frozenset({Step.OPENED}), lambda now: now.quarantine, Step.QUARANTINE),
    (frozenset({Step.OPENED}), lambda now: now.lift, Step.RELEASE),
    (frozenset({Step.OPENED}), lambda now: now.idle, Step.ERRORS),
    (frozenset({Step.ERRORS}), lambda now: now.idle, Step.CLOSE),
    (
        frozenset({Step.ERROR_DETECTED, Step.MMIO_ENABLED, Step.ERRORS}),
        lambda now: now.reset or now.votes is Vote.NEED_RESET,
        Step.RESET,
    ),
    (frozenset({Step.ERROR_DETECTED}), lambda now: now.votes is Vote.CAN_RECOVER, Step.MMIO_ENABLED),
    (frozenset({Step.RELEASE}), lambda now: now.retry, Step.RESET),
    (frozenset({Step.RELEASE}), lambda now: now.quarantine, Step.QUARANTINE),
)
_NEXT: Final[dict[Step, Step]] = {
    Step.OPENED: Step.ERROR_DETECTED,
    Step.ERROR_DETECTED: Step.ERRORS,
    Step.MMIO_ENABLED: Step.ERRORS,
    Step.RESET: Step.RELEASE,
    Step.RELEASE: Step.SLOT_RESET,
    Step.ERRORS: Step.RESUME,
    Step.QUARANTINE: Step.SLOT_RESET,
    Step.SLOT_RESET: Step.RESUME,
    Step.RESUME: Step.CLOSE,
    Step.CLOSE: Step.CLOSED,
}


def entry(step: Step, *, reset: bool) -> Step:
    """Return where a successor goes on that finds `step` begun.

    After the reset it rolls forward from the start, also when drivers were being told: that writes nothing where all
    is done, and it verifies anew before anybody else is told. Who has been told already is in the journal.
    """
    if before(Step.RESET, step) and before(step, Step.CLOSE):
        return Step.RELEASE if reset else Step.ERRORS
    return step
