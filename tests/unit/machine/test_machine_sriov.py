"""ARI and SR-IOV: more than eight functions on one link, and virtual ones that come and go with their enable."""

from __future__ import annotations

import asyncio

import pytest

from services.machine import MachineError
from shared.pcie import registers as r
from shared.protocol.requests import DriverCall, DriverStep, Injection

from .everything_bench import LONG_S, NIC, NIC_8, NIC_PORT, SECOND_NIC, VIRTUAL, Everything, on_everything

ENABLED = VIRTUAL[:4]
FIRMWARE_CONTROL = r.SriovControl.VF_ENABLE | r.SriovControl.VF_MEMORY_SPACE | r.SriovControl.ARI_CAPABLE_HIERARCHY


def there(bench: Everything) -> list[bool]:
    return [bench.is_there(address) for address in VIRTUAL]


FOUR = [True] * 4 + [False] * 4
NONE = [False] * 8


@on_everything
async def test_a_virtual_function_says_neither_vendor_nor_device(bench: Everything) -> None:
    for address in ENABLED:
        assert bench.image(address)[:4] == b"\xff\xff\xff\xff"
        assert bench.get(address, r.REVISION_AND_CLASS) == 0x0200_0002


@on_everything
async def test_virtual_functions_are_there_while_their_enable_is_set(bench: Everything) -> None:
    assert there(bench) == FOUR
    bench.turn(NIC, r.SRIOV_CONTROL, r.SriovControl.VF_ENABLE, False)
    assert there(bench) == NONE
    assert not set(VIRTUAL) & set(bench.machine.enumerate())
    bench.put(NIC, r.NUM_VFS, 6)
    bench.turn(NIC, r.SRIOV_CONTROL, r.SriovControl.VF_ENABLE, True)
    assert there(bench) == NONE, "they take their time to be ready"
    await asyncio.sleep(LONG_S)
    assert there(bench) == [True] * 6 + [False] * 2


@on_everything
async def test_a_virtual_function_that_is_enabled_again_remembers_nothing(bench: Everything) -> None:
    bench.turn(NIC, r.SRIOV_CONTROL, r.SriovControl.VF_ENABLE, False)
    bench.turn(NIC, r.SRIOV_CONTROL, r.SriovControl.VF_ENABLE, True)
    await asyncio.sleep(LONG_S)
    assert [bench.get(address, r.COMMAND) for address in ENABLED] == [0] * 4


@on_everything
async def test_nothing_happens_to_a_virtual_function_that_is_not_enabled(bench: Everything) -> None:
    with pytest.raises(MachineError, match=r"there is no function 0000:10:02\.7"):
        bench.inject(Injection.ERROR, VIRTUAL[7], names=("BadTLP",))


@on_everything
async def test_more_virtual_functions_than_there_are_cannot_be_enabled(bench: Everything) -> None:
    bench.turn(NIC, r.SRIOV_CONTROL, r.SriovControl.VF_ENABLE, False)
    bench.put(NIC, r.NUM_VFS, 200)
    bench.turn(NIC, r.SRIOV_CONTROL, r.SriovControl.VF_ENABLE, True)
    await asyncio.sleep(LONG_S)
    assert sum(there(bench)) == 8


@on_everything
async def test_the_number_of_virtual_functions_is_fixed_while_they_are_enabled(bench: Everything) -> None:
    bench.put(NIC, r.NUM_VFS, 1)
    assert bench.get(NIC, r.NUM_VFS) == 4
    at = bench.at(NIC, r.SRIOV_CONTROL)  # one write may touch both, and more
    bench.machine.write(NIC, at, bytes(r.VF_DEPENDENCY.offset - r.SRIOV_CONTROL.offset))
    assert bench.get(NIC, r.NUM_VFS) == 4
    assert there(bench) == NONE


@on_everything
async def test_an_flr_of_the_physical_function_takes_its_virtual_ones_away_and_no_others(bench: Everything) -> None:
    bench.put(SECOND_NIC, r.NUM_VFS, 1)
    bench.put(SECOND_NIC, r.SRIOV_CONTROL, FIRMWARE_CONTROL)
    await asyncio.sleep(LONG_S)
    other = next(one.address for one in bench.topology() if one.physical == SECOND_NIC)
    bench.turn(NIC, r.DEVICE_CONTROL, r.DeviceControl.INITIATE_FLR, True)
    await asyncio.sleep(LONG_S)
    assert there(bench) == NONE
    assert bench.get(NIC, r.SRIOV_CONTROL) == 0
    assert bench.is_there(other)


@on_everything
async def test_an_flr_of_a_virtual_function_resets_it_alone(bench: Everything) -> None:
    first, second = ENABLED[:2]
    bench.turn(first, r.DEVICE_CONTROL, r.DeviceControl.INITIATE_FLR, True)
    assert there(bench) == [False, True, True, True] + [False] * 4
    await asyncio.sleep(LONG_S)
    assert bench.get(first, r.COMMAND) == 0
    assert bench.get(second, r.COMMAND) == r.Command.BUS_MASTER


@on_everything
async def test_a_hot_reset_clears_the_enable_until_software_restores_it(bench: Everything) -> None:
    bench.turn(NIC_PORT, r.BRIDGE_CONTROL, r.BridgeControl.SECONDARY_BUS_RESET, True)
    bench.turn(NIC_PORT, r.BRIDGE_CONTROL, r.BridgeControl.SECONDARY_BUS_RESET, False)
    await asyncio.sleep(LONG_S)
    assert bench.answers(NIC)
    assert bench.get(NIC, r.SRIOV_CONTROL) == 0
    assert bench.get(NIC, r.NUM_VFS) == 0
    assert there(bench) == NONE
    bench.put(NIC, r.NUM_VFS, 4)
    bench.put(NIC, r.SRIOV_CONTROL, FIRMWARE_CONTROL)
    await asyncio.sleep(LONG_S)
    assert there(bench) == FOUR


@on_everything
async def test_memory_and_reporting_of_a_virtual_function_belong_to_its_physical_one(bench: Everything) -> None:
    address = ENABLED[0]
    bench.put(address, r.COMMAND, 0x0547)
    bench.put(address, r.DEVICE_CONTROL, 0x000F)
    assert bench.get(address, r.COMMAND) == r.Command.BUS_MASTER
    assert bench.get(address, r.DEVICE_CONTROL) == 0


@on_everything
async def test_an_error_of_a_virtual_function_is_reported_as_its_physical_one_allows(bench: Everything) -> None:
    address = ENABLED[2]
    bench.inject(Injection.ERROR, address, names=("BadTLP",))
    assert bench.get(NIC_PORT, r.ERROR_SOURCE) & 0xFFFF == address.requester_id
    bench.put(NIC_PORT, r.ROOT_ERROR_STATUS, 0x7F)
    bench.turn(NIC, r.DEVICE_CONTROL, r.DeviceControl.CORRECTABLE_REPORTING, False)
    bench.inject(Injection.ERROR, address, names=("BadTLP",))
    assert not bench.get(NIC_PORT, r.ROOT_ERROR_STATUS) & 0x7F


@on_everything
async def test_functions_above_7_are_reached_only_with_ari_forwarding(bench: Everything) -> None:
    assert bench.answers(NIC_8)
    bench.turn(NIC_PORT, r.DEVICE_CONTROL_2, r.DeviceControl2.ARI_FORWARDING_ENABLE, False)
    assert not bench.answers(NIC_8)
    assert there(bench) == NONE
    assert bench.answers(NIC)
    assert bench.answers(SECOND_NIC)
    assert NIC_8 not in bench.machine.enumerate()


@on_everything
async def test_every_ari_function_names_the_next(bench: Everything) -> None:
    chain = [
        bench.get(address, r.ARI_CAPABILITIES) >> r.ARI_NEXT_FUNCTION_SHIFT for address in (NIC, SECOND_NIC, NIC_8)
    ]
    assert chain == [1, 8, 0]


@on_everything
async def test_a_card_with_ari_can_be_swapped_for_another_revision_of_itself(bench: Everything) -> None:
    bench.put(NIC_PORT, r.DPC_CONTROL, 0)  # or the surprise would contain the port
    bench.inject(Injection.SWAP, NIC_PORT, card={"0": {"revision": 9}, "8": {"revision": 7}})
    await asyncio.sleep(LONG_S)
    assert bench.get(NIC, r.REVISION_AND_CLASS) & 0xFF == 9
    assert bench.get(SECOND_NIC, r.REVISION_AND_CLASS) & 0xFF == 2
    assert bench.get(NIC_8, r.REVISION_AND_CLASS) & 0xFF == 7


@on_everything
async def test_a_virtual_function_has_the_driver_that_the_file_gives_it(bench: Everything) -> None:
    call = DriverCall(function=ENABLED[1], step=DriverStep.RESUME)
    assert (await bench.machine.call_driver(call)).driver == "iavf"
