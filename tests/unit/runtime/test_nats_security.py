"""When a connection must be encrypted, what refuses it for good, and what only makes it try again."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import pytest

from shared.runtime import BusRefused, Settings, SettingsError, Tls, new_seed, public_key
from shared.runtime import _nats_security as security


def settings(url: str = "nats://127.0.0.1:4222", **fields: object) -> Settings:
    return Settings(nats_url=url, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("url", "required"),
    [
        ("nats://127.0.0.1:4222", False),
        ("nats://127.3.2.1:4222", False),
        ("nats://localhost:4222", False),
        ("nats://[::1]:4222", False),
        ("tls://127.0.0.1:4222", True),
        ("wss://localhost:443", True),
        ("nats://nats:4222", True),
        ("nats://10.0.0.1:4222", True),
        ("nats://localhost.example:4222", True),
        ("nats://127.0.0.1:4222,nats://nats-2:4222", True),
    ],
)
def test_tls_is_on_by_default_unless_every_server_is_this_machine(url: str, required: bool) -> None:
    assert security.tls_required(settings(url)) is required


@pytest.mark.parametrize("url", ["nats://127.0.0.1:4222", "nats://nats:4222"])
def test_one_setting_switches_tls_on_or_off(url: str) -> None:
    assert security.tls_required(settings(url, tls=Tls.ON))
    assert not security.tls_required(settings(url, tls=Tls.OFF))


def test_a_server_is_verified_whether_or_not_tls_must_be_on() -> None:
    context = security.load(settings(tls=Tls.OFF)).tls
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname


def test_each_credential_has_inboxes_of_its_own(tmp_path: Path) -> None:
    prefixes = set()
    for name in ("one", "two"):
        seed = new_seed()
        (tmp_path / name).write_bytes(seed + b"\n")
        loaded = security.load(settings(nats_credential=tmp_path / name))
        assert loaded.seed == seed.decode()
        assert loaded.inbox.endswith(public_key(seed))
        prefixes.add(loaded.inbox)
    assert len(prefixes) == 2


def test_without_a_credential_there_is_nothing_to_sign() -> None:
    loaded = security.load(settings())
    assert (loaded.seed, loaded.inbox) == (None, "_INBOX")


def test_a_credential_that_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BusRefused, match=r"file/aer\.nk cannot be read") as refused:
        security.load(settings(nats_credential=tmp_path / "file" / "aer.nk"))
    assert refused.value.exit_code == os.EX_NOPERM


@pytest.mark.parametrize(
    "error",
    [
        OSError("Connect call failed"),
        TimeoutError(),
        ssl.SSLError("handshake broken off"),
        ConnectionResetError(),
        RuntimeError("nats: maximum connections exceeded"),
    ],
)
def test_what_may_pass_is_tried_again(error: Exception) -> None:
    assert security.refusal(error, "nats://nats", settings()) is None


@pytest.mark.parametrize("text", ["nats: 'Authorization Violation'", "nats: user authentication expired"])
def test_a_server_that_does_not_know_us_is_not_asked_again(text: str) -> None:
    refused = security.refusal(RuntimeError(text), "nats://nats", settings(nats_credential=Path("aer.nk")))
    assert refused is not None
    assert refused.exit_code == os.EX_NOPERM
    assert "aer.nk" in str(refused)


def test_the_setting_for_tls_is_one_of_three() -> None:
    with pytest.raises(SettingsError, match="auto, on, off"):
        Settings.from_env("aer", {"HOLDFAST_TLS": "yes"})
    with pytest.raises(SettingsError, match="HOLDFAST_TLS"):
        Settings.from_env("aer", {"HOLDFAST_TLS": "off", "HOLDFAST_NATS_URL": "tls://nats:4222"})


def test_an_empty_credential_is_none() -> None:
    assert Settings.from_env("aer", {"HOLDFAST_NATS_CREDENTIAL": ""}).nats_credential is None


@pytest.mark.parametrize(
    "seed",
    [b"", b"S", b"SUAA", b"\xff" * 58, new_seed().lower(), new_seed()[:-1] + b"7="],
    ids=["empty", "short", "cut off", "binary", "lower case", "too long"],
)
def test_what_is_no_seed_is_no_seed(seed: bytes) -> None:
    with pytest.raises(ValueError, match="not the seed"):
        public_key(seed)
