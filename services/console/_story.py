"""One fact as one short sentence, for people who watch a recovery. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from shared.protocol.facts import Fact, What

_OF_FUNCTION: Final = frozenset({What.DEVICE_ADDED, What.DEVICE_REMOVED, What.DEVICE_KEPT, What.DEVICE_REBOUND})
_NOTABLE_S: Final = 0.01  # a callback that took less is said to have taken no time


def sentence(fact: Fact) -> str | None:
    """Return what happened; None for what is bookkeeping."""
    if fact.what is What.RECOVERY_VOTE and fact.data.get("driver") is None:
        return None  # a function without a driver votes at once, and for nothing
    tell = _TELLERS.get(fact.what)
    return None if tell is None else tell(fact)


def _error(fact: Fact) -> str:
    names = ", ".join(map(str, fact.data.get("names", ())))
    return f"{fact.port}: {fact.what.partition('.')[2]} error {names}".rstrip()


def _containment(fact: Fact) -> str:
    reason = fact.data.get("reason")
    return f"{fact.port}: DPC takes the link down" + (f" ({_words(reason)})" if reason else "")


def _vote(fact: Fact) -> str:
    took = fact.data.get("took_s", 0.0)
    after = f" after {float(took):.2f} s" if isinstance(took, int | float) and took >= _NOTABLE_S else ""
    driver = fact.data.get("driver")
    return f"{fact.data.get('function', fact.port)} {driver}: {fact.data.get('step')} → {fact.data.get('vote')}{after}"


def _masked(fact: Fact) -> str:
    ports = ", ".join(str(slot["port"]) for slot in fact.data.get("slots", ()))
    return f"{ports or fact.port}: hotplug interrupts masked"


def _closed(fact: Fact) -> str:
    verdicts = fact.data.get("verdicts", {})
    said = ", ".join(f"{function} {verdict}" for function, verdict in sorted(verdicts.items()))
    return f"{fact.port}: recovery closed" + (f": {said}" if said else "")


def _with_why(text: str) -> Callable[[Fact], str]:
    def tell(fact: Fact) -> str:
        why = fact.data.get("why") or fact.data.get("reason")
        whom = fact.data.get("function", fact.port) if fact.what in _OF_FUNCTION else fact.port
        return f"{whom}: {text}" + (f": {_words(why)}" if why else "")

    return tell


def _slot_state(fact: Fact) -> str:
    return f"{fact.port}: slot {_words(fact.data.get('from', '?'))} → {_words(fact.data.get('to', '?'))}"


def _words(value: Any) -> str:
    return str(value).replace("_", " ")


_TELLERS: Final[dict[What, Callable[[Fact], str]]] = {
    What.ERROR_CORRECTABLE: _error,
    What.ERROR_NONFATAL: _error,
    What.ERROR_FATAL: _error,
    What.CONTAINMENT_ENTERED: _containment,
    What.CONTAINMENT_IGNORED: _with_why("containment left to hotplug"),
    What.CONTAINMENT_RELEASED: _with_why("containment released"),
    What.LEASE_OPENED: lambda fact: f"{fact.port}: lease taken for {_words(fact.cause or 'a reset')}",
    What.LEASE_MASKED: _masked,
    What.LEASE_UNMASKED: lambda fact: f"{fact.port}: hotplug interrupts as they were found",
    What.LEASE_ADOPTED: lambda fact: f"{fact.port}: lease adopted from a holder that fell silent",
    What.LEASE_CLOSED: lambda fact: f"{fact.port}: lease closed",
    What.LINK_DOWN: _with_why("link down"),
    What.LINK_UP: _with_why("link up"),
    What.SLOT_STATE: _slot_state,
    What.SLOT_DEFERRED: _with_why("hotplug waits"),
    What.SLOT_IGNORED: _with_why("hotplug changes nothing"),
    What.DEVICE_ADDED: _with_why("device added"),
    What.DEVICE_REMOVED: _with_why("device removed"),
    What.DEVICE_KEPT: _with_why("device kept"),
    What.DEVICE_REBOUND: _with_why("driver bound anew"),
    What.RECOVERY_STARTED: lambda fact: f"{fact.port}: recovery begins",
    What.RECOVERY_WAITING: _with_why("recovery waits"),
    What.RECOVERY_JOINED: _with_why("joined to the recovery under way"),
    What.RECOVERY_ESCALATED: _with_why("recovery goes further"),
    What.RECOVERY_STEP: lambda fact: f"{fact.port}: {_words(fact.data.get('step', '?'))}",
    What.RECOVERY_VOTE: _vote,
    What.RECOVERY_CLOSED: _closed,
}
