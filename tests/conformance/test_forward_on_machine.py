"""Rolling forward over the machine's registers: after any reset, everything that software had set up is back (P3).

Every kind of hardware of everything.toml, by the very lines that coordinator and fabric run, in virtual time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import pytest

from services.fabric._registers import Registers
from services.fabric._topology import discover
from shared.pcie import NO_ANSWER, Address, Topology, Value
from shared.pcie import registers as r
from shared.protocol.fabric import Lease, Operation, Rank, Reach, Result, Role, SavedFunction, Verb
from shared.protocol.requests import Injection
from shared.recovery import Bounds, Do, Logic, Pause, Verified, roll_forward
from tests.unit.machine.everything_bench import (
    BRIDGE,
    BRIDGE_PORT,
    COLLECTED,
    COMPLETING_PORT,
    MUTE_PORT,
    NIC,
    NIC_PORT,
    OUT_OF_BAND_PORT,
    SCSI,
    VIRTUAL,
    Direct,
    Everything,
    on_everything,
)

SWITCH_PORT = Address.parse("00:08.0")
BOUNDS = Bounds(link_s=1.0, ready_s=10.0)
LONG_S = 2.0
Strike = Callable[[Everything, Address], None]


def bus_reset(bench: Everything, port: Address) -> None:
    bench.turn(port, r.BRIDGE_CONTROL, r.BridgeControl.SECONDARY_BUS_RESET, True)


def contain(bench: Everything, port: Address) -> None:
    bench.inject(Injection.DPC, port, reason="uncorrectable")


def flr(bench: Everything, function: Address) -> None:
    bench.turn(function, r.DEVICE_CONTROL, r.DeviceControl.INITIATE_FLR, True)


def advanced_flr(bench: Everything, function: Address) -> None:
    bench.put(function, r.AF_CONTROL, r.AF_INITIATE_FLR)


def lease(bench: Everything, port: Address, reach: Reach) -> Lease:
    """Return a lease that knows all of its domain as it is now. It masks no slot: that is the fabric's part."""
    images = {address: bench.image(address) for address in bench.machine.enumerate()}
    known = {one.function.address: one for one in discover(images)}
    functions = tuple(
        SavedFunction(address=one.address, identity=one.identity, registers=known[one.address].registers)
        for one in bench.topology().domain(port)
    )
    return Lease(
        id="r-1", token=1, port=port, rank=Rank.RECOVERY, reach=reach, role=Role.COORDINATOR, cause="dpc",
        holder="test", allowed_s=5.0, functions=functions,
    )  # fmt: skip


class Driver:
    """Runs the logic as the fabric does; `writes` are the operations that wrote."""

    def __init__(self, bench: Everything, topology: Topology) -> None:
        self._registers = Registers(Direct(bench.machine))
        self._topology = topology
        self.writes: list[tuple[Address, int]] = []

    async def run(self, logic: Logic[Verified]) -> Verified:
        sent: object = None
        while True:
            try:
                effect = logic.send(sent)
            except StopIteration as done:
                verified: Verified = done.value
                return verified
            if isinstance(effect, Pause):
                await asyncio.sleep(effect.seconds)
                sent = asyncio.get_running_loop().time()
            elif isinstance(effect, Do):
                sent = tuple([await self._perform(one) for one in effect.operations])
            else:
                sent = None

    async def _perform(self, operation: Operation) -> Value:
        if operation.verb is not Verb.READ:
            self.writes.append((operation.function, operation.offset))
        value = await self._registers.perform(operation, self._topology)
        return NO_ANSWER if value is None else value


CASES: Final[tuple[tuple[str, Strike, Address, Reach], ...]] = (
    ("containment over ARI and SR-IOV", contain, NIC_PORT, Reach.RESET),
    ("bus reset over ARI and SR-IOV", bus_reset, NIC_PORT, Reach.RESET),
    ("FLR of a physical function", flr, NIC, Reach.NOTHING),
    ("FLR of a virtual function", flr, VIRTUAL[2], Reach.NOTHING),
    ("reset of a conventional bus", bus_reset, BRIDGE, Reach.RESET),
    ("reset above a conventional bus", bus_reset, BRIDGE_PORT, Reach.RESET),
    ("FLR by Advanced Features", advanced_flr, SCSI, Reach.NOTHING),
    ("FLR of an integrated endpoint", flr, COLLECTED, Reach.NOTHING),
    ("bus reset of a port that does not report its link", bus_reset, MUTE_PORT, Reach.RESET),
    ("containment above eight nested slots", contain, SWITCH_PORT, Reach.RESET),
    ("bus reset with presence out of band", bus_reset, OUT_OF_BAND_PORT, Reach.RESET),
    ("bus reset with Command Completed", bus_reset, COMPLETING_PORT, Reach.RESET),
)


@pytest.mark.parametrize(("strike", "where", "reach"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_p3_every_function_is_back_as_it_was(strike: Strike, where: Address, reach: Reach) -> None:
    @on_everything
    async def scenario(bench: Everything) -> None:
        topology = bench.topology()
        port = topology.get(where) if reach is Reach.RESET else topology.lease_port(where) or topology.get(where)
        held = lease(bench, port.address, reach)
        before = {one.address: settings(bench, held, one.address) for one in held.functions}
        strike(bench, where)
        assert {one.address: settings(bench, held, one.address) for one in held.functions} != before

        driver = Driver(bench, topology)
        verified = await driver.run(roll_forward(held, topology, BOUNDS))
        assert {str(one.function): one.result for one in verified.outcomes} == {
            str(one.address): Result.RECOVERED for one in held.functions
        }
        after = {one.address: settings(bench, held, one.address) for one in held.functions}
        assert after == before

        await asyncio.sleep(LONG_S)
        again = Driver(bench, topology)
        await again.run(roll_forward(held, topology, BOUNDS))
        assert again.writes == [], "a run over a healthy domain writes nothing"

    scenario()


def settings(bench: Everything, held: Lease, address: Address) -> list[bytes]:
    """Return what the registers hold that software sets up."""
    saved = next(one for one in held.functions if one.address == address)
    return [bench.machine.read(address, one.offset, one.width) for one in saved.registers]
