"""A bench for the machine's unit tests: a root port with a slot, a switch with a slot, and virtual time."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable
from typing import Any

from services.machine import Machine, parse
from shared.pcie import Address, Function, describe
from shared.pcie import registers as r
from shared.protocol.requests import Inject, Injection

PORT = Address.parse("0000:00:01.0")
DISK = Address.parse("0000:01:00.0")
UPPER = Address.parse("0000:00:02.0")
SWITCH = Address.parse("0000:02:00.0")
NESTED = Address.parse("0000:03:00.0")
CARD = Address.parse("0000:04:00.0")

TRAINING_S = 0.02
READY_S = 0.01
LONG_S = 1.0

TOPOLOGY = """
[[function]]
address = "0000:00:01.0"
kind = "root_port"
bus = [1, 1]
vendor = 0x8086
device = 0x6f04
dpc = {dpc}
rp_busy_s = {rp_busy_s}
slot = {{ number = 41, {slot} }}
vectors = {{ hotplug = 0, aer = 1, dpc = 2 }}
{more}

[[function]]
address = "0000:01:00.0"
kind = "endpoint"
vendor = 0x144d
device = 0xa808
class = 0x010802
serial = "00-25-38-00-00-00-00-01"
flr = true
pm_reset = true
bars = [0x4000]
ready_s = 0.01
driver = {{ name = "nvme" }}

[[function]]
address = "0000:00:02.0"
kind = "root_port"
bus = [2, 4]
vendor = 0x8086
device = 0x6f06
dpc = {dpc}

[[function]]
address = "0000:02:00.0"
kind = "upstream_port"
bus = [3, 4]
vendor = 0x10b5
device = 0x8764

[[function]]
address = "0000:03:00.0"
kind = "downstream_port"
bus = [4, 4]
vendor = 0x10b5
device = 0x8764
slot = {{ number = 42 }}

[[function]]
address = "0000:04:00.0"
kind = "endpoint"
vendor = 0x15b3
device = 0x1017
class = 0x020000
"""


class Bench:
    """A machine, what it raised, and registers by name."""

    def __init__(
        self, *, dpc: bool = True, rp_busy_s: float = 0.0, slot: str = "", firmware_first: bool = False, more: str = ""
    ) -> None:
        """`more` are lines of the first port's table."""
        text = TOPOLOGY.format(dpc=str(dpc).lower(), rp_busy_s=rp_busy_s, slot=slot or "hotplug = true", more=more)
        self.machine = Machine(parse(f"firmware_first = {str(firmware_first).lower()}\n{text}"))
        self.raised: list[tuple[Address, int]] = []
        self.machine.listen(lambda port, vector: self.raised.append((port, vector)))
        self._functions: dict[Address, Function] = {}
        for address in self.machine.enumerate():
            function = describe(address, self.machine.read(address, 0, r.CONFIG_SPACE_SIZE), None)
            assert function is not None
            self._functions[address] = function

    def at(self, address: Address, register: r.Register) -> int:
        """Return where a register stands."""
        caps = self._functions[address].capabilities
        for base, registers in ((caps.express, r.EXPRESS), (caps.aer, r.AER_ROOT), (caps.dpc, r.DPC_ROOT)):
            if register in registers:
                assert base
                return base + register.offset
        return (caps.power_management if register in r.POWER_MANAGEMENT else 0) + register.offset

    def get(self, address: Address, register: r.Register) -> int:
        return int.from_bytes(self.machine.read(address, self.at(address, register), register.width), "little")

    def put(self, address: Address, register: r.Register, value: int) -> None:
        self.machine.write(address, self.at(address, register), value.to_bytes(register.width, "little"))

    def turn(self, address: Address, register: r.Register, bits: int, on: bool) -> None:
        value = self.get(address, register)
        self.put(address, register, value | bits if on else value & ~bits)

    def inject(self, what: Injection, target: Address, **fields: Any) -> None:
        self.machine.inject(Inject(what=what, target=target, **fields))

    def slot_status(self, port: Address = PORT) -> r.SlotStatus:
        return r.SlotStatus(self.get(port, r.SLOT_STATUS))

    def link_active(self, port: Address = PORT) -> bool:
        return bool(self.get(port, r.LINK_STATUS) & r.LinkStatus.LINK_ACTIVE)

    def answers(self, address: Address) -> bool:
        return self.machine.read(address, 0, 2) not in {b"\xff\xff", b"\x01\x00"}

    def vectors(self, port: Address = PORT) -> list[int]:
        """Return what the port has raised since the last look."""
        found = [vector for raiser, vector in self.raised if raiser == port]
        self.raised = [raised for raised in self.raised if raised[0] != port]
        return found


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in which waiting takes no time."""

    def __init__(self) -> None:
        self._now = 0.0
        super().__init__(_Instant(self))

    def time(self) -> float:
        return self._now

    def pass_time(self, seconds: float) -> None:
        self._now += seconds


class _Instant(selectors.DefaultSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        if timeout is not None and timeout > 0:
            self._loop.pass_time(timeout)
        return super().select(0)


def on_bench(**options: Any) -> Callable[[Callable[[Bench], Awaitable[None]]], Callable[[], None]]:
    """Run an async test in virtual time, on a bench of its own."""

    def decorate(test: Callable[[Bench], Awaitable[None]]) -> Callable[[], None]:
        def run() -> None:
            async def scenario() -> None:
                await test(Bench(**options))

            with asyncio.Runner(loop_factory=VirtualLoop) as runner:
                runner.run(scenario())

        run.__name__ = test.__name__
        return run

    return decorate
