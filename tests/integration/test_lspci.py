"""Must show 12: what `holdfast dump` writes, the real lspci reads without complaint, and reads the same as the fabric."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from typing import Final, TypeAlias

import pytest

from shared.pcie import Address, Function
from shared.pcie import registers as reg
from shared.pcie.registers import Register
from shared.protocol.facts import What
from tests.integration.cli import COMMAND_S, Cli, ended, exists
from tests.integration.fleet import Bench
from tests.integration.promises import keeps

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.skipif(shutil.which("lspci") is None, reason="lspci is not installed (apt-get install pciutils)"),
]

HELD: Final = "0000:00:0d.0"
CONTAINED: Final = "0000:00:02.0"

Bits: TypeAlias = dict[str, tuple[int, int]]  # name as lspci prints it -> (lowest bit, width)

# Spelled out from the specification once more, on purpose: §7.5.3.10, §7.5.3.11, §7.8.4, §7.9.14.
UNCORRECTABLE: Final[Bits] = {
    "DLP": (4, 1), "SDES": (5, 1), "TLP": (12, 1), "FCP": (13, 1), "CmpltTO": (14, 1), "CmpltAbrt": (15, 1),
    "UnxCmplt": (16, 1), "RxOF": (17, 1), "MalfTLP": (18, 1), "ECRC": (19, 1), "UnsupReq": (20, 1), "ACSViol": (21, 1),
}  # fmt: skip
CORRECTABLE: Final[Bits] = {
    "RxErr": (0, 1), "BadTLP": (6, 1), "BadDLLP": (7, 1), "Rollover": (8, 1), "Timeout": (12, 1),
    "AdvNonFatalErr": (13, 1),
}  # fmt: skip
SLOT: Final[dict[str, tuple[Register, Bits]]] = {
    "SltCtl": (reg.SLOT_CONTROL, {
        "AttnBtn": (0, 1), "PwrFlt": (1, 1), "MRL": (2, 1), "PresDet": (3, 1), "CmdCplt": (4, 1), "HPIrq": (5, 1),
        "LinkChg": (12, 1), "Power": (10, 1), "Interlock": (11, 1),
    }),
    "SltSta": (reg.SLOT_STATUS, {
        "AttnBtn": (0, 1), "PowerFlt": (1, 1), "MRL": (5, 1), "CmdCplt": (4, 1), "PresDet": (6, 1),
        "Interlock": (7, 1), "Changed MRL": (2, 1), "Changed PresDet": (3, 1), "Changed LinkState": (8, 1),
    }),
}  # fmt: skip
AER: Final[dict[str, tuple[Register, Bits]]] = {
    "UESta": (reg.UNCORRECTABLE_STATUS, UNCORRECTABLE),
    "UEMsk": (reg.UNCORRECTABLE_MASK, UNCORRECTABLE),
    "UESvrt": (reg.UNCORRECTABLE_SEVERITY, UNCORRECTABLE),
    "CESta": (reg.CORRECTABLE_STATUS, CORRECTABLE),
    "CEMsk": (reg.CORRECTABLE_MASK, CORRECTABLE),
    "AERCap": (reg.AER_CONTROL, {"First Error Pointer": (0, 5)}),
}
ROOT: Final[dict[str, tuple[Register, Bits]]] = {
    "RootCmd": (reg.ROOT_ERROR_COMMAND, {"CERptEn": (0, 1), "NFERptEn": (1, 1), "FERptEn": (2, 1)}),
    "RootSta": (reg.ROOT_ERROR_STATUS, {
        "CERcvd": (0, 1), "MultCERcvd": (1, 1), "UERcvd": (2, 1), "MultUERcvd": (3, 1), "FirstFatal": (4, 1),
        "NonFatalMsg": (5, 1), "FatalMsg": (6, 1),
    }),
    "ErrorSrc": (reg.ERROR_SOURCE, {"ERR_COR": (0, 16), "ERR_FATAL/NONFATAL": (16, 16)}),
}  # fmt: skip
DPC: Final[dict[str, tuple[Register, Bits]]] = {
    "DpcCtl": (reg.DPC_CONTROL, {
        "Trigger": (0, 2), "Cmpl": (2, 1), "INT": (3, 1), "ErrCor": (4, 1), "PoisonedTLP": (5, 1),
        "SwTrigger": (6, 1), "DL_ActiveErr": (7, 1),
    }),
    "DpcSta": (reg.DPC_STATUS, {
        "Trigger": (0, 1), "Reason": (1, 2), "INT": (3, 1), "RPBusy": (4, 1), "TriggerExt": (5, 2),
        "RP PIO ErrPtr": (8, 5),
    }),
    "Source": (reg.DPC_SOURCE, {"Source": (0, 16)}),
}  # fmt: skip

_REGISTER: Final = re.compile(r"^\t\t(\w+):", re.MULTILINE)
_FIELD: Final = re.compile(r"([A-Z][\w/]*(?: [A-Z]\w*)*)(?:([+-])|: ?([0-9a-f]+))")


async def dumped(bench: Bench, *names: str) -> dict[str, dict[str, dict[str, int]]]:
    """Dump, have lspci read it, assert that it has nothing to complain of; return what it read, by function."""
    code, dump, err = await Cli(bench).run("dump", *names)
    assert code == 0, err
    lspci = await asyncio.create_subprocess_exec(
        "lspci", "-D", "-F", "/dev/stdin", "-vvv", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    told, complaints = await asyncio.wait_for(lspci.communicate(dump.encode()), COMMAND_S)
    text = told.decode()
    assert lspci.returncode == 0
    assert [line for line in complaints.decode().splitlines() if "libkmod" not in line] == []  # no modules here
    assert "!!!" not in text, text
    assert "<chain" not in text, text  # "<chain looped>", "<chain broken>"
    assert "<access denied>" not in text, text
    assert "Unknown header" not in text, text
    blocks = {block.split(" ", maxsplit=1)[0]: block for block in text.strip().split("\n\n")}
    return {address: _registers(block) for address, block in blocks.items()}


def _registers(block: str) -> dict[str, dict[str, int]]:
    """Split what lspci printed of one function: register -> field -> value."""
    starts = [(match[1], match.start(), match.end()) for match in _REGISTER.finditer(block)]
    ends = [start for _, start, _ in starts[1:]] + [len(block)]
    found: dict[str, dict[str, int]] = {}
    for (name, _, begin), end in zip(starts, ends, strict=True):
        text = block[begin:end]
        if name == "Source":
            text = f"Source: {text.strip()}"
        before, changed, after = text.partition("Changed:")
        fields = _fields(before.replace("Enable:", "").replace("Control:", "").replace("Status:", ""))
        if changed:
            fields |= {f"Changed {field}": value for field, value in _fields(after).items()}
        found[name] = fields
    return found


def _fields(text: str) -> dict[str, int]:
    return {name: int(sign == "+") if sign else int(number, 16) for name, sign, number in _FIELD.findall(text)}


async def agrees(bench: Bench, function: Function, printed: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    """Assert that every field of Slot, AER and DPC registers that lspci printed is what the fabric holds."""
    caps = function.capabilities
    wanted: dict[str, tuple[int, Register, Bits]] = {}
    if function.slot is not None:
        wanted |= {name: (caps.express, *row) for name, row in SLOT.items()}
    if caps.aer:
        wanted |= {name: (caps.aer, *row) for name, row in AER.items()}
        if function.kind is reg.DeviceType.ROOT_PORT:
            wanted |= {name: (caps.aer, *row) for name, row in ROOT.items()}
    if caps.dpc:
        wanted |= {name: (caps.dpc, *row) for name, row in DPC.items()}
    for name, (base, register, bits) in wanted.items():
        value = await bench.read(function.address, register, base)
        assert value is not None, f"{function.address} {name}"
        held = {field: (value >> low) & ((1 << width) - 1) for field, (low, width) in bits.items()}
        shown = {field: printed[name].get(field) for field in bits}
        assert shown == held, f"{function.address} {name} is {value:#x}"
    return {name: printed[name] for name in wanted}


async def test_lspci_decodes_every_function_and_prints_what_the_fabric_holds(bench: Bench) -> None:
    topology = await bench.topology()
    printed = await dumped(bench)
    assert printed.keys() == {str(function.address) for function in topology}
    seen = [await agrees(bench, function, printed[str(function.address)]) for function in topology]
    assert sum("SltCtl" in one for one in seen) == sum(function.slot is not None for function in topology)
    assert sum("DpcSta" in one for one in seen) == sum(bool(function.capabilities.dpc) for function in topology)


async def test_p2_lspci_sees_the_mask_of_a_lease_and_the_enables_before_and_after_it(
    bench: Bench, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("lspci")
    started, finish = directory / "started", directory / "finish"
    port = (await bench.topology()).get(Address.parse(HELD))

    async def enabled() -> tuple[int, int]:
        shown = (await agrees(bench, port, (await dumped(bench, HELD, "0d:00.0"))[HELD]))["SltCtl"]
        assert shown["HPIrq"] == 1
        return shown["PresDet"], shown["LinkChg"]

    async with keeps(bench, HELD):
        assert await enabled() == (1, 1)
        script = f"touch {started}; while [ ! -e {finish} ]; do sleep 0.02; done"
        holding = await Cli(bench).start("hold", HELD, "--", "sh", "-c", script)
        await bench.eventually(lambda: exists(started), "the command runs")
        assert await enabled() == (0, 0)
        finish.touch()
        assert (await ended(holding))[0] == 0
        assert await enabled() == (1, 1)


async def test_p9_while_a_port_is_contained_lspci_reads_it_and_is_given_nothing_of_what_does_not_answer(
    bench: Bench,
) -> None:
    """All ones is no answer: of a device that cannot be reached there is nothing to decode."""
    topology = await bench.topology()
    port = topology.get(Address.parse(CONTAINED))
    await bench.hang("02:00.0", "error_detected", name="mlx5_core")  # until it has been looked at
    async with keeps(bench, CONTAINED, resets=True):
        since = bench.mark()
        await bench.inject("dpc", CONTAINED, reason="uncorrectable")
        started = await bench.wait_fact(What.RECOVERY_STARTED, CONTAINED, since=since)

        async def stands_still() -> bool | None:
            steps = bench.facts(What.RECOVERY_STEP, CONTAINED, since)
            return any(fact.data["step"] == "error_detected" for fact in steps) or None

        await bench.eventually(stands_still, "the driver is called")
        printed = await dumped(bench)
        shown = await agrees(bench, port, printed[CONTAINED])
        assert (shown["DpcSta"]["Trigger"], shown["SltCtl"]["PresDet"], shown["SltCtl"]["LinkChg"]) == (1, 0, 0)
        assert printed.keys() == {str(one.address) for one in topology if one.parent != port.address}
        await bench.answer("02:00.0", "mlx5_core")
        await bench.closed(CONTAINED, started.lease)
    printed = await dumped(bench)
    assert (await agrees(bench, port, printed[CONTAINED]))["DpcSta"]["Trigger"] == 0
