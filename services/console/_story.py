"""One fact as one short sentence, for people who watch a recovery. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from shared.protocol.facts import Fact, What

from ._output import plain

_OF_FUNCTION: Final = frozenset({What.DEVICE_ADDED, What.DEVICE_REMOVED, What.DEVICE_KEPT, What.DEVICE_REBOUND})
_REASONS: Final = ("why", "because", "skipped", "reason")  # where a fact says why, the most telling first
_OST_SUCCESS: Final = 0x80  # PCI Firmware 3.3, 4.6.12
_NOTABLE_S: Final = 0.01  # a callback that took less is said to have taken no time


def sentence(fact: Fact) -> str | None:
    """Return what happened; None for what is bookkeeping."""
    if fact.what is What.RECOVERY_VOTE and fact.data.get("driver") is None:
        return None  # a function without a driver votes at once, and for nothing
    tell = _TELLERS.get(fact.what)
    return None if tell is None else tell(fact)


def account(fact: Fact) -> str:
    """Return what happened and why, of every fact: for people who want to know it all."""
    try:
        told = sentence(fact) or _BOOKKEEPING.get(fact.what, _listed)(fact)
    except (TypeError, ValueError, LookupError, AttributeError):  # the data is not what a service of ours states
        told = _listed(fact)
    because = _words(why(fact) or "")
    return told if because in told else f"{told}: {because}"


def why(fact: Fact) -> str | None:
    """Return the reason that a fact gives; None where it gives none."""
    given = next((fact.data[name] for name in _REASONS if fact.data.get(name)), None)
    return None if given is None else str(given)


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


def _firmware_answered(fact: Fact) -> str:
    status = int(fact.data.get("status", 0))
    return f"{fact.port}: the firmware is told {'that all recovered' if status == _OST_SUCCESS else 'of a failure'}"


def _with_why(text: str) -> Callable[[Fact], str]:
    def tell(fact: Fact) -> str:
        because = why(fact)
        whom = fact.data.get("function", fact.port) if fact.what in _OF_FUNCTION else fact.port
        return f"{whom}: {text}" + (f": {_words(because)}" if because else "")

    return tell


def _slot_state(fact: Fact) -> str:
    return f"{fact.port}: slot {_words(fact.data.get('from', '?'))} → {_words(fact.data.get('to', '?'))}"


# --- Bookkeeping ---


def _latched(fact: Fact) -> str:
    names = ", ".join(map(str, fact.data.get("names", ())))
    return f"{fact.port}: latched errors read and cleared: {names or 'none'}"


def _refused(fact: Fact) -> str:
    return f"{fact.port}: {fact.data.get('command', 'a command')} of {fact.data.get('role', 'somebody')} refused"


def _writes(fact: Fact) -> str:
    """Tell register writes: what was written, and where."""
    return plain(", ".join(map(_write, fact.data.get("operations", (fact.data,)))))


def _write(one: dict[str, Any]) -> str:
    function, offset, value = one.get("function"), one.get("offset"), one.get("value")
    if offset is None:
        return f"{value} functions found below {function}"
    return f"{function} {offset:#x} = " + ("no answer" if value is None else f"{value:#x}")


def _progress(fact: Fact) -> str:
    if fact.data.get("waiting"):
        waited = f"{fact.data.get('waited_s', 0):.1f} s so far"
        return f"{fact.port}: waits for {', '.join(map(str, fact.data['waiting']))}, {waited}"
    details = (f"{name} {plain(value)}" for name, value in fact.data.items() if name not in {*_REASONS, "step"})
    return f"{fact.port}: " + (", ".join(details) or f"no {_words(fact.data.get('step', 'step'))}")


def _channel(fact: Fact) -> str:
    return f"{fact.data.get('function', fact.port)}: channel {_words(fact.data.get('from'))} → {fact.data.get('to')}"


def _listed(fact: Fact) -> str:
    """Tell a fact for which there is no sentence: what it carries, but for its reason."""
    details = (f"{name}={plain(value)}" for name, value in fact.data.items() if name not in _REASONS)
    return f"{fact.port}: " + "  ".join((_words(fact.what.replace(".", " ")), *details))


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
    What.LEASE_FIRMWARE_ANSWERED: _firmware_answered,
    What.QUARANTINE_ENTERED: _with_why("quarantined"),
    What.QUARANTINE_LIFTED: lambda fact: f"{fact.port}: quarantine lifted by {fact.data.get('by', 'somebody')}",
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
    What.RECOVERY_BROKEN: lambda fact: f"{fact.port}: recovery broken by {fact.data.get('by', 'somebody')}",
    What.RECOVERY_CLOSED: _closed,
}

_BOOKKEEPING: Final[dict[What, Callable[[Fact], str]]] = {
    What.LEASE_ABSORBED: lambda fact: f"{fact.port}: lease {fact.lease} absorbed by {fact.data.get('heir')}",
    What.LEASE_ACKNOWLEDGED: _writes,
    What.LEASE_EXECUTED: _writes,
    What.LEASE_REFUSED: _refused,
    What.DEVICE_CHANNEL: _channel,
    What.RECOVERY_ERRORS: _latched,
    What.RECOVERY_PROGRESS: _progress,
}
