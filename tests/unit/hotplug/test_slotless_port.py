"""What is kept below a port that has no slot: nobody removes it there, and nobody brings it up."""

from __future__ import annotations

import msgspec

from services.hotplug._keeper import Keeper
from shared.pcie import Topology
from shared.pcie import registers as r
from shared.runtime import Wake
from tests.unit.hotplug.hotplug_bench import BUSY, CARD, ENDPOINT, PORT, ROOT, Lab

SLOTLESS = msgspec.structs.replace(ROOT, slot=None, slot_number=0)


async def look(keeper: Keeper, *wakes: Wake) -> None:
    await keeper.look(frozenset(wakes))
    keeper.rest()


async def test_a_device_that_a_recovery_could_not_bring_back_stays_frozen_until_one_can(lab: Lab) -> None:
    lab.bench.seat(command=BUSY)
    lab.bench.topology = lab.shop.actors.topology = Topology((SLOTLESS, ENDPOINT))
    keeper = Keeper(PORT, lab.shop)
    await look(keeper, Wake.START)
    lab.bench.cover("r1")
    await look(keeper, Wake.INTERRUPT)
    assert lab.device().channel == "frozen"
    lab.bench.pull()
    lab.bench.uncover()
    await look(keeper, Wake.ENDED)
    assert (lab.device().present, lab.device().channel) == (True, "frozen"), "it does not answer"
    lab.bench.seat()
    await look(keeper, Wake.POLL)
    assert lab.device().channel == "frozen", "it answers, but nobody has set it up again"
    lab.bench.registers[CARD, r.COMMAND.offset] = BUSY
    await look(keeper, Wake.ENDED)
    assert (lab.device().generation, lab.device().channel) == (1, "normal")
