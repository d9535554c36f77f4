"""Bad files and ports: a clear error that names the thing and says what to do; nothing changed, nothing lost."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Iterator
from typing import Final

import pytest

from services.console._exit import ExitCode
from shared.pcie import Address
from tests.conftest import NatsServer
from tests.integration.campaign import some_of
from tests.integration.cli import Cli, ended, exists
from tests.integration.fleet import Bench
from tests.integration.promises import keeps

pytestmark = pytest.mark.asyncio(loop_scope="session")

PORT: Final = Address.parse("0000:00:0d.0")
DRIVE: Final = Address.parse("0000:0d:00.0")
ABSENT: Final = "0000:77:00.0"
EXIT_CORRUPT: Final = 65


def clear(err: str, *named: str) -> None:
    """Assert that an error names the thing, and shows no traceback."""
    assert "Traceback" not in err, err
    for text in named:
        assert text in err, err


# --- The machine's topology ---

ROOT_PORT: Final = """
[[function]]
address = "0000:00:01.0"
kind = "root_port"
bus = [1, 1]
vendor = 0x8086
device = 0x6f04
"""
ENDPOINT: Final = """
[[function]]
address = "0000:01:00.0"
kind = "endpoint"
vendor = 0x144d
device = 0xa824
class = 0x010802
"""


async def run_service(name: str, **environment: str) -> tuple[int, str]:
    """Run one service to its end; return its exit code and all that it said."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("HOLDFAST_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        f"services.{name}",
        env={**inherited, "HOLDFAST_HEALTH": "127.0.0.1:0", **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    code, out, err = await ended(process)
    return code, out + err


@pytest.mark.parametrize(
    ("text", "named"),
    some_of(
        [
            (ROOT_PORT + ENDPOINT + ENDPOINT, ("two functions at 0000:01:00.0",)),
            (
                ROOT_PORT + ENDPOINT + ENDPOINT.replace("01:00.0", "02:00.0") + 'under = "0000:01:00.0"\n',
                ("0000:02:00.0", "cannot be under 0000:01:00.0"),
            ),
            (
                ROOT_PORT
                + ENDPOINT
                + ROOT_PORT.replace("00:01.0", "01:01.0")
                .replace("root_port", "downstream_port")
                .replace("[1, 1]", "[2, 2]")
                + 'under = "0000:01:00.0"\n',
                ("0000:01:01.0", "cannot be under 0000:01:00.0"),
            ),
            (ROOT_PORT + ENDPOINT.replace("vendor = 0x144d\n", ""), ("`vendor`", "$.function[1]")),
            (ROOT_PORT.replace('kind = "root_port"\n', ""), ("`kind`", "$.function[0]")),
            (ROOT_PORT.replace("0000:00:01.0", "yonder"), ("'yonder' is not a PCI address",)),
            (ROOT_PORT + "slot = {numer = 1}\n", ("`numer`", "$.function[0].slot")),
            (ROOT_PORT + "dpc = maybe\n", ("not valid TOML", "line 8")),
        ],
        1,
        4,
        7,
    ),
)
async def test_a_topology_that_cannot_stand_is_named_with_the_place(
    tmp_path_factory: pytest.TempPathFactory, text: str, named: tuple[str, ...]
) -> None:
    file = tmp_path_factory.mktemp("topology") / "bad.toml"
    file.write_text(text)
    code, said = await run_service("machine", HOLDFAST_TOPOLOGY=str(file))
    assert code == ExitCode.USAGE
    clear(said, str(file), *named)
    assert len(said.splitlines()) == 1


async def test_up_passes_on_what_is_wrong_with_a_topology_and_leaves_nothing(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    file = tmp_path_factory.mktemp("topology") / "bad.toml"
    file.write_text(ROOT_PORT + ENDPOINT + ENDPOINT)
    code, _, err = await Cli().run("up", "--port", "0", "--topology", str(file))
    assert code == ExitCode.USAGE
    clear(err, str(file), "two functions at 0000:01:00.0")


# --- Logs ---


async def test_a_log_with_no_pcie_line_is_a_usage_error_that_says_what_is_expected(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    log = tmp_path_factory.mktemp("log") / "other.txt"
    log.write_text("[    0.000000] Linux version 6.16\n[    1.000000] usb 1-1: new high-speed USB device\n")
    code, out, err = await Cli().run("replay", str(log), "--json")
    assert (code, out) == (ExitCode.USAGE, "")
    clear(err, str(log), "no PCIe line", "dmesg")


# --- The bus ---


@pytest.fixture
def taken() -> Iterator[int]:
    """A TCP port on which somebody listens who is no NATS server."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port: int = other.getsockname()[1]
        yield port


async def test_a_nats_url_that_does_not_answer_is_named_with_what_to_do(taken: int) -> None:
    url = f"nats://127.0.0.1:{taken}"
    code, out, err = await Cli().run("status", "--nats", url)
    assert (code, out) == (ExitCode.UNREACHABLE, "")
    clear(err, url, "holdfast up", "HOLDFAST_NATS_URL")
    assert len(err.splitlines()) == 1


async def test_a_port_in_use_is_named_with_what_to_do(taken: int) -> None:
    code, out, err = await Cli().run("up", "--port", str(taken))
    assert (code, out) == (ExitCode.USAGE, "")
    clear(err, str(taken), "--port")


async def test_a_state_directory_that_cannot_be_made_is_named(tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("state") / "file"
    file.touch()
    code, out, err = await Cli().run("up", "--port", "0", "--state", str(file / "below"))
    assert (code, out) == (ExitCode.USAGE, "")
    clear(err, str(file / "below"), "--state")


# --- The ledger ---


async def test_p2_a_torn_ledger_loses_nothing_and_the_hold_that_it_knows_of_goes_on(
    bench: Bench, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A crash in the middle of an append: the tail was never acted upon."""
    directory = tmp_path_factory.mktemp("torn")
    ledger = bench.fleet.state_dir / "fabric.ledger"
    script = f"touch {directory}/started; while [ ! -e {directory}/finish ]; do sleep 0.05; done; exit 3"
    async with keeps(bench, str(PORT), resets=False):
        process = await Cli(bench).start("hold", str(PORT), "--", "sh", "-c", script)
        await bench.eventually(lambda: exists(directory / "started"), "the command runs")
        held = (await bench.leases()).leases
        bench.kill("fabric", signal.SIGKILL)
        await bench.fleet.ended("fabric")
        with ledger.open("ab") as file:
            file.write(b'0badc0de {"type":"exec')
        await bench.restart("fabric")
        assert [lease.id for lease in (await bench.leases()).leases] == [lease.id for lease in held]
        (directory / "finish").touch()
        code, _, err = await ended(process)
        assert code == 3, err
    assert ledger.with_name("fabric.ledger.torn").read_bytes() == b'0badc0de {"type":"exec'


@pytest.mark.parametrize("how", ["a bit flipped", "no ledger at all", "the beginning is missing"])
async def test_a_corrupt_ledger_stops_the_fabric_which_says_where_and_what_to_do_and_changes_nothing(
    bench: Bench, tmp_path_factory: pytest.TempPathFactory, nats_server: NatsServer, how: str
) -> None:
    whole = (bench.fleet.state_dir / "fabric.ledger").read_bytes()
    damaged = {
        "a bit flipped": whole[:100] + bytes([whole[100] ^ 1]) + whole[101:],
        "no ledger at all": b"Dear diary,\n",
        "the beginning is missing": whole.split(b"\n", maxsplit=1)[1] or whole[10:],
    }[how]
    ledger = tmp_path_factory.mktemp("corrupt") / "fabric.ledger"
    ledger.write_bytes(damaged)
    code, said = await run_service(
        "fabric", HOLDFAST_LEDGER=str(ledger), HOLDFAST_NATS_URL=nats_server.url, HOLDFAST_HOSTS="corrupt"
    )
    assert code == EXIT_CORRUPT
    clear(said, f"ledger {ledger} is damaged at byte 0", "Nothing was changed", "move the file away")
    assert ledger.read_bytes() == damaged


async def test_up_with_a_corrupt_ledger_is_a_usage_error_that_says_the_same(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    ledger = tmp_path_factory.mktemp("corrupt") / "fabric.ledger"
    ledger.write_bytes(b"Dear diary,\n")
    code, _, err = await Cli().run("up", "--port", "0", "--state", str(ledger.parent))
    assert code == ExitCode.USAGE
    clear(err, f"ledger {ledger} is damaged at byte 0", "move the file away")
    assert ledger.read_bytes() == b"Dear diary,\n"
