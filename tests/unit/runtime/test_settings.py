from __future__ import annotations

import os
from pathlib import Path

import pytest

from shared.runtime import Settings, SettingsError


def refused(**environ: str) -> str:
    with pytest.raises(SettingsError) as caught:
        Settings.from_env("aer", environ)
    return str(caught.value)


def test_without_any_variable_the_defaults_serve_a_lab_on_this_machine() -> None:
    settings = Settings.from_env("aer", {})
    assert settings.nats_url == "nats://127.0.0.1:4222"
    assert settings.hosts == ("lab",)
    assert settings.instance == f"aer-{os.getpid()}"
    assert settings.allowed_s == 5.0


def test_each_field_is_read_from_its_variable() -> None:
    settings = Settings.from_env(
        "aer",
        {
            "HOLDFAST_HOSTS": "alpha, beta",
            "HOLDFAST_INSTANCE": "aer-east",
            "HOLDFAST_OWNER_S": "1.5",
            "HOLDFAST_LEDGER": "/var/lib/holdfast/ledger",
            "HOLDFAST_LOG_LEVEL": "debug",
        },
    )
    assert settings.hosts == ("alpha", "beta")
    assert settings.instance == "aer-east"
    assert settings.owner_s == 1.5
    assert settings.ledger == Path("/var/lib/holdfast/ledger")
    assert settings.log_level == "debug"


def test_everything_that_is_wrong_is_said_at_once_and_by_variable() -> None:
    said = refused(HOLDFAST_OWNER_S="soon", HOLDFAST_HOSTS="lab,la b", HOLDFAST_LOG_LEVEL="loud")
    assert len(said.splitlines()) == 3
    for variable in ("HOLDFAST_OWNER_S='soon'", "HOLDFAST_HOSTS", "HOLDFAST_LOG_LEVEL='loud'"):
        assert variable in said


@pytest.mark.parametrize("url", ["nats:/broken", "http://127.0.0.1:4222", "nats://:4222", "nats://host:port", ""])
def test_a_url_that_names_no_nats_server_is_refused_with_an_example(url: str) -> None:
    assert "nats://127.0.0.1:4222" in refused(HOLDFAST_NATS_URL=url)


def test_several_servers_are_separated_by_commas() -> None:
    settings = Settings.from_env("aer", {"HOLDFAST_NATS_URL": "nats://a:4222, nats://b:4222"})
    assert settings.servers == ("nats://a:4222", "nats://b:4222")


@pytest.mark.parametrize("seconds", ["0", "-1", "inf", "nan"])
def test_a_duration_is_more_than_nothing_and_finite(seconds: str) -> None:
    assert "HOLDFAST_ALLOWED_S" in refused(HOLDFAST_ALLOWED_S=seconds)


def test_relations_between_durations_are_checked() -> None:
    assert "HOLDFAST_LINK_S" in refused(HOLDFAST_LINK_S="61")
    assert "HOLDFAST_REMOVAL_GRACE_S" in refused(HOLDFAST_REMOVAL_GRACE_S="30", HOLDFAST_RECONCILE_S="30")


def test_hosts_are_named_once_and_at_least_one_is() -> None:
    assert "twice" in refused(HOLDFAST_HOSTS="lab,lab")
    assert "empty" in refused(HOLDFAST_HOSTS=",")


def test_a_typing_error_in_a_name_is_refused_rather_than_ignored() -> None:
    assert "did you mean HOLDFAST_NATS_URL" in refused(HOLDFAST_NATS_ULR="nats://elsewhere:4222")


def test_variables_of_the_command_and_of_others_are_left_alone() -> None:
    environ = {"HOLDFAST_LEASE": "l1", "HOLDFAST_HOST": "lab", "HOLDFAST_BADGE_COLOUR": "red", "PATH": "/bin"}
    assert Settings.from_env("aer", environ).hosts == ("lab",)


def test_secrets_are_not_shown() -> None:
    settings = Settings.from_env("aer", {"HOLDFAST_NATS_URL": "nats://user:secret@bus:4222"})
    assert "secret" not in str(settings.shown())
    assert settings.nats_url_shown == "nats://…@bus:4222"
    assert settings.shown()["ledger"] == ".holdfast/ledger"
