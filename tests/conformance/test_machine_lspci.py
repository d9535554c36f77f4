"""`lspci -F` decodes what the machine shows, without complaint, and reads the same in it (DESIGN 7)."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from shared.pcie import registers as r
from shared.protocol.requests import Injection
from tests.unit.machine.everything_bench import (
    BRIDGE,
    COLLECTED,
    COLLECTOR,
    MUTE_PORT,
    NIC,
    NIC_PORT,
    SCSI,
    SECOND_NIC,
    VIRTUAL,
    Everything,
    on_everything,
)
from tests.unit.machine.machine_bench import CARD, DISK, NESTED, PORT, SWITCH, UPPER, Bench, on_bench

pytestmark = pytest.mark.skipif(shutil.which("lspci") is None, reason="lspci is missing: install pciutils")

BYTES_PER_LINE = 16
COMPLAINTS = ("!!!", "chain", "broken", "unknown header")


def decoded(bench: Bench) -> dict[str, str]:
    """Return what lspci prints of each function."""
    dump = []
    for address in bench.machine.enumerate():
        image = bench.machine.read(address, 0, r.CONFIG_SPACE_SIZE)
        dump.append(f"{address} Device")
        dump += [
            f"{offset:02x}: {image[offset : offset + BYTES_PER_LINE].hex(' ')}"
            for offset in range(0, len(image), BYTES_PER_LINE)
        ]
        dump.append("")
    done = subprocess.run(
        ["lspci", "-F", "/dev/stdin", "-D", "-n", "-vvv"],
        input="\n".join(dump) + "\n",
        capture_output=True,
        text=True,
        check=True,
    )
    complaints = [text for text in done.stderr.splitlines() if "libkmod" not in text]  # a container has no modules
    assert complaints == []
    for complaint in COMPLAINTS:
        assert complaint not in done.stdout.lower()
    return {text.split(maxsplit=1)[0]: text for text in done.stdout.strip().split("\n\n")}


def line(text: str, name: str) -> str:
    """Return lspci's lines for a register, joined; RootSta is the name of two."""
    found = re.findall(rf"^\t+{re.escape(name)}:\s.*(?:\n\t\t\t.*)*", text, re.MULTILINE)
    assert found, f"{name} is not in\n{text}"
    return " ".join(" ".join(found).split())


@on_bench(slot="power_controller = true, button = true, mrl = true, command_completed = true")
async def test_every_function_of_a_quiet_bench_decodes(bench: Bench) -> None:
    texts = decoded(bench)

    assert set(texts) == {str(address) for address in (PORT, DISK, UPPER, SWITCH, NESTED, CARD)}
    port = texts[str(PORT)]
    assert "Express (v2) Root Port (Slot+), MSI 00" in " ".join(port.split())
    slot = line(port, "SltCap")
    assert "AttnBtn+ PwrCtrl+ MRL+ AttnInd+ PwrInd+ HotPlug+ Surprise+" in slot
    assert "Slot #41" in slot
    assert "NoCompl-" in slot
    control = line(port, "SltCtl")
    assert "AttnBtn+ PwrFlt+ MRL+ PresDet+ CmdCplt+ HPIrq+ LinkChg+" in control
    assert "AttnInd Off, PwrInd On, Power- Interlock-" in control
    assert "PresDet+ Interlock-" in line(port, "SltSta")
    assert "Speed 8GT/s" in line(port, "LnkSta")
    assert "DLActive+" in line(port, "LnkSta")
    assert "CERptEn+ NFERptEn+ FERptEn+" in line(port, "RootCmd")
    assert "IntMsgNum 1" in line(port, "RootSta") or "IntMsg 1" in line(port, "RootSta")
    assert "Trigger:1" in line(port, "DpcCtl")
    assert "RPExt+" in line(port, "DpcCap")


@on_bench(rp_busy_s=1.0)
async def test_an_event_decodes_as_what_it_was(bench: Bench) -> None:
    bench.inject(Injection.ERROR, DISK, names=("BadTLP", "CmpltTO"), header=(0x4000_0001, 0, 0xDEAD_BEEF, 0))
    quiet = decoded(bench)
    disk = quiet[str(DISK)]
    assert "CmpltTO+" in line(disk, "UESta")
    assert "BadTLP+" in line(disk, "CESta")
    assert "First Error Pointer: 0e" in line(disk, "AERCap")
    assert "40000001 00000000 deadbeef 00000000" in line(disk, "HeaderLog")
    assert "Device Serial Number 00-25-38-00-00-00-00-01" in disk
    port = quiet[str(PORT)]
    assert "CERcvd+ MultCERcvd- UERcvd+ MultUERcvd-" in line(port, "RootSta")
    assert "NonFatalMsg+ FatalMsg-" in line(port, "RootSta")
    assert "ERR_COR: 0100 ERR_FATAL/NONFATAL: 0100" in line(port, "ErrorSrc")

    bench.inject(Injection.ERROR, DISK, names=("MalfTLP",))
    port = decoded(bench)[str(PORT)]
    assert "Trigger+ Reason:02 INT+ RPBusy+" in line(port, "DpcSta")
    assert line(port, "Source") == "Source: 0100"
    assert "PresDet- Interlock-" in line(port, "SltSta")
    assert "Changed: MRL- PresDet+ LinkState+" in line(port, "SltSta")
    assert "DLActive-" in line(port, "LnkSta")


@on_everything
async def test_one_of_every_kind_of_hardware_decodes(bench: Everything) -> None:
    texts = decoded(bench)

    assert len(texts) == len(bench.machine.enumerate())
    assert "PCI-Express to PCI/PCI-X Bridge" in texts[str(BRIDGE)]
    assert "AFCap: TP+ FLR+" in " ".join(texts[str(SCSI)].split())
    assert "Express" not in texts[str(SCSI)]

    collector = texts[str(COLLECTOR)]
    assert "Root Complex Event Collector" in collector
    assert "RCiEP at Device(s): 11-13" in line(collector, "RCiEPBitmap")
    assert "[none]" in line(collector, "AssociatedBusNumbers")
    assert "CERptEn+ NFERptEn+ FERptEn+" in line(collector, "RootCmd")
    assert "Root Complex Integrated Endpoint" in texts[str(COLLECTED)]

    nic = texts[str(NIC)]
    assert "Next Function: 1" in line(nic, "ARICap")
    assert "Enable+" in line(nic, "IOVCtl")
    assert "MSE+ ARIHierarchy+" in line(nic, "IOVCtl")
    assert "Initial VFs: 8, Total VFs: 8, Number of VFs: 4, Function Dependency Link: 00" in nic
    assert "VF offset: 16, stride: 1, Device ID: 154c" in nic
    assert "MSI-X: Enable- Count=129 Masked-" in nic
    assert "SrcValid+" in line(nic, "ACSCap")
    assert "Max snoop latency: 0ns" in nic
    assert "Number of VFs: 0" in texts[str(SECOND_NIC)]
    assert "ffff:ffff (rev 02)" in texts[str(VIRTUAL[0])]
    assert "ARIFwd+" in line(texts[str(NIC_PORT)], "DevCtl2")

    mute = texts[str(MUTE_PORT)]
    assert "LLActRep-" in line(mute, "LnkCap")
    assert "DLActive-" in line(mute, "LnkSta")
    assert "CRSVisible-" in line(mute, "RootCap")
