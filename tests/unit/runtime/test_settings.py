from __future__ import annotations

import os
import re
from pathlib import Path

import msgspec
import pytest

from shared.protocol import routes
from shared.runtime import Settings, SettingsError
from shared.runtime._settings import HEALTH_PORTS


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


def test_a_name_that_is_no_setting_is_refused_whether_or_not_it_is_like_one() -> None:
    assert "HOLDFAST_BADGE_COLOUR is not a setting" in refused(HOLDFAST_BADGE_COLOUR="red")


def test_what_the_compose_files_may_be_told_is_refused_by_no_service() -> None:
    deploy = Path(__file__).parents[3] / "deploy"
    told = {name for file in deploy.glob("*.yaml") for name in re.findall(r"\$\{(HOLDFAST_\w+)", file.read_text())}
    settings = {f"HOLDFAST_{field.name.upper()}" for field in msgspec.structs.fields(Settings)}
    Settings.from_env("aer", dict.fromkeys(told - settings, "1"))


def test_variables_of_the_command_and_of_others_are_left_alone() -> None:
    environ = {"HOLDFAST_LEASE": "l1", "HOLDFAST_HOST": "lab", "PATH": "/bin"}
    assert Settings.from_env("aer", environ).hosts == ("lab",)


@pytest.mark.parametrize(
    ("health", "address"),
    [
        ("", ("127.0.0.1", 9463)),
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("0.0.0.0:9000", ("0.0.0.0", 9000)),
        ("[::1]:9000", ("::1", 9000)),
        ("off", None),
    ],
)
def test_health_is_served_where_it_is_said_or_at_the_services_own_port(
    health: str, address: tuple[str, int] | None
) -> None:
    assert Settings.from_env("aer", {"HOLDFAST_HEALTH": health}).health_address("aer") == address


def test_no_two_services_share_a_port() -> None:
    assert len(set(HEALTH_PORTS.values())) == len(HEALTH_PORTS)
    assert {str(service) for service in routes.SERVICES} == set(HEALTH_PORTS)


@pytest.mark.parametrize("health", ["9463", "localhost:", ":9463", "localhost:http", "localhost:65536", "localhost:-1"])
def test_a_place_for_health_that_is_none_is_refused_with_an_example(health: str) -> None:
    assert "127.0.0.1:9460" in refused(HOLDFAST_HEALTH=health)


def test_a_log_directory_that_is_left_empty_is_none() -> None:
    assert Settings.from_env("aer", {"HOLDFAST_LOG_DIR": ""}).log_dir is None
    assert Settings.from_env("aer", {"HOLDFAST_LOG_DIR": "/var/log"}).log_dir == Path("/var/log")


def test_secrets_are_not_shown() -> None:
    settings = Settings.from_env("aer", {"HOLDFAST_NATS_URL": "nats://user:secret@bus:4222"})
    assert "secret" not in str(settings.shown())
    assert settings.nats_url_shown == "nats://…@bus:4222"
    assert settings.shown()["ledger"] == ".holdfast/ledger"


@pytest.mark.parametrize("replicas", ["3", "5"])
def test_on_a_replicated_bus_silence_outlasts_a_change_of_its_leader(replicas: str) -> None:
    """prior-art/nats.md, 2: renewals failed for 4.5 to 7.5 s."""
    settings = Settings.from_env("aer", {"HOLDFAST_REPLICAS": replicas})
    assert (settings.allowed_s, settings.owner_s) == (15.0, 15.0)
    longer = Settings.from_env("aer", {"HOLDFAST_REPLICAS": replicas, "HOLDFAST_OWNER_S": "20"})
    assert (longer.allowed_s, longer.owner_s) == (15.0, 20.0)


@pytest.mark.parametrize("name", ["HOLDFAST_ALLOWED_S", "HOLDFAST_OWNER_S"])
@pytest.mark.parametrize(("replicas", "seconds", "least"), [("1", "0.9", "1 s"), ("3", "14", "15 s")])
def test_a_lease_that_would_end_before_it_could_be_renewed_is_refused(
    name: str, replicas: str, seconds: str, least: str
) -> None:
    said = refused(**{"HOLDFAST_REPLICAS": replicas, name: seconds})
    assert said.startswith(f"{name}={seconds} must be at least {least}")
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("replicas", ["0", "2", "4", "7", "-3"])
def test_the_number_of_replicas_is_odd_and_at_most_5(replicas: str) -> None:
    assert f"HOLDFAST_REPLICAS={replicas} is none of 1, 3, 5" in refused(HOLDFAST_REPLICAS=replicas)


def test_replicas_that_are_no_number_are_refused() -> None:
    assert "HOLDFAST_REPLICAS='three' is not a whole number" in refused(HOLDFAST_REPLICAS="three")
