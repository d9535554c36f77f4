"""A credential or a certificate that is no good: which one, and at once, with an exit code of its own; never half started.

But a process that runs goes on trying: no hardware work ends because a certificate has expired.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import msgspec
import pytest
import pytest_asyncio

from shared.runtime import BusError, NatsBus, Settings, connect, new_seed
from tests.conftest import NatsServer
from tests.integration.campaign import some_of
from tests.integration.cli import Cli
from tests.integration.secured import SecuredServer, make_keys

pytestmark = pytest.mark.asyncio(loop_scope="module")

UNTRUSTED: Final = 76
DENIED: Final = 77
PATIENCE_S: Final = 60.0
_POLL_S: Final = 0.05


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SecuredServer]:
    directory = tmp_path_factory.mktemp("refused")
    async with SecuredServer(directory / "bus", make_keys(directory / "keys")) as running:
        yield running


def run(service: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a service to its end."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")}
    return subprocess.run(
        (sys.executable, "-m", f"services.{service}"),
        env={**inherited, "HOLDFAST_HEALTH": "127.0.0.1:0", **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def last_words(ended: subprocess.CompletedProcess[str]) -> str:
    """Return the error that a process ended with: one line of its log."""
    lines = [msgspec.json.decode(line) for line in (ended.stdout + ended.stderr).splitlines()]
    (told,) = [line for line in lines if line["event"] == "cannot go on"]
    assert told["level"] == "critical"
    error: str = told["error"]
    return error


async def ends(service: str, environment: dict[str, str], code: int) -> str:
    ended = await asyncio.to_thread(run, service, environment)
    assert ended.returncode == code, ended.stdout + ended.stderr
    return last_words(ended)


# --- The credential ---


async def test_without_a_credential_the_service_says_which_setting_is_missing(server: SecuredServer) -> None:
    environment = server.settings("dpc")
    del environment["HOLDFAST_NATS_CREDENTIAL"]
    assert "HOLDFAST_NATS_CREDENTIAL" in await ends("dpc", environment, DENIED)


@pytest.mark.parametrize(
    "held", some_of(("nothing", "a directory", "garbage", "another kind of key", "a torn key"), 0, 3)
)
async def test_a_credential_that_is_none_is_named(server: SecuredServer, tmp_path: Path, held: str) -> None:
    file = tmp_path / "dpc.nk"
    if held == "a directory":
        file.mkdir()
    elif held == "garbage":
        file.write_bytes(bytes(range(256)) * 100)
    elif held == "another kind of key":
        file.write_bytes(b"SAAHQ6DYPB4HQ6DYPB4HQ6DYPB4HQ6DYPB4HQ6DYPB4HQ6DYPB4HQ6BI4I")
    elif held == "a torn key":
        file.write_bytes(new_seed()[:-5])
    environment = {**server.settings("dpc"), "HOLDFAST_NATS_CREDENTIAL": str(file)}
    assert str(file) in await ends("dpc", environment, DENIED)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
async def test_a_credential_that_may_not_be_read_is_named(server: SecuredServer, tmp_path: Path) -> None:
    file = tmp_path / "dpc.nk"
    file.write_bytes(new_seed())
    file.chmod(0)
    environment = {**server.settings("dpc"), "HOLDFAST_NATS_CREDENTIAL": str(file)}
    assert str(file) in await ends("dpc", environment, DENIED)


@pytest.mark.parametrize("service", some_of(("machine", "fabric", "hotplug", "aer", "dpc", "coordinator"), 1, 5))
async def test_a_credential_that_the_server_does_not_know_ends_every_service(
    server: SecuredServer, tmp_path: Path, service: str
) -> None:
    file = tmp_path / "stranger.nk"
    seed = new_seed()
    file.write_bytes(seed)
    environment = {
        **server.settings("dpc"),
        "HOLDFAST_NATS_CREDENTIAL": str(file),
        "HOLDFAST_TOPOLOGY": "services/console/data/lab.toml",
        "HOLDFAST_MACHINE_SOCKET": str(tmp_path / "machine.sock"),
        "HOLDFAST_LEDGER": str(tmp_path / "ledger"),
    }
    told = await ends(service, environment, DENIED)
    assert str(file) in told
    assert seed.decode() not in told


@pytest.mark.parametrize(
    ("service", "key", "host"),
    [
        ("hotplug", "aer", "lab"),
        ("coordinator", "hotplug", "lab"),
        ("machine", "machine-lab", "other"),
        ("fabric", "fabric-lab", "other"),
    ],
)
async def test_the_credential_of_another_service_or_host_ends_the_process(
    server: SecuredServer, tmp_path: Path, service: str, key: str, host: str
) -> None:
    environment = {
        **server.settings(key),
        "HOLDFAST_HOSTS": host,
        "HOLDFAST_TOPOLOGY": "services/console/data/lab.toml",
        "HOLDFAST_MACHINE_SOCKET": str(tmp_path / "machine.sock"),
        "HOLDFAST_LEDGER": str(tmp_path / "ledger"),
    }
    told = await ends(service, environment, DENIED)
    assert f"{key}.nk is not that of {service} for {host}" in told


# --- Certificates ---


@pytest.mark.parametrize("authority", ["missing", "garbage", "another", "the system's"])
async def test_an_authority_that_does_not_vouch_for_the_server_is_named(
    server: SecuredServer, tmp_path: Path, authority: str
) -> None:
    environment = server.settings("dpc")
    file = tmp_path / "ca.pem"
    if authority == "garbage":
        file.write_text("garbage")
    elif authority == "another":
        file = make_keys(tmp_path / "other") / "ca.pem"
    if authority == "the system's":
        del environment["HOLDFAST_NATS_CA"]
        assert "the system's authorities" in await ends("dpc", environment, UNTRUSTED)
    else:
        assert str(file) in await ends("dpc", {**environment, "HOLDFAST_NATS_CA": str(file)}, UNTRUSTED)


async def test_an_expired_certificate_is_refused_and_how_to_renew_it_is_said(tmp_path: Path) -> None:
    past = dt.datetime.now(dt.UTC) - dt.timedelta(days=10)
    async with SecuredServer(tmp_path / "bus", make_keys(tmp_path / "keys", at=past)) as expired:
        told = await ends("dpc", expired.settings("dpc"), UNTRUSTED)
    assert "expired" in told
    assert "keys init" in told


async def test_a_server_without_tls_is_refused_where_tls_must_be_on(nats_server: NatsServer) -> None:
    environment = {"HOLDFAST_NATS_URL": nats_server.url, "HOLDFAST_TLS": "on"}
    assert "no TLS" in await ends("dpc", environment, UNTRUSTED)


async def test_on_this_machine_tls_is_used_where_the_server_wants_it(server: SecuredServer) -> None:
    bus = await connect(Settings.from_env("dpc", server.settings("dpc")), "dpc", timeout_s=10.0)
    assert bus.statistics().connected
    await bus.close()


# --- The command ---


async def test_a_command_says_the_same_and_ends_with_the_same_codes(server: SecuredServer, tmp_path: Path) -> None:
    environment = server.settings("viewer")
    code, _, err = await Cli(environment={**environment, "HOLDFAST_NATS_CREDENTIAL": "nowhere.nk"}).run("status")
    assert code == DENIED
    assert "nowhere.nk" in err
    other = str(make_keys(tmp_path / "other") / "ca.pem")
    code, _, err = await Cli(environment={"HOLDFAST_NATS_URL": server.url}).run(
        "--credential", environment["HOLDFAST_NATS_CREDENTIAL"], "--ca", other, "status"
    )
    assert code == UNTRUSTED
    assert other in err


# --- While it runs ---


async def test_a_process_that_runs_goes_on_trying_while_the_certificate_is_expired(tmp_path: Path) -> None:
    keys = make_keys(tmp_path / "keys")
    server = SecuredServer(tmp_path / "bus", keys)
    await server.start()
    bus = await connect(Settings.from_env("dpc", server.settings("dpc")), "dpc", timeout_s=10.0)
    try:
        for at in (dt.datetime.now(dt.UTC) - dt.timedelta(days=10), None):
            await server.stop()
            (keys / "server.pem").unlink()
            make_keys(keys, at=at)
            await server.start()
            if at is not None:
                with pytest.raises(BusError):
                    await bus.get("owner.lab.dpc")
        await answers(bus)
        assert not bus.gone.is_set()
    finally:
        await bus.close()
        await server.stop()


async def test_a_process_whose_key_is_withdrawn_goes_on_trying_until_it_is_given_back(tmp_path: Path) -> None:
    keys = make_keys(tmp_path / "keys")
    server = SecuredServer(tmp_path / "bus", keys)
    await server.start()
    bus = await connect(Settings.from_env("dpc", server.settings("dpc")), "dpc", timeout_s=10.0)
    try:
        given = (keys / "users.conf").read_text()
        dpc = await asyncio.to_thread((keys / "dpc.nk").read_bytes)
        (keys / "dpc.nk").write_bytes(new_seed())
        make_keys(keys)
        await server.reload()
        await fails(bus)
        assert not bus.gone.is_set()
        (keys / "dpc.nk").write_bytes(dpc)
        (keys / "users.conf").write_text(given)
        await server.reload()
        await answers(bus)
    finally:
        await bus.close()
        await server.stop()


async def fails(bus: NatsBus) -> None:
    """Wait until the bus is out of reach."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                await bus.get("owner.lab.dpc")
            except BusError:
                return
            await asyncio.sleep(_POLL_S)


async def answers(bus: NatsBus) -> None:
    """Wait until the bus answers again."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                await bus.get("owner.lab.dpc")
            except BusError:
                await asyncio.sleep(_POLL_S)
            else:
                return
