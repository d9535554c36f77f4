from __future__ import annotations

import asyncio
import shutil
import subprocess
from typing import Any, cast

import pytest

from services.console._dump import read_configs, text
from services.console._session import Session
from shared.pcie import Address, Capabilities, Function, Identity
from shared.pcie.registers import CONFIG_SPACE_SIZE, DeviceType
from shared.protocol.fabric import Dump, Dumped

NIC = Address.parse("0001:3b:00.0")
FUNCTION = Function(NIC, DeviceType.ENDPOINT, Identity(0x15B3, 0x1017, 0x020000, 0, 0), Capabilities())


def config_with_serial_number() -> bytes:
    config = bytearray(CONFIG_SPACE_SIZE)
    config[0:4] = bytes.fromhex("b3151710")
    config[6] = 0x10  # capability list
    config[9:12] = bytes.fromhex("000002")
    config[0x34] = 0x40
    config[0x40:0x44] = bytes.fromhex("10000200")  # PCI Express, version 2, endpoint
    config[0x100:0x104] = bytes.fromhex("03000100")  # Device Serial Number, the last one
    config[0x104:0x10C] = bytes.fromhex("7766554433221100")
    return bytes(config)


def test_a_dump_is_a_header_line_and_256_lines_of_sixteen_bytes() -> None:
    lines = text(NIC, FUNCTION, bytes(range(256)) * 16).splitlines()
    assert lines[0].startswith("0001:3b:00.0 ")
    assert lines[1] == "00: 00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f"
    assert lines[16].startswith("f0: ")
    assert lines[17].startswith("100: ")
    assert lines[256].startswith("ff0: ")
    assert len(lines) == 257


@pytest.mark.skipif(shutil.which("lspci") is None, reason="lspci is not installed")
def test_lspci_decodes_a_dump_without_complaint() -> None:
    config = config_with_serial_number()
    dump = "\n".join((text(NIC, FUNCTION, config), text(Address.parse("02:00.0"), None, config)))
    ran = subprocess.run(
        ["lspci", "-F", "/dev/stdin", "-vvv", "-n"], input=dump, capture_output=True, text=True, check=True
    )
    complaints = [line for line in ran.stderr.splitlines() if "libkmod" not in line]  # no kernel modules here
    assert complaints == []
    assert "0001:3b:00.0 0200: 15b3:1017" in ran.stdout
    assert "0000:02:00.0 0200: 15b3:1017" in ran.stdout
    assert "Device Serial Number 00-11-22-33-44-55-66-77" in ran.stdout


class Busy:
    """A fabric that answers when several have asked; it notes how many waited at most."""

    host = "lab"

    def __init__(self, patience: int) -> None:
        self._several = asyncio.Barrier(patience)
        self._waiting = 0
        self.most = 0

    async def ask(self, _subject: str, asked: Dump, _reply: Any, **_named: str) -> Dumped:
        """Answer with the address as the content."""
        self._waiting += 1
        self.most = max(self.most, self._waiting)
        await self._several.wait()
        self._waiting -= 1
        return Dumped(function=asked.function, config=str(asked.function).encode())


async def test_several_functions_are_asked_for_at_once_and_answers_stay_in_their_order() -> None:
    fabric = Busy(patience=4)
    addresses = [Address.parse(f"0000:{bus:02x}:00.0") for bus in range(32)]
    configs = await asyncio.wait_for(read_configs(cast("Session", fabric), addresses), 30)
    assert configs == tuple(str(address).encode() for address in addresses)
    assert fabric.most < len(addresses)  # who waits behind all others would wait for too long
