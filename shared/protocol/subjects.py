"""Every subject, spelled here alone. `token` is `Address.token`: a port's or a function's address with dashes."""

from __future__ import annotations

import re
from typing import Final

from shared.pcie import Address

from .fabric import Role
from .facts import What

FACT_STREAM: Final = "PCIE_FACTS"
BUCKET: Final = "PCIE"
FACT_KINDS: Final = ("link", "slot", "error", "containment", "device", "lease", "quarantine", "recovery")
# Each by its full name: with `slot.>` the stream would also keep, and answer, requests to hotplug (`slot.status`).
FACT_SUBJECTS: Final = tuple(f"pcie.*.*.{what}" for what in What)
_HOST: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def host_name(text: str) -> str:
    """Check that `text` can be a host: one subject token. Raises ValueError."""
    if not _HOST.fullmatch(text):
        raise ValueError(f"{text!r} is not a host name; use letters, digits, dash and underscore")
    return text


def irq(host: str, port: Address | str, service: str) -> str:
    """Interrupts of a port for `hotplug`, `aer` or `dpc`; port `*` for all."""
    return f"pcie.{host}.{_token(port)}.irq.{service}"


def fact(host: str, port: Address | str, what: What | str) -> str:
    """Facts of a port."""
    return f"pcie.{host}.{_token(port)}.{what}"


def by_name(facts: str) -> tuple[str, ...]:
    """Return the facts that a pattern such as `pcie.lab.*.slot.>` means, each by its full name.

    Nobody may subscribe to the pattern itself: there are requests under it.
    """
    if not facts.endswith(">"):
        return (facts,)
    named = facts.removesuffix(">").rstrip(".").split(".")
    _, host, port, kind = (*named, *("pcie", "*", "*", "")[len(named) :])
    return tuple(fact(host, port, what) for what in What if what.startswith(kind))


def at_any_port(facts: str) -> str:
    """Return the same facts of all ports of the host."""
    prefix, host, _, what = facts.split(".", maxsplit=3)
    return f"{prefix}.{host}.*.{what}"


def fabric(host: str, question: str) -> str:
    """`read`, `dump`, `leases` and `topology`."""
    return f"pcie.{host}.fabric.{question}"


def command(host: str, role: Role, command_name: str) -> str:
    """`open`, `execute`, `beat`, `adopt`, `close`, by role; `acknowledge` of role aer."""
    return f"pcie.{host}.fabric.{role}.{command_name}"


def coordinator(host: str, request: str) -> str:
    """`recover`, `reset`, `hold`, `release`, `break`, `lift`."""
    return f"pcie.{host}.{request}"


def slot(host: str, port: Address | str, request: str) -> str:
    """`power_on`, `power_off`, `status`."""
    return f"pcie.{host}.{_token(port)}.slot.{request}"


def driver(host: str, function: Address | str) -> str:
    """Callbacks of the function's driver."""
    return f"pcie.{host}.{_token(function)}.driver"


def inject(host: str) -> str:
    """Injections into the machine."""
    return f"pcie.{host}.inject"


def log_level(service: str, instance: str) -> str:
    """Ask one instance of a service for another log level."""
    return f"holdfast.service.{service}.{instance}.log"


def owner_key(host: str, service: str) -> str:
    """Key of an ownership record."""
    return f"owner.{host}.{service}"


def recovery_key(host: str, port: Address) -> str:
    """Key of the recovery journal of a port."""
    return f"recovery.{host}.{port.token}"


def device_key(host: str, function: Address) -> str:
    """Key of a function in the registry."""
    return f"device.{host}.{function.token}"


def _token(port: Address | str) -> str:
    return port.token if isinstance(port, Address) else port
