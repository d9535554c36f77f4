"""Issue 4: the operator's verbs by the command line: leases, quarantines, holds with options, resets and dry runs."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio

from services.console._exit import ExitCode
from shared.pcie.registers import BRIDGE_CONTROL, COMMAND, DEVICE_CONTROL, BridgeControl, Command, DeviceControl
from shared.protocol.facts import What
from tests.integration.cli import Cli, ended, exists
from tests.integration.fleet import Bench, start
from tests.integration.promises import keeps, opened, promises, quiet

pytestmark = pytest.mark.asyncio(loop_scope="module")

HOLDFAST = f"{sys.executable} -m services.console"
PORT, CARD = "0000:00:01.0", "0000:01:00.0"
NIC = ("0000:02:00.0", "0000:02:00.1")
SOLDERED = "0000:03:00.0"
BRIDGE, BUS = "0000:04:00.0", ("0000:05:00.0", "0000:05:04.0", "0000:05:08.0")
STORMY, WILD = "0000:00:06.0", "0000:06:00.0"
STUCK, HUNG = "0000:00:07.0", "0000:07:00.0"
INTEGRATED, HOST_BRIDGE = "0000:00:1a.0", "0000:00:00.0"


def port(number: int, *, last: int = 0, more: str = "slot = {{number = {number}}}") -> str:
    return f"""
[[function]]
address = "0000:00:{number:02x}.0"
kind = "root_port"
bus = [{number:#04x}, {last or number:#04x}]
vendor = 0x8086
device = 0x6f04
dpc = true
{more.format(number=number)}
"""


def card(address: str, driver: str = "nvme", *, kind: str = "endpoint", more: str = "") -> str:
    serial = f'serial = "00-11-22-33-44-55-{address[5:7]}-00"' if kind == "endpoint" else ""
    return f"""
[[function]]
address = "{address}"
kind = "{kind}"
vendor = 0x144d
device = 0xa824
class = 0x010802
{serial}
bars = [0x4000]
driver = {{name = "{driver}"}}
{more}
"""


PCI_BRIDGE: Final = f"""
[[function]]
address = "{BRIDGE}"
kind = "pci_bridge"
bus = [0x05, 0x05]
vendor = 0x104c
device = 0x8240
"""
TOPOLOGY: Final = (
    port(1) + card(CARD)
    + port(2) + card(NIC[0], "mlx5_core") + card(NIC[1], "mlx5_core")
    + port(3, more="") + card(SOLDERED, "igb")
    + port(4, last=5, more="") + PCI_BRIDGE + "".join(card(one, "8139too", kind="conventional") for one in BUS)
    + port(6) + card(WILD)
    + port(7) + card(HUNG)
    + card(INTEGRATED, "ioatdma", kind="integrated_endpoint", more="flr = true")
    + """
[[function]]
address = "0000:00:00.0"
kind = "integrated_endpoint"
vendor = 0x8086
device = 0x2020
class = 0x060000
"""
)  # fmt: skip


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    """One fleet for all tests here: each verb has a port of its own. Drivers that hang are not waited for by chance."""
    patient = {"HOLDFAST_DRIVER_S": "3600", "HOLDFAST_READY_S": "2", "HOLDFAST_LINK_S": "1"}
    async with start(TOPOLOGY, tmp_path_factory.mktemp("verbs"), environment=patient) as running:
        yield running


async def holding(bench: Bench, directory: Path, *options: str, port: str = PORT) -> asyncio.subprocess.Process:
    """Start a hold whose command runs until `finish` is there."""
    script = f"touch {directory}/started; while [ ! -e {directory}/finish ]; do sleep 0.02; done"
    process = await Cli(bench).start("hold", port, *options, "--", "sh", "-c", script)
    await bench.eventually(lambda: exists(directory / "started"), "the command runs")
    return process


# --- lease ---


async def test_a_lease_is_shown_by_a_part_of_its_id_without_its_token_and_after_its_end_with_its_outcomes(
    bench: Bench, tmp_path: Path
) -> None:
    async with keeps(bench, PORT, resets=False):
        process = await holding(bench, tmp_path)
        (lease,) = (await bench.leases()).leases
        part = lease.id[-10:]
        code, out, err = await Cli(bench).run("lease", "show", part)
        assert code == ExitCode.OK, err
        for told in (lease.id, PORT, "external", "reset", "hold", "struck out", "PDCE DLLSCE", CARD):
            assert told in out
        shown = await Cli(bench).json("lease", "show", lease.id)
        assert (shown["id"], shown["token"], shown["reach"]) == (lease.id, 0, "reset")
        (tmp_path / "finish").touch()
        assert (await ended(process))[0] == 0
    code, out, err = await Cli(bench).run("lease", "show", part)
    assert (code, "has ended" in err) == (ExitCode.OK, True)
    assert CARD in out
    assert "recovered" in out
    shown = await Cli(bench).json("lease", "show", lease.id)
    assert {one["function"]: one["result"] for one in shown["outcomes"]}[CARD] == "recovered"


@pytest.mark.campaign
async def test_a_lease_that_nobody_knows_is_named_and_nothing_is_broken(bench: Bench) -> None:
    for verb in ("show", "break"):
        code, _, err = await Cli(bench).run("lease", verb, "no-such-lease")
        assert code == ExitCode.ABSENT
        assert "no-such-lease" in err
    code, _, err = await Cli(bench).run("lease", "break", "")
    assert code == ExitCode.USAGE


async def asked_on_a_terminal(bench: Bench, answer: str, *arguments: str) -> tuple[int, str, str]:
    """Run a command whose stdin is a terminal, on which `answer` is typed."""
    ours, theirs = os.openpty()
    try:
        os.write(ours, answer.encode())
        return await ended(await Cli(bench).start(*arguments, stdin=theirs))
    finally:
        os.close(ours)
        os.close(theirs)


async def test_before_a_lease_is_broken_its_holder_and_its_cause_are_named_and_a_no_changes_nothing(
    bench: Bench, tmp_path: Path
) -> None:
    async with keeps(bench, PORT, resets=False):
        process = await holding(bench, tmp_path)
        (lease,) = (await bench.leases()).leases
        for answer in ("n\n", "\x04"):  # the latter is the end of input
            code, out, err = await asked_on_a_terminal(bench, answer, "lease", "break", lease.id[-10:], "--json")
            assert (code, out) == (ExitCode.USAGE, ""), err  # what --json writes is no place for a question
            assert f"Break {lease.id} on {PORT} (external, hold, held by {lease.holder})?" in err
            assert "nothing was changed" in err
        assert [one.id for one in (await bench.leases()).leases] == [lease.id]
        code, _, err = await asked_on_a_terminal(bench, "y\n", "lease", "break", lease.id)
        assert code == ExitCode.OK, err
        assert (await ended(process))[0] == ExitCode.HELD


async def test_p2_p7_a_broken_hold_ends_its_command_and_the_port_is_unmasked(bench: Bench, tmp_path: Path) -> None:
    async with keeps(bench, PORT, resets=False):
        process = await holding(bench, tmp_path, "--after", f"touch {tmp_path}/after")
        (lease,) = (await bench.leases()).leases
        code, _, err = await Cli(bench).run("lease", "break", lease.id, "--yes")
        assert code == ExitCode.OK, err
        assert f"{CARD} kept" in err
        code, _, err = await ended(process)
        assert code == ExitCode.HELD
        assert "--after was not run" in " ".join(err.split())
    assert not (tmp_path / "after").exists()


async def test_p2_a_recovery_that_waits_for_a_driver_that_hangs_is_broken_and_the_exit_code_says_how_it_ended(
    bench: Bench,
) -> None:
    await bench.inject("driver", HUNG, driver={"name": "nvme", "never": ["error_detected"]})
    since = bench.mark()
    await bench.inject("dpc", STUCK, reason="uncorrectable")
    started = await bench.wait_fact(What.RECOVERY_STARTED, STUCK, since=since)
    assert started.lease is not None
    code, out, err = await Cli(bench).run("lease", "break", started.lease, "--json")
    assert code == ExitCode.FAILED, err
    assert json.loads(out)["verdicts"][HUNG] == "failed"
    await bench.inject("driver", HUNG, driver={"name": "nvme"})


# --- quarantine ---


async def test_a_quarantine_is_listed_with_why_and_what_holds_it_down_and_released_by_its_port(bench: Bench) -> None:
    assert (await Cli(bench).run("quarantine", "list"))[1].startswith("no port is in quarantine")
    await bench.inject("unstable_link", STORMY, for_s=0.05, count=0)
    since = bench.mark()
    await bench.inject("dpc", STORMY, reason="uncorrectable")
    await bench.wait_fact(What.QUARANTINE_ENTERED, STORMY, since=since, timeout_s=60)
    shown = await Cli(bench).json("quarantine", "list")
    assert (shown["port"], shown["slot"], shown["held_down_by"]) == (STORMY, 6, ["DPC"])
    assert WILD in shown["behind"]
    assert shown["why"]
    code, out, _ = await Cli(bench).run("doctor")
    assert code == ExitCode.FAILED
    assert f"holdfast quarantine release {STORMY}" in " ".join(out.split())
    assert f"mask of {STORMY}" not in out, "the quarantine answers for it"
    status = await Cli(bench).json("status")
    (row,) = [one for one in status["ports"] if one["port"] == STORMY]
    assert row["quarantine"] == shown["why"]
    code, out, err = await Cli(bench).run("audit", "--json")
    report = json.loads(out)
    assert code == ExitCode.OK, "what the quarantine holds down is no finding"
    assert any(f"quarantine of {STORMY}" in one["by"] for one in report["explained"])
    code, _, err = await Cli(bench).run("reset", WILD, "--dry-run")
    assert code == ExitCode.POLICY, err
    await bench.inject("unstable_link", STORMY, for_s=0.0, count=1)  # cured: it drops no more
    code, _, err = await Cli(bench).run("quarantine", "release", "Slot(6)", "--yes")
    assert code == ExitCode.OK, err
    assert f"{WILD} kept" in err
    await quiet(bench, STORMY)
    assert (await bench.leases()).quarantines == ()


@pytest.mark.campaign
async def test_a_port_that_is_in_no_quarantine_is_not_released(bench: Bench) -> None:
    code, _, err = await Cli(bench).run("quarantine", "release", PORT)
    assert code == ExitCode.ABSENT
    assert "holdfast quarantine list" in err


# --- hold ---


async def test_p4_a_hold_that_accepts_another_revision_keeps_the_device_and_one_that_does_not_says_replaced(
    bench: Bench,
) -> None:
    before = (await bench.registry())[CARD]

    async def reload(revision: int, *options: str) -> int:
        swap = f"{HOLDFAST} inject swap {PORT} --card 0.revision={revision}"
        code, _, err = await Cli(bench).run("hold", PORT, *options, "--", "sh", "-c", swap)
        await quiet(bench, PORT)
        assert code in {ExitCode.OK, ExitCode.REPLACED}, err
        return code

    async with promises(bench):
        assert await reload(2, "--accept", "revision") == ExitCode.OK
        assert (await bench.registry())[CARD].generation == before.generation
        assert await reload(3) == ExitCode.REPLACED

        async def registered_anew() -> bool | None:
            return (await bench.registry())[CARD].generation == before.generation + 1 or None

        await bench.eventually(registered_anew, "the other card is registered")
        await quiet(bench, PORT)


async def test_p2_errors_are_quiet_while_a_hold_asks_for_that_and_reported_again_after_it(
    bench: Bench, tmp_path: Path
) -> None:
    caps = next(one.capabilities for one in await bench.topology() if str(one.address) == PORT)
    reporting = DeviceControl.FATAL_REPORTING | DeviceControl.NONFATAL_REPORTING

    async def heard() -> tuple[bool, bool, bool]:
        command = await bench.read(PORT, COMMAND)
        control = await bench.read(PORT, DEVICE_CONTROL, caps.express)
        bridge = await bench.read(PORT, BRIDGE_CONTROL)
        assert command is not None
        assert control is not None
        assert bridge is not None
        return bool(command & Command.SERR), bool(control & reporting), bool(bridge & BridgeControl.SERR)

    async with keeps(bench, PORT, resets=False):
        assert await heard() == (True, True, True)
        process = await holding(bench, tmp_path, "--quiet-errors")
        assert await heard() == (False, False, False)
        _, out, _ = await Cli(bench).run("lease", "show", (await bench.leases()).leases[0].id)
        assert "SERR# of Command" in out
        assert (await Cli(bench).run("audit"))[0] == ExitCode.OK
        (tmp_path / "finish").touch()
        assert (await ended(process))[0] == 0
        assert await heard() == (True, True, True)


async def test_p2_a_command_that_runs_over_its_max_is_killed_after_runs_and_the_lease_is_released(
    bench: Bench, tmp_path: Path
) -> None:
    async with keeps(bench, PORT, resets=False):
        code, _, err = await Cli(bench).run(
            "hold", PORT, "--max", "0.5", "--before", f"touch {tmp_path}/before", "--after", f"touch {tmp_path}/after",
            "--", "sleep", "600",
        )  # fmt: skip
        assert code == ExitCode.OVERDUE
        assert "--max 0.5 s" in err
        assert (tmp_path / "before").exists()
        assert (tmp_path / "after").exists()
    assert (await bench.leases()).leases == ()


@pytest.mark.campaign
async def test_a_command_that_cannot_be_found_takes_no_lease(bench: Bench) -> None:
    since = bench.mark()
    code, _, err = await Cli(bench).run("hold", PORT, "--", "no-such-tool")
    assert code == ExitCode.USAGE
    assert "no-such-tool" in err
    assert not opened(bench, since, PORT)


# --- reset ---


async def plan(bench: Bench, function: str, *options: str) -> tuple[int, dict[str, Any], str]:
    code, out, err = await Cli(bench).run("reset", function, "--dry-run", *options, "--json")
    return code, json.loads(out), err


@pytest.mark.parametrize(
    ("function", "options", "method", "hits", "masked"),
    [
        pytest.param(NIC[0], (), "slot", dict.fromkeys(NIC, "mlx5_core"), ["0000:00:02.0"], id="two functions"),
        pytest.param(SOLDERED, (), "bus", {SOLDERED: "igb"}, [], id="a slotless root port"),
        pytest.param(INTEGRATED, (), "flr", {INTEGRATED: "ioatdma"}, [], id="an integrated endpoint"),
        pytest.param(BUS[0], ("--domain",), "bus", dict.fromkeys(BUS, "8139too"), [], id="a conventional bus"),
    ],
)
async def test_a_dry_run_shows_every_function_and_driver_that_would_be_hit_and_changes_nothing(
    bench: Bench, function: str, options: tuple[str, ...], method: str, hits: dict[str, str], masked: list[str]
) -> None:
    since = bench.mark()
    code, told, err = await plan(bench, function, *options)
    assert code == ExitCode.OK, err
    assert (told["method"], told["masked"], told["refused"]) == (method, masked, None)
    assert {hit["function"]: hit["driver"] for hit in told["hits"]} == hits
    assert not opened(bench, since)
    assert not bench.facts(What.RECOVERY_STARTED, since=since)


async def test_a_dry_run_that_would_reach_too_far_is_refused_and_still_shows_how_far(bench: Bench) -> None:
    code, told, err = await plan(bench, BUS[1])
    assert code == ExitCode.POLICY
    assert "--domain" in told["refused"]
    assert "--domain" in err
    assert {hit["function"]: hit["beyond"] for hit in told["hits"]} == {one: one != BUS[1] for one in BUS}
    code, out, _ = await Cli(bench).run("reset", BUS[1], "--dry-run")
    assert code == ExitCode.POLICY
    assert all(one in out for one in BUS)
    assert "needs --domain" in out


@pytest.mark.parametrize(
    ("function", "said"),
    [pytest.param(HOST_BRIDGE, "host bridge", id="host bridge"), pytest.param(BRIDGE, "is a bridge", id="bridge")],
)
async def test_what_is_never_reset_is_refused_with_why(bench: Bench, function: str, said: str) -> None:
    code, told, err = await plan(bench, function)
    assert code == ExitCode.POLICY
    assert said in err
    assert said in told["refused"]
    assert told["hits"] == []


@pytest.mark.campaign
async def test_a_reset_of_the_whole_bus_is_done_when_it_is_asked_for(bench: Bench) -> None:
    code, _, err = await Cli(bench).run("reset", BUS[2])
    assert code == ExitCode.POLICY
    async with promises(bench):
        code, out, err = await Cli(bench).run("reset", BUS[2], "--domain", "--json")
        assert code == ExitCode.OK, err
    verdicts = json.loads(out)["verdicts"]
    assert {one: verdicts[one] for one in BUS} == dict.fromkeys(BUS, "kept")


@pytest.mark.campaign
async def test_the_kinds_of_functions_have_names_in_the_tree(bench: Bench) -> None:
    _, out, _ = await Cli(bench).run("topology")
    for told in (
        f"{BRIDGE}  pci bridge",
        f"{BUS[0]}  conventional device",
        f"{INTEGRATED}  integrated endpoint",
        f"{HOST_BRIDGE}  host bridge",
    ):
        assert told in out


async def test_a_link_that_comes_back_narrower_is_kept_and_told_to_be_degraded(bench: Bench) -> None:
    await bench.inject("degraded_link", "0000:00:02.0", speed=1, width=1)
    code, out, err = await Cli(bench).run("reset", NIC[0], "--method", "bus", "--json")
    assert code == ExitCode.OK, err
    assert json.loads(out)["degraded"] == list(NIC)
    code, out, _ = await Cli(bench).run("doctor")
    assert code == ExitCode.OK
    assert "both ends can do 8 GT/s x4" in " ".join(out.split())
