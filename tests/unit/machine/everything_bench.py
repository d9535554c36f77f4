"""A bench on which one of every kind of hardware stands: the file that travels in the wheel, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import services.console
from services.fabric._machine_socket import MachineSocket
from services.fabric._topology import discover, topology_of
from services.machine import Machine, load
from shared.pcie import Address, Capabilities, Topology, capabilities_of
from shared.pcie import registers as r

from .machine_bench import Bench, VirtualLoop

FILE = Path(services.console.__file__).parent / "data" / "everything.toml"

A = Address.parse
BRIDGE_PORT, BRIDGE = A("00:01.0"), A("01:00.0")
ETHERNET, SCSI, SERIAL = A("02:00.0"), A("02:01.0"), A("02:1f.0")
COLLECTOR, COLLECTED, OTHER_COLLECTED = A("00:0b.0"), A("00:0c.0"), A("00:0d.0")
NIC_PORT, NIC, SECOND_NIC, NIC_8 = A("00:02.0"), A("10:00.0"), A("10:00.1"), A("10:01.0")
VIRTUAL = tuple(A(f"10:02.{n}") for n in range(8))
MUTE_PORT, HBA = A("00:03.0"), A("18:00.0")
SILENT_PORT, SILENT_DISK = A("00:05.0"), A("28:00.0")
COMPLETING_PORT = A("00:06.0")
OUT_OF_BAND_PORT = A("00:07.0")
LONG_S = 1.0

_TABLES: tuple[tuple[str, tuple[r.Register, ...]], ...] = (
    ("express", r.EXPRESS),
    ("aer", r.AER_ROOT),
    ("dpc", r.DPC_ROOT),
    ("sriov", r.SRIOV),
    ("ari", r.ARI),
    ("advanced_features", r.ADVANCED_FEATURES),
    ("power_management", r.POWER_MANAGEMENT),
)


class Everything(Bench):
    """The machine of everything.toml, or of another text."""

    def __init__(self) -> None:
        self.machine = Machine(load(FILE))
        self.raised = []
        self.machine.listen(lambda port, vector: self.raised.append((port, vector)))
        self._capabilities: dict[Address, Capabilities] = {
            address: capabilities_of(self.image(address)) for address in self.machine.enumerate()
        }

    def image(self, address: Address) -> bytes:
        return self.machine.read(address, 0, r.CONFIG_SPACE_SIZE)

    def topology(self) -> Topology:
        """Return what the fabric discovers now."""
        return topology_of(discover({address: self.image(address) for address in self.machine.enumerate()}))

    def at(self, address: Address, register: r.Register) -> int:
        for name, table in _TABLES:
            if register in table:
                base: int = getattr(self._capabilities[address], name)
                assert base, f"{address} has no {name}"
                return base + register.offset
        return register.offset

    def is_there(self, address: Address) -> bool:
        """Tell whether anything answers, a virtual function's missing ids or not."""
        return self.machine.read(address, r.REVISION_AND_CLASS.offset, 4) != b"\xff\xff\xff\xff"


class Direct(MachineSocket):
    """The fabric's way to the machine, without the socket between them."""

    def __init__(self, machine: Machine) -> None:
        super().__init__("")
        self._machine = machine

    async def read(self, address: Address, offset: int, length: int) -> bytes:
        return self._machine.read(address, offset, length)

    async def write(self, address: Address, offset: int, data: bytes) -> None:
        self._machine.write(address, offset, data)


def on_everything(test: Callable[[Everything], Awaitable[None]]) -> Callable[[], None]:
    """Run an async test in virtual time, on a bench of its own."""

    def run() -> None:
        async def scenario() -> None:
            await test(Everything())

        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(scenario())

    run.__name__ = test.__name__
    return run
