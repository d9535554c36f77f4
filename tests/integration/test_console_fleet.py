"""The `holdfast` command against a running fleet: what an operator and a script see."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from services.console._exit import ExitCode
from shared.pcie.registers import SLOT_MASKED
from tests.integration.fleet import Bench, start

pytestmark = pytest.mark.asyncio(loop_scope="module")

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
COMMAND_S = 60.0


class Cli:
    """Runs `holdfast` against one bench."""

    def __init__(self, bench: Bench) -> None:
        self.environment = {**os.environ, "HOLDFAST_NATS_URL": bench.fleet.url}

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "services.console",
            *arguments,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    async def run(self, *arguments: str) -> tuple[int, str, str]:
        process = await self.start(*arguments)
        out, err = await asyncio.wait_for(process.communicate(), COMMAND_S)
        assert process.returncode is not None
        return process.returncode, out.decode(), err.decode()

    async def json(self, *arguments: str) -> Any:
        code, out, err = await self.run(*arguments, "--json")
        assert code == 0, err
        return json.loads(out)


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


async def test_p2_a_hold_masks_while_its_command_runs_and_unmasks_after(bench: Bench, tmp_path: Path) -> None:
    started, finish = tmp_path / "started", tmp_path / "finish"
    script = f"touch {started}; while [ ! -e {finish} ]; do sleep 0.02; done; exit 5"
    process = await Cli(bench).start("hold", "Slot(4)", "--", "sh", "-c", script)
    await bench.eventually(lambda: exists(started), "the command runs")
    control = await bench.slot_control(PORT)
    assert control is not None
    assert not control & SLOT_MASKED
    finish.touch()
    await asyncio.wait_for(process.communicate(), COMMAND_S)
    assert process.returncode == 5
    control = await bench.slot_control(PORT)
    assert control is not None
    assert control & SLOT_MASKED == SLOT_MASKED
    assert not (await bench.leases()).leases


async def exists(path: Path) -> bool | None:
    return True if path.exists() else None  # noqa: ASYNC240 - a test may look at the disk


async def test_p7_a_hold_that_a_recovery_absorbs_kills_its_command(bench: Bench, tmp_path: Path) -> None:
    started, survived = tmp_path / "started", tmp_path / "survived"
    script = f"echo $$ > {started}; sleep 30; touch {survived}"
    process = await Cli(bench).start("hold", PORT, "--", "sh", "-c", script)
    await bench.eventually(lambda: exists(started), "the command runs")
    await bench.inject("dpc", PORT, reason="uncorrectable")
    _, err = await asyncio.wait_for(process.communicate(), COMMAND_S)
    assert process.returncode == ExitCode.HELD, err
    assert not psutil.pid_exists(int(started.read_text()))
    assert not survived.exists()


async def test_a_terminated_hold_ends_its_command_and_releases(bench: Bench, tmp_path: Path) -> None:
    started = tmp_path / "started"
    process = await Cli(bench).start("hold", PORT, "--", "sh", "-c", f"echo $$ > {started}; sleep 30")
    await bench.eventually(lambda: exists(started), "the command runs")
    process.terminate()
    await asyncio.wait_for(process.communicate(), COMMAND_S)
    assert process.returncode == 128 + signal.SIGTERM
    assert not (await bench.leases()).leases


async def test_p4_another_card_after_a_hold_is_told_by_the_exit_code(bench: Bench) -> None:
    before = await generation(bench)
    holdfast = f"{sys.executable} -m services.console"
    swap = f"""{holdfast} inject swap {PORT} --card '0.serial="55-cd-2e-41-50-00-00-99"'"""
    code, _, err = await Cli(bench).run("hold", PORT, "--", "sh", "-c", swap)
    assert code == ExitCode.REPLACED, err

    async def registered_anew() -> bool | None:
        return True if await generation(bench) == before + 1 else None

    await bench.eventually(registered_anew, "the other card is registered")


async def test_power_goes_off_and_on_again(bench: Bench) -> None:
    before = await generation(bench)
    code, _, err = await Cli(bench).run("power", "off", "slot:4", "--yes")
    assert code == ExitCode.OK, err
    assert (await Cli(bench).json("status"))["ports"][0]["state"] == "off"
    code, _, err = await Cli(bench).run("power", "on", "slot:4")
    assert code == ExitCode.OK, err
    assert await generation(bench) == before + 1


async def test_history_is_what_watch_showed_line_for_line(bench: Bench) -> None:
    cli = Cli(bench)
    watching = await cli.start("watch", "--json")
    assert watching.stdout is not None
    first_line = asyncio.create_task(watching.stdout.readline())
    while not first_line.done():  # it says nothing before the first fact that it hears
        await cli.run("reset", DRIVE)
    watched = [first_line.result()]
    while b'"recovery.closed"' not in watched[-1]:
        watched.append(await asyncio.wait_for(watching.stdout.readline(), COMMAND_S))
    watching.terminate()
    await watching.communicate()
    _, history, _ = await cli.run("history", "--json")
    lines = history.encode().splitlines(keepends=True)
    first = lines.index(watched[0])
    assert lines[first : first + len(watched)] == watched


@pytest.mark.skipif(shutil.which("lspci") is None, reason="lspci is not installed")
async def test_lspci_reads_a_dump_of_the_whole_host(bench: Bench) -> None:
    code, dump, _ = await Cli(bench).run("dump")
    assert code == ExitCode.OK
    lspci = await asyncio.create_subprocess_exec(
        "lspci", "-F", "/dev/stdin", "-vvv", stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    out, _ = await lspci.communicate(dump.encode())
    assert b"Slot #4" in out
    assert f"Device Serial Number {SERIAL[:-2]}".encode() in out
    assert b"Downstream Port Containment" in out


async def test_nothing_is_left_running(tmp_path: Path) -> None:
    async with start(TOPOLOGY, tmp_path) as other:
        pids = [process.pid for process in other.fleet.processes.values()]
    assert not [pid for pid in pids if psutil.pid_exists(pid)]


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
