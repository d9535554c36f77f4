"""What hotplug sees of a slot in quarantine: another card where presence is out of band, and nothing where it is not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

import pytest
import pytest_asyncio

from shared.pcie import Address
from shared.protocol import Reason, Refused, subjects
from shared.protocol.facts import Fact, What
from shared.protocol.requests import SlotReply, SlotRequest
from tests.integration.campaign import some_of
from tests.integration.fleet import Bench, start
from tests.integration.promises import enables, promises, verdicts
from tests.integration.slots import NEVER_S, once, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

# Another card, and one that has the serial number of the first.
CARDS: Final = {"another": "00-00-00-00-00-00-0a-77", "the same": "00-11-22-33-44-55-01-00"}
_PORT: Final = """
[[function]]
address = "0000:00:{number:02x}.0"
kind = "root_port"
bus = [{number}, {number}]
vendor = 0x8086
device = 0x6f04
dpc = true
slot = {{number = {number}, out_of_band_presence = {out_of_band}}}

[[function]]
address = "0000:{number:02x}:00.0"
kind = "endpoint"
vendor = 0x144d
device = 0xa824
class = 0x010802
serial = "00-11-22-33-44-55-{number:02x}-00"
bars = [0x4000]
driver = {{name = "nvme"}}
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    """One fleet for all tests here, which gives a card up soon: slot 1 has presence out of band, slot 2 has not."""
    soon = {"HOLDFAST_READY_S": "1", "HOLDFAST_LINK_S": "0.5", "HOLDFAST_STORM_RECOVERIES": "1000"}
    topology = _PORT.format(number=1, out_of_band="true") + _PORT.format(number=2, out_of_band="false")
    async with start(topology, tmp_path_factory.mktemp("quarantined"), environment=soon) as running:
        yield running


async def given_up(bench: Bench, number: int) -> None:
    """Have the port recovered until it is given up, and hotplug know."""
    port, since = f"00:{number:02x}.0", bench.mark()
    await bench.inject("slow_ready", port, for_s=NEVER_S)
    await bench.inject("dpc", port, reason="uncorrectable")
    await bench.wait_fact(What.QUARANTINE_ENTERED, port, since=since)
    told = await bench.wait_fact(What.SLOT_IGNORED, port, since=since)
    assert told.data["reason"] == "quarantined"

    async def failed() -> bool | None:
        return (await bench.registry())[f"0000:{number:02x}:00.0"].channel == "perm_failure" or None

    await bench.eventually(failed, "the channel counts as failed")
    await bench.inject("slow_ready", port)  # the next card is quick


@pytest.mark.parametrize("card", some_of(CARDS, 0))
async def test_p2_p4_another_card_in_a_slot_in_quarantine_ends_it_and_is_enabled_once(bench: Bench, card: str) -> None:
    port, function = "00:01.0", "0000:01:00.0"
    before, was = await enables(bench, [Address.parse(port)]), await bench.registry()
    since = bench.mark()
    async with promises(bench):
        await given_up(bench, 1)
        pulled = bench.mark()
        await bench.inject("remove", port)
        await bench.wait_fact(What.SLOT_IGNORED, port, since=pulled)
        assert not bench.facts(What.QUARANTINE_LIFTED, port, since)
        assert not bench.facts(What.DEVICE_REMOVED, port, since)
        await bench.inject("insert", port, card={"0": {"serial": CARDS[card]}})
        lifted = await bench.wait_fact(What.QUARANTINE_LIFTED, port, since=since)
        begun: Fact = await bench.wait_fact(What.RECOVERY_STARTED, port, since=bench.facts().index(lifted))
        assert begun.data["evidence"] == {"by": "hotplug: another card is seated"}
        record = await bench.closed(port, begun.lease)
        assert function in verdicts(record)
        await once(bench, What.DEVICE_REMOVED, function, since)
        await once(bench, What.DEVICE_ADDED, function, since)
        await until(bench, port, "on")
    device = (await bench.registry())[function]
    assert (device.generation, device.channel) == (was[function].generation + 1, "normal")
    assert device.identity.serial == int(CARDS[card].replace("-", ""), 16)
    assert await enables(bench, [Address.parse(port)]) == before
    assert not (await bench.leases()).quarantines


async def test_where_presence_is_in_band_a_swap_is_not_seen_and_the_operator_is_named(bench: Bench) -> None:
    port, address = "00:02.0", Address.parse("0000:00:02.0")
    since = bench.mark()
    await given_up(bench, 2)
    await bench.inject("swap", port, card={"0": {"serial": "00-00-00-00-00-00-0b-77"}})
    await bench.inject("interrupt", port, service="hotplug")
    subject = subjects.slot(bench.host, address, "power_off")
    refused = await bench.request(subject, SlotRequest(), SlotReply)
    assert isinstance(refused, Refused)
    assert refused.reason is Reason.QUARANTINED
    assert f"holdfast quarantine release {address}" in refused.message
    assert not bench.facts(What.QUARANTINE_LIFTED, port, since)
    assert not bench.facts(What.DEVICE_REMOVED, port, since)
