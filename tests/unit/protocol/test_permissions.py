"""Who may do what, as it is derived from the table of messages: what each row says, and nothing besides."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import pytest

from shared.protocol import permissions
from shared.protocol.permissions import Permissions
from shared.protocol.routes import PEOPLE, ROUTES, SERVICES, Route, User

PORT = "0000-3b-00-0"
STREAMS = ("PCIE_FACTS", "KV_PCIE")

# Written by hand, unlike what is expected below: what nobody may ever get by a slip in the table of messages.
INBOX: Final = {user: f"_INBOX.U{user.upper()}" for user in User}
COMMANDS: Final = tuple(f"pcie.lab.fabric.coordinator.{verb}" for verb in ("open", "execute", "beat", "adopt", "close"))
SLOT_COMMANDS: Final = tuple(
    f"pcie.lab.fabric.hotplug.{verb}" for verb in ("open", "execute", "beat", "adopt", "close")
)
ACKNOWLEDGE: Final = "pcie.lab.fabric.aer.acknowledge"
RECOVER: Final = "pcie.lab.recover"
DRIVER: Final = f"pcie.lab.{PORT}.driver"
INJECT: Final = "pcie.lab.inject"
LIFT: Final = "pcie.lab.lift"
BY_HAND: Final = (INJECT, "pcie.lab.reset", "pcie.lab.hold", "pcie.lab.release", "pcie.lab.break")
POWER: Final = (f"pcie.lab.{PORT}.slot.power_on", f"pcie.lab.{PORT}.slot.power_off")
LOG_LEVEL: Final = "holdfast.service.aer.one.log"


def facts(kind: str, names: str) -> tuple[str, ...]:
    return tuple(f"pcie.lab.{PORT}.{kind}.{name}" for name in names.split())


OF_THE_FABRIC: Final = (
    *facts("lease", "opened masked executed refused absorbed adopted unmasked closed acknowledged firmware_answered"),
    *facts("quarantine", "entered lifted"),
    *facts("irq", "hotplug aer dpc"),
)
RECOVERY_FACTS: Final = facts("recovery", "started joined waiting escalated step vote progress errors broken closed")
SLOT_FACTS: Final = (
    *facts("link", "down up"),
    *facts("slot", "state deferred ignored button power_fault latch not_ready reconciled"),
    *facts("device", "added removed kept rebound channel"),
)
AER_FACTS: Final = facts("error", "correctable ignored")
ERROR_FACTS: Final = facts("error", "nonfatal fatal")
DPC_FACTS: Final = facts("containment", "entered ignored")
RELEASED: Final = facts("containment", "released")
FACTS: Final = (
    *(*OF_THE_FABRIC, *RECOVERY_FACTS, *SLOT_FACTS),
    *(*AER_FACTS, *ERROR_FACTS, *DPC_FACTS, *RELEASED),
)
JOURNAL: Final = (f"$KV.PCIE.recovery.lab.{PORT}", "$KV.PCIE.owner.lab.coordinator")
DEVICES: Final = (f"$KV.PCIE.device.lab.{PORT}", "$KV.PCIE.owner.lab.hotplug")
# Per user: orders first, then facts, then records.
NEVER: Final[dict[User, tuple[str, ...]]] = {
    User.MACHINE: (
        *(*BY_HAND, *POWER, LIFT, LOG_LEVEL, RECOVER, DRIVER, *COMMANDS, *SLOT_COMMANDS, ACKNOWLEDGE),
        *(*FACTS, *JOURNAL, *DEVICES),
    ),
    User.FABRIC: (
        *(*BY_HAND, *POWER, LIFT, LOG_LEVEL, RECOVER, DRIVER, *COMMANDS, *SLOT_COMMANDS, ACKNOWLEDGE),
        *(*RECOVERY_FACTS, *SLOT_FACTS, *AER_FACTS, *ERROR_FACTS, *DPC_FACTS, *RELEASED, *JOURNAL, *DEVICES),
    ),
    User.HOTPLUG: (
        *(*BY_HAND, *POWER, LOG_LEVEL, RECOVER, *COMMANDS, ACKNOWLEDGE),
        *(*OF_THE_FABRIC, *RECOVERY_FACTS, *AER_FACTS, *ERROR_FACTS, *DPC_FACTS, *RELEASED, *JOURNAL),
    ),
    User.AER: (
        *(*BY_HAND, *POWER, LIFT, LOG_LEVEL, DRIVER, *COMMANDS, *SLOT_COMMANDS),
        *(*OF_THE_FABRIC, *RECOVERY_FACTS, *SLOT_FACTS, *DPC_FACTS, *RELEASED, *JOURNAL, *DEVICES),
    ),
    User.DPC: (
        *(*BY_HAND, *POWER, LIFT, LOG_LEVEL, DRIVER, *COMMANDS, *SLOT_COMMANDS, ACKNOWLEDGE),
        *(*OF_THE_FABRIC, *RECOVERY_FACTS, *SLOT_FACTS, *AER_FACTS, *RELEASED, *JOURNAL, *DEVICES),
    ),
    User.COORDINATOR: (
        *(*BY_HAND, *POWER, LIFT, LOG_LEVEL, RECOVER, *SLOT_COMMANDS, ACKNOWLEDGE),
        *(*OF_THE_FABRIC, *SLOT_FACTS, *AER_FACTS, *ERROR_FACTS, *DPC_FACTS, *DEVICES),
    ),
    User.OPERATOR: (
        *(RECOVER, DRIVER, *COMMANDS, *SLOT_COMMANDS, ACKNOWLEDGE),
        *(*FACTS, *JOURNAL, *DEVICES),
    ),
    User.VIEWER: (
        *(*BY_HAND, *POWER, LIFT, LOG_LEVEL, RECOVER, DRIVER, *COMMANDS, *SLOT_COMMANDS, ACKNOWLEDGE),
        *(*FACTS, *JOURNAL, *DEVICES),
    ),
}
ANSWERS: Final[dict[User, set[User]]] = {
    User.MACHINE: {User.COORDINATOR, User.HOTPLUG},
    User.FABRIC: {User.COORDINATOR, User.HOTPLUG, User.AER, User.DPC},
    User.HOTPLUG: set(),
    User.AER: set(),
    User.DPC: set(),
    User.COORDINATOR: {User.AER, User.DPC, User.HOTPLUG},  # hotplug: a quarantine is lifted by another card
    User.OPERATOR: set(),
    User.VIEWER: set(),
}


def of(user: User, *hosts: str) -> Permissions:
    return permissions.permissions(user, hosts or ("lab",), own_inbox=INBOX[user], inboxes=INBOX.items())


@pytest.mark.parametrize("user", User)
def test_what_a_user_may_never_do_whatever_the_table_says(user: User) -> None:
    assert not [subject for subject in NEVER[user] if allowed(of(user).publish, subject)]


@pytest.mark.parametrize("subject", sorted({subject for never in NEVER.values() for subject in never}))
def test_what_is_forbidden_by_hand_is_a_subject_that_somebody_may_use(subject: str) -> None:
    """Or the list would forbid what does not exist, and miss what does."""
    assert any(allowed(of(user).publish, subject) for user in User)


def test_what_is_forbidden_by_hand_leaves_a_viewer_nothing_that_changes_anything() -> None:
    """A new row of the table is judged here before a viewer may send it."""
    asked = {example(route) for route in ROUTES if not looks(route)}
    assert asked - {*NEVER[User.VIEWER]} == set()


def looks(route: Route) -> bool:
    """Tell whether a message only asks, written by hand as well."""
    return route.name in {"fabric.read", "fabric.dump", "fabric.leases", "fabric.topology", "slot.status"}


@pytest.mark.parametrize("user", User)
def test_a_service_answers_to_the_services_that_may_ask_it_and_to_nobody_else(user: User) -> None:
    may = of(user).publish
    assert {other for other in User if allowed(may, f"{INBOX[other]}.one.two")} == ANSWERS[user]
    assert allowed(may, "_R_.one") == (user in SERVICES)
    assert not allowed(may, "_INBOX.USOMEBODY.one")


def example(route: Route, host: str = "lab", service: str = "aer") -> str:
    known = {"host": host, "service": service, "instance": "one"}
    return re.sub(r"\{(\w+)\}", lambda found: known.get(found[1], PORT), route.subject)


def allowed(patterns: Iterable[str], subject: str) -> bool:
    def fits(pattern: str) -> bool:
        wanted, given = pattern.split("."), subject.split(".")
        if wanted[-1] == ">":
            return len(given) >= len(wanted) and fits_each(wanted[:-1], given[: len(wanted) - 1])
        return len(wanted) == len(given) and fits_each(wanted, given)

    def fits_each(wanted: list[str], given: list[str]) -> bool:
        return all(want in {"*", token} for want, token in zip(wanted, given, strict=True))

    return any(map(fits, patterns))


@pytest.mark.parametrize("user", User)
@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
def test_a_message_may_be_sent_by_its_senders_and_taken_by_its_takers_and_by_nobody_else(
    route: Route, user: User
) -> None:
    may = of(user)
    service = user if user in route.takers else "aer"
    subject = example(route, service=service)
    assert allowed(may.publish, subject) == (user in route.senders)
    assert allowed(may.subscribe, subject) == (user in route.takers)


@pytest.mark.parametrize("user", User)
@pytest.mark.parametrize("route", [route for route in ROUTES if "{host}" in route.subject], ids=lambda r: r.name)
def test_a_user_of_one_host_is_nobody_on_another(route: Route, user: User) -> None:
    may, elsewhere = of(user), example(route, host="other")
    assert not allowed(may.publish, elsewhere)
    assert not allowed(may.subscribe, elsewhere)


@pytest.mark.parametrize("user", [user for user in User if user not in permissions.PER_HOST])
def test_a_user_of_two_hosts_may_on_both_what_it_may_on_one(user: User) -> None:
    both = of(user, "lab", "other")
    assert {*of(user, "lab").publish, *of(user, "other").publish} == {*both.publish}
    assert {*of(user, "lab").subscribe, *of(user, "other").subscribe} == {*both.subscribe}


@pytest.mark.parametrize("user", User)
def test_nobody_may_listen_to_everything_or_to_the_answers_for_others(user: User) -> None:
    heard = of(user).subscribe
    assert not [subject for subject in heard if subject == ">" or subject.startswith(("*", "$JS", "$KV", "$SYS"))]
    assert [subject for subject in heard if subject.startswith(permissions.INBOXES)] == [f"{INBOX[user]}.>"]


@pytest.mark.parametrize("user", User)
@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("verb", ["STREAM.UPDATE", "STREAM.DELETE", "STREAM.PURGE", "STREAM.MSG.DELETE"])
def test_nobody_may_change_or_empty_a_stream(user: User, stream: str, verb: str) -> None:
    assert not allowed(of(user).publish, f"$JS.API.{verb}.{stream}")


@pytest.mark.parametrize("user", User)
def test_a_record_is_written_by_the_one_who_keeps_it(user: User) -> None:
    keepers = {
        f"owner.lab.{user}": user in {User.HOTPLUG, User.AER, User.DPC, User.COORDINATOR},
        f"recovery.lab.{PORT}": user is User.COORDINATOR,
        f"device.lab.{PORT}": user is User.HOTPLUG,
    }
    others = {f"owner.lab.{other}" for other in User if other is not user}
    may = of(user).publish
    assert {key: allowed(may, f"$KV.PCIE.{key}") for key in keepers} == keepers
    assert not [key for key in others if allowed(may, f"$KV.PCIE.{key}")]
    assert not allowed(may, f"$KV.PCIE.recovery.other.{PORT}")


@pytest.mark.parametrize("user", sorted(SERVICES))
def test_a_service_that_can_store_facts_cannot_have_them_sent_to_a_subject_of_its_choice(user: User) -> None:
    assert not allowed(of(user).publish, "$JS.API.DIRECT.GET.PCIE_FACTS")


@pytest.mark.parametrize("user", sorted(PEOPLE))
def test_people_ask_jetstream_only_by_the_names_that_it_has_among_them(user: User) -> None:
    asked = [subject for subject in of(user).publish if "API" in subject]
    assert asked
    assert not [subject for subject in asked if subject.startswith("$JS")]


def test_what_crosses_to_people_is_what_people_may_send_and_hear_and_no_more() -> None:
    crossing = permissions.crossing()
    for route in ROUTES:
        subject = example(route)
        assert allowed(crossing.requests, subject) == bool(route.senders & PEOPLE)
        assert allowed(crossing.heard, subject) == bool(route.takers & PEOPLE)
