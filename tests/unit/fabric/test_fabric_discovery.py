"""What enumeration makes of hardware: parents, virtual functions by their physical one, collectors and who reports."""

from __future__ import annotations

from services.fabric._interrupts import sharing, snapshot_reads
from services.fabric._registers import Registers
from services.fabric._snapshot import Known
from services.fabric._topology import discover
from shared.pcie import Address, Topology
from shared.pcie import registers as r
from shared.protocol.fabric import Operation, Verb
from tests.unit.machine.everything_bench import (
    BRIDGE,
    BRIDGE_PORT,
    COLLECTED,
    COLLECTOR,
    ETHERNET,
    NIC,
    NIC_PORT,
    OTHER_COLLECTED,
    SECOND_NIC,
    VIRTUAL,
    Direct,
    Everything,
    on_everything,
)


def known(bench: Everything, address: Address) -> Known:
    images = {each: bench.image(each) for each in bench.machine.enumerate()}
    return next(one for one in discover(images) if one.function.address == address)


def virtual(topology: Topology) -> tuple[Address, ...]:
    return tuple(one.address for one in topology if one.physical is not None)


@on_everything
async def test_a_virtual_function_is_who_its_physical_one_says(bench: Everything) -> None:
    topology = bench.topology()
    assert virtual(topology) == VIRTUAL[:4]
    one = topology.get(VIRTUAL[3])
    assert one.physical == NIC
    assert one.parent == NIC_PORT
    assert (one.identity.vendor, one.identity.device) == (0x8086, 0x154C)
    assert (one.identity.class_code, one.identity.revision) == (0x020000, 2)
    assert one.identity.serial is None
    assert one.flr


@on_everything
async def test_virtual_functions_of_nobody_are_not_found(bench: Everything) -> None:
    """All ones in the ids is "nobody" for everything that no physical function vouches for (P9)."""
    images = {each: bench.image(each) for each in bench.machine.enumerate()}
    del images[NIC]
    found = {one.function.address for one in discover(images)}
    assert SECOND_NIC in found
    assert not found & set(VIRTUAL)


@on_everything
async def test_p9_a_virtual_function_that_is_not_ready_is_not_found(bench: Everything) -> None:
    images = {each: bench.image(each) for each in bench.machine.enumerate()}
    images[VIRTUAL[1]] = b"\xff" * r.CONFIG_SPACE_SIZE
    del images[VIRTUAL[2]]
    found = {one.function.address for one in discover(images)}
    assert found & set(VIRTUAL) == {VIRTUAL[0], VIRTUAL[3]}


@on_everything
async def test_sriov_is_restored_before_its_virtual_functions_and_their_number_before_their_enable(
    bench: Everything,
) -> None:
    one = known(bench, NIC)
    base = one.function.capabilities.sriov
    offsets = [register.offset for register in one.registers]
    assert offsets.index(base + r.NUM_VFS.offset) < offsets.index(base + r.SRIOV_CONTROL.offset)
    assert offsets[-1] == r.COMMAND.offset
    assert one.held(r.NUM_VFS, base) == 4
    assert one.held(r.SRIOV_CONTROL, base) == 0x0019
    order = [one.address for one in bench.topology()]
    assert all(order.index(NIC) < order.index(address) for address in VIRTUAL[:4])


@on_everything
async def test_what_else_a_reset_takes_is_in_the_snapshot(bench: Everything) -> None:
    one = known(bench, NIC)
    caps = one.function.capabilities
    for register, base in ((r.ACS_CONTROL, caps.acs), (r.LTR_SNOOP, caps.ltr), (r.MSI_X_CONTROL, caps.msi_x)):
        assert base
        assert one.held(register, base) is not None
    port = known(bench, NIC_PORT)
    assert port.held(r.DEVICE_CONTROL_2, port.function.capabilities.express) == r.DeviceControl2.ARI_FORWARDING_ENABLE


@on_everything
async def test_a_collector_knows_who_reports_to_it(bench: Everything) -> None:
    topology = bench.topology()
    assert topology.get(COLLECTOR).associated == (COLLECTED, OTHER_COLLECTED)
    assert topology.get(COLLECTOR).vectors.aer == 1
    assert [one.address for one in topology if one.associated] == [COLLECTOR]


@on_everything
async def test_what_is_behind_a_bridge_to_a_conventional_bus_is_found(bench: Everything) -> None:
    topology = bench.topology()
    assert topology.get(BRIDGE).parent == BRIDGE_PORT
    assert topology.get(BRIDGE).kind is r.DeviceType.PCIE_TO_PCI_BRIDGE
    one = topology.get(ETHERNET)
    assert one.parent == BRIDGE
    assert not one.capabilities.express
    assert not one.capabilities.aer


@on_everything
async def test_a_virtual_function_can_be_written_although_its_vendor_reads_as_no_answer(bench: Everything) -> None:
    registers = Registers(Direct(bench.machine))
    topology, address = bench.topology(), VIRTUAL[0]
    write = Operation(verb=Verb.WRITE, function=address, offset=r.COMMAND.offset, width=2, value=0)
    assert await registers.perform(write, topology) == 0
    assert bench.get(address, r.COMMAND) == 0
    bench.turn(NIC, r.SRIOV_CONTROL, r.SriovControl.VF_ENABLE, False)
    assert await registers.perform(write, topology) is None


@on_everything
async def test_an_interrupt_of_a_collector_is_aers(bench: Everything) -> None:
    collector = bench.topology().get(COLLECTOR)
    assert sharing(collector, 1) == ("aer",)
    assert {"root_error_status", "error_source"} <= set(snapshot_reads(collector))
