"""Everything that travels on the bus, one row each: subject, messages, who may send it, and who takes it.

The permissions of the NATS users and the AsyncAPI document are both made from this table, so neither can say something
else than the other. A subject that no row names is nobody's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any, Final

import msgspec

from . import fabric, requests
from ._base import Message
from .fabric import Role
from .facts import Fact, Interrupt, What


class User(StrEnum):
    """Who connects to the bus. Machine and fabric exist per host, the other services serve any number of hosts."""

    MACHINE = "machine"
    FABRIC = "fabric"
    HOTPLUG = "hotplug"
    AER = "aer"
    DPC = "dpc"
    COORDINATOR = "coordinator"
    OPERATOR = "operator"
    VIEWER = "viewer"


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of message. `subject` has `{host}`, `{port}`, `{function}`, `{service}` and `{instance}` to fill in.

    `reply` is the union of what may be answered, None where nothing is.
    """

    name: str
    subject: str
    about: str
    message: type[Message]
    reply: Any = None
    senders: frozenset[User]
    takers: frozenset[User]


SERVICES: Final = frozenset({User.MACHINE, User.FABRIC, User.HOTPLUG, User.AER, User.DPC, User.COORDINATOR})
PEOPLE: Final = frozenset({User.OPERATOR, User.VIEWER})
_ASKERS: Final = (SERVICES | PEOPLE) - {User.MACHINE, User.FABRIC}
_OPERATOR: Final = frozenset({User.OPERATOR})

# Who establishes each kind of fact. Nobody else may publish it, so nobody else can forge it.
_SAYS: Final[Mapping[str, frozenset[User]]] = {
    "link": frozenset({User.HOTPLUG}),
    "slot": frozenset({User.HOTPLUG}),
    "device": frozenset({User.HOTPLUG}),
    "error": frozenset({User.AER}),
    "containment": frozenset({User.DPC}),
    "lease": frozenset({User.FABRIC}),
    "quarantine": frozenset({User.FABRIC}),
    "recovery": frozenset({User.COORDINATOR}),
}
_SAYS_ITSELF: Final[Mapping[What, frozenset[User]]] = {
    What.ERROR_NONFATAL: frozenset({User.AER, User.DPC}),  # dpc: the errors of the port that contained itself
    What.ERROR_FATAL: frozenset({User.AER, User.DPC}),
    What.CONTAINMENT_RELEASED: frozenset({User.COORDINATOR}),
}


def speakers(what: What) -> frozenset[User]:
    """Return who may state this fact."""
    return _SAYS_ITSELF.get(what, _SAYS[what.partition(".")[0]])


def _facts() -> Iterator[Route]:
    for what in What:
        yield Route(
            name=f"fact.{what}",
            subject=f"pcie.{{host}}.{{port}}.{what}",
            about=f"The fact {what}, kept in the stream PCIE_FACTS.",
            message=Fact,
            senders=speakers(what),
            takers=_ASKERS,
        )


def _interrupts() -> Iterator[Route]:
    for user in (User.HOTPLUG, User.AER, User.DPC):
        yield Route(
            name=f"irq.{user}",
            subject=f"pcie.{{host}}.{{port}}.irq.{user}",
            about=f"An interrupt for {user}: a hint, read before you act (P9).",
            message=Interrupt,
            senders=frozenset({User.FABRIC}),
            takers=frozenset({user}),
        )


def _ask(
    name: str, subject: str, about: str, message: type[Message], reply: Any, senders: frozenset[User], taker: User
) -> Route:
    return Route(
        name=name,
        subject=f"pcie.{{host}}.{subject}",
        about=about,
        message=message,
        reply=reply,
        senders=senders,
        takers=frozenset({taker}),
    )


def _fabric_questions() -> Iterator[Route]:
    rows: tuple[tuple[str, str, type[Message], Any], ...] = (
        ("read", "Read registers.", fabric.Read, fabric.ReadReply),
        ("dump", "The whole config space of a function.", fabric.Dump, fabric.DumpReply),
        ("leases", "Open and retired leases, without tokens.", fabric.Leases, fabric.LeasesReply),
        ("topology", "The functions of the host.", fabric.AskTopology, fabric.AskTopologyReply),
    )
    for name, about, message, reply in rows:
        yield _ask(f"fabric.{name}", f"fabric.{name}", about, message, reply, _ASKERS, User.FABRIC)


def _fabric_commands() -> Iterator[Route]:
    rows: tuple[tuple[str, str, type[Message], Any], ...] = (
        ("open", "Take a lease.", fabric.Open, fabric.OpenReply),
        ("execute", "Access registers under a lease.", fabric.Execute, fabric.ExecuteReply),
        ("beat", "The holder lives.", fabric.Beat, fabric.BeatReply),
        ("adopt", "Take over the lease of a dead holder.", fabric.Adopt, fabric.AdoptReply),
        ("close", "Verify, unmask and retire a lease.", fabric.Close, fabric.CloseReply),
    )
    for role, user in ((Role.COORDINATOR, User.COORDINATOR), (Role.HOTPLUG, User.HOTPLUG)):
        for name, about, message, reply in rows:
            command = f"fabric.{role}.{name}"
            yield _ask(command, command, about, message, reply, frozenset({user}), User.FABRIC)
    acknowledge = f"fabric.{Role.AER}.acknowledge"
    about = "Clear error status that aer has read and published."
    aer = frozenset({User.AER})
    yield _ask(acknowledge, acknowledge, about, fabric.Acknowledge, fabric.AcknowledgeReply, aer, User.FABRIC)


def _requests() -> Iterator[Route]:
    finders = frozenset({User.AER, User.DPC})
    callers = frozenset({User.COORDINATOR, User.HOTPLUG})
    lifters = _OPERATOR | {User.HOTPLUG}  # hotplug: another card is seated
    rows: tuple[tuple[str, str, type[Message], Any, frozenset[User], User], ...] = (
        ("recover", "Recover a port.", requests.Recover, requests.AcceptReply, finders, User.COORDINATOR),
        ("reset", "Reset a function.", requests.Reset, requests.ResetReply, _OPERATOR, User.COORDINATOR),
        ("hold", "Hold a port, or renew.", requests.Hold, requests.AcceptReply, _OPERATOR, User.COORDINATOR),
        ("release", "End a hold.", requests.Release, requests.AcceptReply, _OPERATOR, User.COORDINATOR),
        ("break", "End a lease against its holder.", requests.Break, requests.AcceptReply, _OPERATOR, User.COORDINATOR),
        ("lift", "End a quarantine.", requests.Lift, requests.AcceptReply, lifters, User.COORDINATOR),
        (
            "inject",
            "Do to the machine what a lab would do.",
            requests.Inject,
            requests.InjectReply,
            _OPERATOR,
            User.MACHINE,
        ),
        ("{function}.driver", "Call a driver.", requests.DriverCall, requests.DriverReply, callers, User.MACHINE),
        ("{port}.slot.power_on", "Power on.", requests.SlotRequest, requests.SlotReply, _OPERATOR, User.HOTPLUG),
        ("{port}.slot.power_off", "Power off.", requests.SlotRequest, requests.SlotReply, _OPERATOR, User.HOTPLUG),
        ("{port}.slot.status", "The slot's state.", requests.SlotRequest, requests.SlotReply, PEOPLE, User.HOTPLUG),
    )
    for subject, about, message, reply, senders, taker in rows:
        name = subject.replace("{function}.", "").replace("{port}.", "")
        yield _ask(name, subject, about, message, reply, senders, taker)


_LOG_LEVEL: Final = Route(
    name="log_level",
    subject="holdfast.service.{service}.{instance}.log",
    about="Change the log level of one instance.",
    message=requests.SetLogLevel,
    reply=requests.LogLevelReply,
    senders=_OPERATOR,
    takers=SERVICES,
)

ROUTES: Final = (*_interrupts(), *_facts(), *_fabric_questions(), *_fabric_commands(), *_requests(), _LOG_LEVEL)
