from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import uvloop

from services.fabric import _machine_socket
from services.fabric._machine_socket import MachineSocket
from shared.pcie import Address

FUNCTION = Address.parse("00:01.0")
ALL_ONES = b"\xff\xff"


async def read_from_a_machine_that_says_nothing(path: str) -> list[bytes | BaseException]:
    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    machine = await asyncio.start_unix_server(say_nothing, path)
    connected, lost = asyncio.Event(), asyncio.Event()
    hardware = MachineSocket(path)
    running = asyncio.create_task(hardware.run(connected.set, lost.set))
    await connected.wait()
    found: list[bytes | BaseException] = [await hardware.read(FUNCTION, 0, 2)]
    later = []
    for _ in range(5):  # in the moments in which the connection is given up
        later.append(asyncio.create_task(hardware.read(FUNCTION, 0, 2)))
        await asyncio.sleep(0)
    found += await asyncio.gather(*later, return_exceptions=True)
    running.cancel()
    machine.close()
    await asyncio.gather(running, return_exceptions=True)
    return found


def test_p9_a_machine_that_hangs_reads_all_ones_and_crashes_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On uvloop, as the service runs: there, writing to a connection that is closing is an error."""
    monkeypatch.setattr(_machine_socket, "_REPLY_S_MAX", 0.05)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(read_from_a_machine_that_says_nothing(str(tmp_path / "machine.sock")))
    assert found == [ALL_ONES] * 6
