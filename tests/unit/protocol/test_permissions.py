"""Who may do what, as it is derived from the table of messages: what each row says, and nothing besides."""

from __future__ import annotations

import re
from collections.abc import Iterable

import pytest

from shared.protocol import permissions
from shared.protocol.permissions import Permissions
from shared.protocol.routes import PEOPLE, ROUTES, SERVICES, Route, User

KEY = "UKEY"
OWN = permissions.inbox(KEY)
PORT = "0000-3b-00-0"
STREAMS = ("PCIE_FACTS", "KV_PCIE")


def of(user: User, *hosts: str) -> Permissions:
    return permissions.permissions(user, hosts or ("lab",), own_inbox=OWN)


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
    assert [subject for subject in heard if subject.startswith(permissions.INBOXES)] == [f"{OWN}.>"]


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
