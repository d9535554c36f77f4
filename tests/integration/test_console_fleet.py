"""The `holdfast` command against a running fleet: what an operator and a script see."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from services.console._exit import ExitCode
from tests.integration.cli import COMMAND_S, Cli
from tests.integration.fleet import Bench, start

pytestmark = pytest.mark.asyncio(loop_scope="module")

SIGPIPE_CODE = 141  # as a shell reports it
PORT = "0000:00:01.0"
DRIVE = "0000:01:00.0"
SERIAL = "55-cd-2e-41-50-00-00-01"
TOPOLOGY = f"""
[[function]]
address = "{PORT}"
kind = "root_port"
bus = [1, 1]
vendor = 0x8086
device = 0x6f04
dpc = true
slot = {{number = 4}}
[[function]]
address = "{DRIVE}"
kind = "endpoint"
vendor = 0x8086
device = 0x0a54
class = 0x010802
serial = "{SERIAL}"
bars = [0x4000]
driver = {{name = "nvme"}}
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    """One fleet for all tests here: each leaves it as it found it, but for the device's generation."""
    async with start(TOPOLOGY, tmp_path_factory.mktemp("console")) as running:
        await running.eventually(lambda: registered(running), "the drive is registered")
        yield running


async def registered(bench: Bench) -> bool | None:
    return True if DRIVE in await bench.registry() else None


async def generation(bench: Bench) -> int:
    return (await bench.registry())[DRIVE].generation


async def test_status_shows_slot_device_and_services(bench: Bench) -> None:
    status = await Cli(bench).json("status")
    (port,) = status["ports"]
    assert (port["port"], port["slot"], port["state"], port["masked"], port["lease"]) == (PORT, 4, "on", False, None)
    (device,) = port["devices"]
    assert (device["function"], device["driver"], device["present"]) == (DRIVE, "nvme", True)
    assert all(service["alive"] for service in status["services"])


async def test_doctor_finds_a_healthy_fleet_healthy_and_a_dead_service_dead(bench: Bench) -> None:
    code, out, _ = await Cli(bench).run("doctor")
    assert code == ExitCode.OK, out
    bench.kill("aer")
    await bench.fleet.ended("aer")
    code, out, _ = await Cli(bench).run("doctor")
    assert code == ExitCode.UNREACHABLE
    assert "python -m services.aer" in out
    await bench.restart("aer")


async def test_an_unknown_host_is_named_together_with_what_to_check(bench: Bench) -> None:
    code, _, err = await Cli(bench).run("status", "--host", "nowhere")
    assert code == ExitCode.UNREACHABLE
    assert "'nowhere'" in err
    assert "--host" in err


async def test_a_reset_shows_its_steps_and_keeps_the_device(bench: Bench) -> None:
    before = await generation(bench)
    code, _, err = await Cli(bench).run("reset", DRIVE)
    assert code == ExitCode.OK, err
    assert f"{DRIVE} kept" in err
    assert await generation(bench) == before


@pytest.mark.campaign
async def test_power_goes_off_and_on_again(bench: Bench) -> None:
    before = await generation(bench)
    code, _, err = await Cli(bench).run("power", "off", "slot:4", "--yes")
    assert code == ExitCode.OK, err
    assert (await Cli(bench).json("status"))["ports"][0]["state"] == "off"
    code, _, err = await Cli(bench).run("power", "on", "slot:4")
    assert code == ExitCode.OK, err
    assert await generation(bench) == before + 1


@pytest.mark.campaign  # as `up` below, which is all of that and more
async def test_nothing_is_left_running(tmp_path: Path) -> None:
    async with start(TOPOLOGY, tmp_path) as other:
        pids = [process.pid for process in other.fleet.processes.values()]
    assert not [pid for pid in pids if psutil.pid_exists(pid)]


@pytest.mark.campaign  # test_bad_files has another
async def test_up_reports_a_malformed_topology_as_a_usage_error(tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text('[[function]]\naddress = "nowhere"\nkind = "root_port"\nvendor = 1\ndevice = 2\n')
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.console", "up", "--port", "0", "--topology", str(bad), stderr=subprocess.PIPE
    )
    _, err = await asyncio.wait_for(process.communicate(), COMMAND_S)
    assert process.returncode == ExitCode.USAGE
    assert "nowhere" in err.decode()
    assert "Traceback" not in err.decode()


async def test_up_whose_lines_nobody_reads_any_more_ends_and_leaves_nothing() -> None:
    reader, writer = os.pipe()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.console", "up", "--port", "0", "--json", stdout=writer, stderr=subprocess.PIPE
    )
    os.close(writer)
    await asyncio.to_thread(os.read, reader, 1)
    children = psutil.Process(process.pid).children()
    os.close(reader)
    _, err = await asyncio.wait_for(process.communicate(), COMMAND_S)
    assert process.returncode == SIGPIPE_CODE
    assert b"Traceback" not in err
    assert not [child.pid for child in children if psutil.pid_exists(child.pid)]


async def test_up_ends_cleanly_on_sigterm_and_leaves_nothing() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.console", "up", "--port", "0", "--json",
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    assert process.stdout is not None
    assert b"ready after" in await asyncio.wait_for(process.stderr.readline(), COMMAND_S)
    children = psutil.Process(process.pid).children()
    assert len(children) == 7
    process.terminate()
    out, _ = await asyncio.wait_for(process.communicate(), COMMAND_S)
    assert process.returncode == 0
    assert all(json.loads(line) for line in out.splitlines())
    assert not [child.pid for child in children if psutil.pid_exists(child.pid)]
