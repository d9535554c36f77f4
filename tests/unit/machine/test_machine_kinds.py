"""Conventional buses, event collectors, and ports that tell less than others."""

from __future__ import annotations

import asyncio

import pytest

from services.machine import MachineError
from shared.pcie import Address
from shared.pcie import registers as r
from shared.protocol.requests import Injection

from .everything_bench import (
    BRIDGE,
    BRIDGE_PORT,
    COLLECTED,
    COLLECTOR,
    COMPLETING_PORT,
    ETHERNET,
    HBA,
    LONG_S,
    MUTE_PORT,
    NIC_PORT,
    OTHER_COLLECTED,
    OUT_OF_BAND_PORT,
    SCSI,
    SERIAL,
    SILENT_DISK,
    SILENT_PORT,
    Everything,
    on_everything,
)

CONVENTIONAL = (ETHERNET, SCSI, SERIAL)


# --- A conventional bus ---


@on_everything
async def test_the_bridges_reset_hits_every_device_behind_it_and_not_the_bridge(bench: Everything) -> None:
    command = bench.get(BRIDGE, r.COMMAND)
    bench.turn(BRIDGE, r.BRIDGE_CONTROL, r.BridgeControl.SECONDARY_BUS_RESET, True)
    assert not any(bench.answers(address) for address in CONVENTIONAL)
    assert bench.answers(BRIDGE)
    bench.turn(BRIDGE, r.BRIDGE_CONTROL, r.BridgeControl.SECONDARY_BUS_RESET, False)
    assert not any(bench.answers(address) for address in CONVENTIONAL), "they take their time to be ready"
    await asyncio.sleep(LONG_S)
    assert [bench.get(address, r.COMMAND) for address in CONVENTIONAL] == [0, 0, 0]
    assert bench.get(BRIDGE, r.COMMAND) == command
    assert bench.link_active(BRIDGE_PORT)


@on_everything
async def test_a_reset_from_above_takes_bridge_and_bus(bench: Everything) -> None:
    bench.turn(BRIDGE_PORT, r.BRIDGE_CONTROL, r.BridgeControl.SECONDARY_BUS_RESET, True)
    bench.turn(BRIDGE_PORT, r.BRIDGE_CONTROL, r.BridgeControl.SECONDARY_BUS_RESET, False)
    await asyncio.sleep(LONG_S)
    assert bench.answers(BRIDGE)
    assert bench.get(BRIDGE, r.SECONDARY_BUS) == 0
    assert not any(bench.answers(address) for address in CONVENTIONAL), "the bridge has lost its bus numbers"
    bench.put(BRIDGE, r.SECONDARY_BUS, 2)
    bench.put(BRIDGE, r.SUBORDINATE_BUS, 2)
    assert [bench.get(address, r.COMMAND) for address in CONVENTIONAL] == [0, 0, 0]


@on_everything
async def test_a_conventional_bus_carries_256_bytes_of_config_space(bench: Everything) -> None:
    image = bench.image(ETHERNET)
    assert image[r.EXTENDED_START :] == b"\xff" * (r.CONFIG_SPACE_SIZE - r.EXTENDED_START)
    assert bench.machine.read(ETHERNET, 0xFE, 4) == b"\x00\x00\xff\xff"
    assert bench.machine.read(ETHERNET, 0x200, 2) == b"\xff\xff"


@on_everything
async def test_a_function_is_reset_alone_by_its_advanced_features(bench: Everything) -> None:
    command = bench.get(ETHERNET, r.COMMAND)
    bench.put(SCSI, r.AF_CONTROL, r.AF_INITIATE_FLR)
    assert not bench.answers(SCSI)
    await asyncio.sleep(LONG_S)
    assert bench.get(SCSI, r.COMMAND) == 0
    assert bench.get(SCSI, r.AF_CONTROL) == 0
    assert bench.get(ETHERNET, r.COMMAND) == command


@on_everything
async def test_an_error_on_a_conventional_bus_is_reported_by_the_bridge(bench: Everything) -> None:
    """SERR# on the bus becomes a message of the bridge to it: no device there has a requester id of its own."""
    before = bench.image(SERIAL)
    bench.inject(Injection.ERROR, SERIAL, names=("TLP",))
    assert bench.get(BRIDGE_PORT, r.ERROR_SOURCE) >> 16 == BRIDGE.requester_id
    assert bench.image(SERIAL) == before, "it has no register to log into"


# --- Event collectors ---


@pytest.mark.parametrize("reporter", [COLLECTED, OTHER_COLLECTED, COLLECTOR], ids=str)
def test_an_integrated_endpoints_error_reaches_its_collector(reporter: Address) -> None:
    @on_everything
    async def scenario(bench: Everything) -> None:
        bench.inject(Injection.ERROR, reporter, names=("CmpltTO",))
        assert bench.get(COLLECTOR, r.ROOT_ERROR_STATUS) & r.RootErrorStatus.NONFATAL_RECEIVED
        assert bench.get(COLLECTOR, r.ERROR_SOURCE) >> 16 == reporter.requester_id
        assert bench.raised == [(COLLECTOR, 1)]

    scenario()


@on_everything
async def test_a_collector_raises_one_edge_until_its_status_is_cleared(bench: Everything) -> None:
    bench.inject(Injection.ERROR, COLLECTED, names=("BadTLP",))
    bench.inject(Injection.ERROR, OTHER_COLLECTED, names=("BadTLP",))
    assert bench.vectors(COLLECTOR) == [1]
    assert bench.get(COLLECTOR, r.ROOT_ERROR_STATUS) & r.RootErrorStatus.MULTIPLE_CORRECTABLE
    bench.put(COLLECTOR, r.ROOT_ERROR_STATUS, 0x7F)
    bench.inject(Injection.ERROR, COLLECTED, names=("BadTLP",))
    assert bench.vectors(COLLECTOR) == [1]


@on_everything
async def test_a_masked_collector_raises_nothing(bench: Everything) -> None:
    bench.put(COLLECTOR, r.ROOT_ERROR_COMMAND, 0)
    bench.inject(Injection.ERROR, COLLECTED, names=("CmpltTO",))
    assert bench.vectors(COLLECTOR) == []


# --- Ports that tell less ---


@on_everything
async def test_a_port_without_link_active_reporting_never_says_that_its_link_is_up(bench: Everything) -> None:
    assert not bench.link_active(MUTE_PORT)
    assert bench.answers(HBA)
    bench.turn(MUTE_PORT, r.BRIDGE_CONTROL, r.BridgeControl.SECONDARY_BUS_RESET, True)
    assert not bench.answers(HBA)
    bench.turn(MUTE_PORT, r.BRIDGE_CONTROL, r.BridgeControl.SECONDARY_BUS_RESET, False)
    await asyncio.sleep(LONG_S)
    assert not bench.link_active(MUTE_PORT)
    assert bench.answers(HBA)


@on_everything
async def test_p9_without_rrs_visibility_what_is_not_ready_reads_as_all_ones(bench: Everything) -> None:
    bench.turn(MUTE_PORT, r.ROOT_CONTROL, r.RootControl.RRS_SOFTWARE_VISIBILITY, True)
    assert not bench.get(MUTE_PORT, r.ROOT_CONTROL) & r.RootControl.RRS_SOFTWARE_VISIBILITY
    seen = []
    for port, below in ((MUTE_PORT, HBA), (SILENT_PORT, SILENT_DISK)):
        bench.inject(Injection.SLOW_READY, port, for_s=LONG_S)
        bench.turn(port, r.BRIDGE_CONTROL, r.BridgeControl.SECONDARY_BUS_RESET, True)
        bench.turn(port, r.BRIDGE_CONTROL, r.BridgeControl.SECONDARY_BUS_RESET, False)
        await asyncio.sleep(LONG_S / 2)
        seen.append(bench.machine.read(below, 0, 4))
    assert seen == [b"\xff\xff\xff\xff", b"\x01\x00\xff\xff"]


@on_everything
async def test_a_port_completes_commands_only_if_it_says_so(bench: Everything) -> None:
    for port, completes in ((SILENT_PORT, False), (COMPLETING_PORT, True)):
        bench.turn(port, r.SLOT_CONTROL, r.SlotControl.PRESENCE_CHANGED_ENABLE, False)
        await asyncio.sleep(LONG_S)
        assert bool(bench.slot_status(port) & r.SlotStatus.COMMAND_COMPLETED) is completes


@on_everything
async def test_presence_out_of_band_outlasts_a_reset_and_in_band_does_not(bench: Everything) -> None:
    for port, lasts in ((OUT_OF_BAND_PORT, True), (NIC_PORT, False)):
        bench.turn(port, r.LINK_CONTROL, r.LinkControl.LINK_DISABLE, True)
        assert bool(bench.slot_status(port) & r.SlotStatus.PRESENCE) is lasts


def test_a_function_number_that_no_card_has_is_refused() -> None:
    @on_everything
    async def scenario(bench: Everything) -> None:
        with pytest.raises(MachineError, match="'256' is no function number"):
            bench.inject(Injection.SWAP, NIC_PORT, card={"256": {"vendor": 1, "device": 2}})

    scenario()
