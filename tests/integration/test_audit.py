"""Issue 4, must show 4: what an audit finds of a live host, of dumps and of trees, and that it raises no false alarm."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from services.console._exit import ExitCode
from shared.pcie import Address, Capabilities
from shared.pcie import registers as reg
from shared.pcie.registers import Register
from shared.protocol import subjects
from shared.protocol.fabric import Dump, Dumped, DumpReply
from shared.protocol.facts import What
from tests.integration.campaign import some_of
from tests.integration.cli import Cli, ended, exists
from tests.integration.fleet import Bench
from tests.integration.hardware import poked
from tests.integration.promises import keeps

pytestmark = pytest.mark.asyncio(loop_scope="session")

PORT: Final = "0000:00:0d.0"
DRIVE: Final = "0000:0d:00.0"
CONTAINED: Final = "0000:00:02.0"
BEHIND: Final = "0000:02:00.0"
HOLDFAST: Final = f"{sys.executable} -m services.console"
ALL_ONES: Final = 0xFFFF_FFFF


async def audit(bench: Bench | None, *options: str) -> tuple[int, dict[str, Any]]:
    """Run an audit; return its exit code and its report."""
    code, out, err = await Cli(bench).run("audit", *options, "--json")
    assert code in {ExitCode.OK, ExitCode.FAILED}, err
    return code, json.loads(out)


def checks(report: dict[str, Any], function: str | None = None) -> list[str]:
    """Name what was found, but for notes."""
    return [
        one["check"] for one in report["findings"]
        if one["severity"] != "note" and function in {None, one["function"]}
    ]  # fmt: skip


async def capabilities(bench: Bench, function: str) -> Capabilities:
    return (await bench.topology()).get(Address.parse(function)).capabilities


# --- Live ---


async def test_p10_before_during_and_after_a_lease_a_live_audit_raises_no_alarm(bench: Bench, tmp_path: Path) -> None:
    async with keeps(bench, PORT):
        code, report = await audit(bench)
        assert (code, checks(report), report["explained"]) == (ExitCode.OK, [], [])
        assert report["functions"] == len((await bench.topology()).functions)
        started, finish = tmp_path / "started", tmp_path / "finish"
        script = f"touch {started}; while [ ! -e {finish} ]; do sleep 0.02; done"
        holding = await Cli(bench).start("hold", PORT, "--", "sh", "-c", script)
        await bench.eventually(lambda: exists(started), "the command runs")
        (lease,) = (await bench.leases()).leases
        code, report = await audit(bench)
        assert (code, checks(report)) == (ExitCode.OK, [])
        (explained,) = report["explained"]
        assert (explained["finding"]["function"], explained["finding"]["check"]) == (PORT, "masked")
        assert lease.id in explained["by"]
        finish.touch()
        assert (await ended(holding))[0] == 0
        code, report = await audit(bench)
        assert (code, checks(report), report["explained"]) == (ExitCode.OK, [], [])


async def test_p10_in_the_middle_of_a_recovery_its_lease_explains_containment_and_mask(bench: Bench) -> None:
    await bench.hang(BEHIND, "error_detected", name="mlx5_core")
    async with keeps(bench, CONTAINED, resets=True):
        since = bench.mark()
        await bench.inject("dpc", CONTAINED, reason="uncorrectable")
        started = await bench.wait_fact(What.RECOVERY_STARTED, CONTAINED, since=since)
        code, report = await audit(bench)
        assert (code, checks(report)) == (ExitCode.OK, [])
        explained = {one["finding"]["check"] for one in report["explained"] if one["finding"]["function"] == CONTAINED}
        assert "masked" in explained
        assert explained <= {"contained", "masked"}, "when it looked, the port may have been released already"
        assert all(started.lease in one["by"] for one in report["explained"])
        await bench.answer(BEHIND, "mlx5_core")
        await bench.closed(CONTAINED, started.lease)
    assert (await audit(bench))[0] == ExitCode.OK


@pytest.mark.parametrize(
    ("register", "capability", "value", "check"),
    some_of(
        [
            pytest.param(reg.UNCORRECTABLE_MASK, "aer", ALL_ONES, "uncorrectable_masked", id="uncorrectable"),
            pytest.param(reg.CORRECTABLE_MASK, "aer", ALL_ONES, "correctable_masked", id="correctable"),
            pytest.param(reg.BRIDGE_CONTROL, "", 0, "errors_not_forwarded", id="bridge SERR"),
            pytest.param(reg.SLOT_CONTROL, "express", 0x0020, "masked", id="PDCE and DLLSCE"),
        ],
        3,
    ),
)
async def test_what_a_tool_left_behind_the_fabrics_back_is_found_and_is_no_finding_once_put_right(
    bench: Bench, register: Register, capability: str, value: int, check: str
) -> None:
    base = getattr(await capabilities(bench, PORT), capability) if capability else 0
    bench.kill("hotplug")  # which puts a slot right at its next look
    async with poked(bench, PORT, register, value, base):
        code, report = await audit(bench)
        assert (code, checks(report, PORT)) == (ExitCode.FAILED, [check])
        (finding,) = [one for one in report["findings"] if one["check"] == check]
        assert finding["register"] == register.name
        assert finding["why"]
        assert finding["todo"]
    await bench.restart("hotplug")
    assert (await audit(bench))[0] == ExitCode.OK


# --- Dumps and trees ---


def _edited(dump: str, function: str, offset: int, byte: int) -> str:
    """Change one byte of a function in a dump, as `setpci` would have before it was made."""
    start = dump.index(f"{function} ")
    row = re.compile(rf"^{offset & ~0xF:02x}: .*$", re.MULTILINE)
    found = row.search(dump, start)
    assert found is not None
    before, after = found[0].split(": ")
    cells = after.split()
    cells[offset & 0xF] = f"{byte:02x}"
    return dump[: found.start()] + f"{before}: {' '.join(cells)}" + dump[found.end() :]


async def _dump(bench: Bench) -> str:
    code, out, err = await Cli(bench).run("dump")
    assert code == 0, err
    return out


async def test_a_healthy_dump_is_clean_and_one_edited_byte_of_it_is_found(bench: Bench, tmp_path: Path) -> None:
    file, dump = tmp_path / "dump", await _dump(bench)
    file.write_text(dump)
    code, report = await audit(None, "--lspci", str(file))
    assert (code, checks(report)) == (ExitCode.OK, [])
    assert report["functions"] == len((await bench.topology()).functions)
    at = (await capabilities(bench, PORT)).express + reg.SLOT_CONTROL.offset
    file.write_text(_edited(_edited(dump, PORT, at, 0x20), PORT, at + 1, 0))
    code, report = await audit(None, "--lspci", str(file))
    assert (code, checks(report)) == (ExitCode.FAILED, ["masked"])
    assert [one["function"] for one in report["findings"] if one["check"] == "masked"] == [PORT]


@pytest.mark.skipif(shutil.which("lspci") is None, reason="lspci is not installed (apt-get install pciutils)")
async def test_the_real_lspci_reads_the_edited_dump_and_what_it_writes_of_it_is_judged_the_same(
    bench: Bench, tmp_path: Path
) -> None:
    caps = await capabilities(bench, PORT)
    dump = _edited(await _dump(bench), PORT, caps.express + reg.SLOT_CONTROL.offset, 0x20)
    for offset in range(4):
        dump = _edited(dump, PORT, caps.aer + reg.UNCORRECTABLE_MASK.offset + offset, 0xFF)
    lspci = await asyncio.create_subprocess_exec(
        "lspci", "-D", "-F", "/dev/stdin", "-vvv", "-xxxx",
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    told, _ = await asyncio.wait_for(lspci.communicate(dump.encode()), 10)
    block = next(one for one in told.decode().split("\n\n") if one.startswith(PORT))
    assert "PresDet- CmdCplt- HPIrq+ LinkChg+" in block
    assert "DLP+ SDES+ TLP+" in " ".join(line for line in block.splitlines() if "UEMsk" in line)
    file = tmp_path / "again"
    file.write_bytes(told)
    code, report = await audit(None, "--lspci", str(file))
    assert code == ExitCode.FAILED
    assert checks(report, PORT) == checks(report) == ["half_masked", "uncorrectable_masked"]


@pytest.mark.campaign
async def test_a_dump_made_during_a_lease_shows_the_mask_and_the_audit_says_that_nothing_explains_it(
    bench: Bench, tmp_path: Path
) -> None:
    file = tmp_path / "dump"
    async with keeps(bench, PORT, resets=False):
        done = await Cli(bench).run("hold", PORT, "--", "sh", "-c", f"{HOLDFAST} dump > {file}")
        assert done[0] == 0, done
    code, out, err = await Cli(None).run("audit", "--lspci", str(file))
    assert code == ExitCode.FAILED
    assert PORT in out
    assert "do not tell who holds a lease" in err


async def test_a_tree_like_that_of_sysfs_is_judged_the_same(bench: Bench, tmp_path: Path) -> None:
    topology = await bench.topology()
    for function in topology:
        reply = await bench.request(subjects.fabric(bench.host, "dump"), Dump(function=function.address), DumpReply)
        assert isinstance(reply, Dumped)
        own = tmp_path / "devices" / str(function.address)
        own.mkdir(parents=True)
        (own / "config").write_bytes(reply.config)
        (own / "driver").symlink_to(tmp_path)
    code, report = await audit(None, "--sysfs", str(tmp_path / "devices"))
    assert (code, checks(report), report["functions"]) == (ExitCode.OK, [], len(topology.functions))
    config = tmp_path / "devices" / PORT / "config"
    image = bytearray(config.read_bytes())
    at = topology.get(Address.parse(PORT)).capabilities.express
    image[at + reg.SLOT_CONTROL.offset] &= ~int(reg.SlotControl.HOTPLUG_INTERRUPT_ENABLE)
    image[at + reg.LINK_CONTROL.offset] |= int(reg.LinkControl.LINK_DISABLE)
    config.write_bytes(image)
    code, report = await audit(None, "--sysfs", str(tmp_path / "devices"))
    assert (code, sorted(checks(report, PORT))) == (ExitCode.FAILED, ["interrupts_off", "link_disabled"])
    assert checks(report) == checks(report, PORT)
