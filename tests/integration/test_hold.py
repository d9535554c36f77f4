"""Must show 9: holds and resets by the command line. The port is masked while a command runs, and unmasked after it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from services.console._exit import ExitCode
from shared.pcie import Address
from shared.pcie.registers import LINK_STATUS, SLOT_MASKED, LinkStatus
from shared.protocol.fabric import Rank
from shared.protocol.facts import What
from tests.integration.campaign import some_of
from tests.integration.cli import Cli, ended, exists
from tests.integration.fleet import Bench
from tests.integration.promises import keeps, promises, quiet, the_opened

pytestmark = pytest.mark.asyncio(loop_scope="session")

PORT = "0000:00:0d.0"
DRIVE = "0000:0d:00.0"
HOLDFAST = f"{sys.executable} -m services.console"
COMMAND_S = 60.0
FOR_LONG = "sleep 1000"  # what is ended by something else


async def masked(bench: Bench) -> bool:
    control = await bench.slot_control(PORT)
    assert control is not None
    return not control & SLOT_MASKED


async def link_active(bench: Bench) -> bool:
    express = (await bench.topology()).get(Address.parse(PORT)).capabilities.express
    status = await bench.read(PORT, LINK_STATUS, express)
    return bool((status or 0) & LinkStatus.LINK_ACTIVE)


async def holding(bench: Bench, script: str, started: Path) -> asyncio.subprocess.Process:
    """Start a hold whose script says its process id in `started`."""
    process = await Cli(bench).start(
        "hold", PORT, "--", "sh", "-c", f"echo $$ > {started}.new; mv {started}.new {started}; {script}"
    )
    await bench.eventually(lambda: exists(started), "the command runs")
    return process


async def gone(pid: int) -> bool | None:
    """Look whether a process is gone; for `Bench.eventually`, as nobody waits for the child of one that was killed."""
    return not psutil.pid_exists(pid) or None


async def test_p3_a_link_flap_under_a_hold_keeps_the_device_and_the_commands_code_comes_through(bench: Bench) -> None:
    since = bench.mark()
    async with keeps(bench, PORT, resets=False):
        flap = f"{HOLDFAST} inject link_flap {PORT} --for 0.3 && sleep 0.6; exit 5"
        assert (await Cli(bench).run("hold", PORT, "--", "sh", "-c", flap))[0] == 5
    lease = await the_opened(bench, since, PORT)
    assert (lease.data["rank"], lease.data["reach"]) == ("external", "reset")
    drained = await bench.wait_fact(What.LEASE_UNMASKED, PORT, since=since, lease=lease.lease)
    assert drained.data["cleared"], "the flap latched nothing: it was no test"


async def test_p2_a_hold_named_by_slot_masks_while_its_command_runs_and_unmasks_after(
    bench: Bench, tmp_path: Path
) -> None:
    finish = tmp_path / "finish"
    async with keeps(bench, PORT, resets=False):
        script = f"touch {tmp_path}/started; while [ ! -e {finish} ]; do sleep 0.02; done"
        process = await Cli(bench).start("hold", "Slot(13)", "--", "sh", "-c", script)
        await bench.eventually(lambda: exists(tmp_path / "started"), "the command runs")
        assert await masked(bench)
        finish.touch()
        assert (await ended(process))[0] == 0


async def test_p2_a_command_that_is_killed_in_the_middle_of_a_flap_is_closed_and_verified_all_the_same(
    bench: Bench, tmp_path: Path
) -> None:
    started = tmp_path / "started"
    since = bench.mark()
    async with keeps(bench, PORT, resets=False):
        script = f"{HOLDFAST} inject link_flap {PORT} --for 0.5; touch {tmp_path}/down; {FOR_LONG}"
        process = await holding(bench, script, started)
        await bench.eventually(lambda: exists(tmp_path / "down"), "the link is down")
        os.kill(int(started.read_text()), signal.SIGKILL)
        code, _, err = await ended(process)
        assert code == 128 + signal.SIGKILL, err
    lease = await the_opened(bench, since, PORT)
    closed = await bench.wait_fact(What.LEASE_CLOSED, PORT, since=since, lease=lease.lease)
    assert closed.data["outcomes"][DRIVE] == ["recovered"]


async def test_p2_a_hold_that_is_killed_itself_takes_its_command_with_it_and_is_closed_and_verified(
    bench: Bench, tmp_path: Path
) -> None:
    started = tmp_path / "started"
    since = bench.mark()
    async with keeps(bench, PORT, resets=False):
        process = await holding(bench, FOR_LONG, started)
        process.kill()
        await asyncio.wait_for(process.communicate(), COMMAND_S)
        lease = await the_opened(bench, since, PORT)
        await bench.wait_fact(What.LEASE_CLOSED, PORT, since=since, lease=lease.lease)
        await bench.eventually(lambda: gone(int(started.read_text())), "the command has ended")


async def test_a_terminated_hold_ends_its_command_and_releases(bench: Bench, tmp_path: Path) -> None:
    started = tmp_path / "started"
    async with keeps(bench, PORT, resets=False):
        process = await holding(bench, FOR_LONG, started)
        process.terminate()
        assert (await ended(process))[0] == 128 + signal.SIGTERM
        assert not psutil.pid_exists(int(started.read_text()))


async def test_p7_a_hold_that_a_recovery_absorbs_kills_its_command(bench: Bench, tmp_path: Path) -> None:
    started, survived = tmp_path / "started", tmp_path / "survived"
    async with keeps(bench, PORT, resets=True):
        process = await holding(bench, f"{FOR_LONG}; touch {survived}", started)
        await bench.inject("dpc", PORT, reason="uncorrectable")
        code, _, err = await ended(process)
        assert code == ExitCode.HELD, err
        assert not psutil.pid_exists(int(started.read_text()))
    assert not survived.exists()


async def test_p1_what_a_command_left_disabled_is_rolled_forward_before_the_mask_ends(bench: Bench) -> None:
    async with keeps(bench, PORT, resets=False):
        down = f"{HOLDFAST} inject link_down {PORT} && {HOLDFAST} inject link_up {PORT} --after 0.6"
        assert (await Cli(bench).run("hold", PORT, "--", "sh", "-c", down))[0] == 0
        assert await link_active(bench)


async def test_a_second_hold_is_refused_and_names_the_first(bench: Bench, tmp_path: Path) -> None:
    async with keeps(bench, PORT, resets=False):
        process = await holding(bench, FOR_LONG, tmp_path / "started")
        (lease,) = [one for one in (await bench.leases()).leases if one.rank is Rank.EXTERNAL]
        ran = tmp_path / "ran"
        code, _, err = await Cli(bench).run("hold", DRIVE, "--", "touch", str(ran))
        assert code == ExitCode.HELD
        assert lease.id in err
        assert not ran.exists()
        process.terminate()
        await ended(process)


@pytest.mark.parametrize(("method", "masks"), [("flr", False), ("bus", True)])
async def test_p1_a_reset_by_flr_masks_nothing_and_one_by_bus_reset_does(
    bench: Bench, method: str, masks: bool
) -> None:
    since = bench.mark()
    async with keeps(bench, PORT, resets=masks):
        code, out, err = await Cli(bench).run("reset", DRIVE, "--method", method, "--json")
        assert code == ExitCode.OK, err
        outcome = json.loads(out)
        assert outcome["verdicts"][DRIVE] == "kept"
    await bench.wait_fact(What.RECOVERY_CLOSED, since=since, lease=outcome["lease"])
    assert bool(bench.facts(What.LEASE_MASKED, PORT, since)) is masks
    told = [
        fact.data["step"] for fact in bench.facts(What.RECOVERY_VOTE, since=since) if fact.data["function"] == DRIVE
    ]
    assert told == ["reset_prepare", "reset_done"]


@pytest.mark.parametrize("method", some_of(["flr", "bus"], 1))
async def test_p6_a_reset_from_inside_a_hold_runs_inside_its_lease(bench: Bench, method: str) -> None:
    since = bench.mark()
    async with keeps(bench, PORT, resets=method == "bus"):
        reset = f"{HOLDFAST} reset {DRIVE} --method {method} --json"
        code, out, err = await Cli(bench).run("hold", PORT, "--", "sh", "-c", reset)
        assert code == ExitCode.OK, err
    inner = json.loads(out.splitlines()[0])
    assert inner["verdicts"][DRIVE] == "kept"
    lease = await the_opened(bench, since, PORT)
    assert lease.data["rank"] == "external"
    await bench.wait_fact(What.LEASE_CLOSED, PORT, since=since, lease=lease.lease)
    facts = bench.facts(What.LEASE_EXECUTED, PORT, since)
    wrote = [fact for fact in facts if fact.data["operations"] and fact.cause != "slot"]
    assert wrote
    assert {fact.lease for fact in wrote} == {lease.lease}


async def test_p4_another_card_after_a_hold_is_told_by_the_exit_code(bench: Bench) -> None:
    before = (await bench.registry())[DRIVE]
    async with promises(bench):
        swap = f"""{HOLDFAST} inject swap {PORT} --card '0.serial="55-cd-2e-41-50-00-00-99"'"""
        code, _, err = await Cli(bench).run("hold", PORT, "--", "sh", "-c", swap)
        assert code == ExitCode.REPLACED, err

        async def registered_anew() -> bool | None:
            return (await bench.registry())[DRIVE].generation == before.generation + 1 or None

        await bench.eventually(registered_anew, "the other card is registered")
        await quiet(bench, PORT)
    assert (await bench.registry())[DRIVE].identity.serial == 0x55CD2E4150000099
