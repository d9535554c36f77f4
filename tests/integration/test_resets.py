"""Every method of a user's reset, in the kernel's order: what it hits, what it masks, and that everybody is kept."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from shared.pcie import Address
from shared.protocol import Reason, Refused, subjects
from shared.protocol.facts import What
from shared.protocol.requests import Accepted, AcceptReply, Cause, Planned, Recover, Reset, ResetReply
from tests.integration.fleet import Bench, start
from tests.integration.promises import keeps, opened, verdicts

pytestmark = pytest.mark.asyncio(loop_scope="module")


def port(number: int, bus: int, *, last: int = 0, more: str = "") -> str:
    return f"""
[[function]]
address = "0000:00:{number:02x}.0"
kind = "root_port"
bus = [{bus:#04x}, {last or bus:#04x}]
vendor = 0x8086
device = 0x6f04
{more}
"""


def card(address: str, number: int, *, kind: str = "endpoint", more: str = "") -> str:
    return f"""
[[function]]
address = "{address}"
kind = "{kind}"
vendor = 0x144d
device = 0xa824
class = 0x010802
serial = "00-11-22-33-44-55-{number:02x}-00"
bars = [0x4000]
driver = {{name = "nvme"}}
{more}
"""


PCI_CARD = """
[[function]]
address = "{address}"
kind = "conventional"
vendor = 0x10ec
device = 0x8139
class = 0x020000
bars = [0x4000]
driver = {{name = "8139too"}}
"""
PCI_BRIDGE = """
[[function]]
address = "0000:04:00.0"
kind = "pci_bridge"
bus = [0x05, 0x05]
vendor = 0x104c
device = 0x8240
serial = "00-11-22-33-44-55-04-00"
"""
TOPOLOGY = (
    port(1, 0x01, more="slot = {number = 1}")
    + card("0000:01:00.0", 1, more="af_flr = true")
    + port(2, 0x02, more="slot = {number = 2}")
    + card("0000:02:00.0", 2, more="pm_reset = true")
    + port(3, 0x03)
    + card("0000:03:00.0", 3)
    + port(4, 0x04, last=0x05)
    + PCI_BRIDGE
    + PCI_CARD.format(address="0000:05:00.0")
    + PCI_CARD.format(address="0000:05:04.0")
    + card("0000:00:1a.0", 0x1A, kind="integrated_endpoint", more="flr = true")
)
DOMAIN = ["0000:05:00.0", "0000:05:04.0"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    """One fleet for all tests here: each method has a port of its own."""
    async with start(TOPOLOGY, tmp_path_factory.mktemp("resets")) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rebinding(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    """A fleet that does as Linux 4.18 did: whoever was reset is bound anew."""
    topology = port(1, 0x01, more="dpc = true\nslot = {number = 1}") + card("0000:01:00.0", 1)
    policy = {"HOLDFAST_RECOVERY": "reenumerate"}
    async with start(topology, tmp_path_factory.mktemp("rebinding"), environment=policy) as running:
        yield running


async def ask(bench: Bench, function: str, **fields: Any) -> Accepted | Planned | Refused:
    message = Reset(function=Address.parse(function), **fields)
    reply = await bench.request(subjects.coordinator(bench.host, "reset"), message, ResetReply)
    assert isinstance(reply, Accepted | Planned | Refused)
    return reply


def told(bench: Bench, since: int) -> list[tuple[str, str]]:
    facts = bench.facts(What.RECOVERY_VOTE, since=since)
    return [(str(fact.data["function"]), fact.data["step"]) for fact in facts]


@pytest.mark.parametrize(
    ("function", "above", "method", "masks", "resets"),
    [
        ("0000:01:00.0", "0000:00:01.0", "af_flr", False, False),
        ("0000:02:00.0", "0000:00:02.0", "pm", False, False),
        ("0000:03:00.0", "0000:00:03.0", "bus", False, True),
        ("0000:00:1a.0", "0000:00:1a.0", "flr", False, False),
    ],
    ids=["af_flr", "pm", "bus_without_a_slot", "integrated"],
)
async def test_p1_p3_the_first_method_that_works_is_taken_and_the_device_is_kept(
    bench: Bench, function: str, above: str, method: str, masks: bool, resets: bool
) -> None:
    since = bench.mark()
    async with keeps(bench, above, resets=resets):
        reply = await ask(bench, function)
        assert isinstance(reply, Accepted), reply
        record = await bench.closed(above, reply.lease)
    assert {str(verdict) for verdict in record.verdicts.values()} == {"kept"}
    started = await bench.wait_fact(What.RECOVERY_STARTED, above, since=since)
    assert started.data["method"] == method
    assert bool(bench.facts(What.LEASE_MASKED, above, since)) is masks
    assert told(bench, since) == [(function, "reset_prepare"), (function, "reset_done")]


async def test_p3_behind_a_conventional_bridge_the_whole_bus_is_reset_if_that_is_asked_for(bench: Bench) -> None:
    refused = await ask(bench, DOMAIN[0])
    assert isinstance(refused, Refused)
    assert refused.reason is Reason.POLICY
    assert DOMAIN[1] in refused.message
    since = bench.mark()
    async with keeps(bench, "0000:04:00.0", resets=True):
        reply = await ask(bench, DOMAIN[0], domain=True)
        assert isinstance(reply, Accepted), reply
        record = await bench.closed("0000:04:00.0", reply.lease)
    assert verdicts(record) == dict.fromkeys(DOMAIN, "kept")
    assert sorted(told(bench, since)) == [(one, step) for one in DOMAIN for step in ("reset_done", "reset_prepare")]


async def test_a_dry_run_says_what_would_be_hit_and_touches_nothing(bench: Bench) -> None:
    since = bench.mark()
    planned = await ask(bench, "0000:01:00.0", method="bus", dry_run=True)
    assert isinstance(planned, Planned), planned
    assert [str(one) for one in planned.hits] == ["0000:01:00.0"]
    assert [str(one) for one in planned.masked] == [str(planned.port)] == ["0000:00:01.0"]
    beyond = await ask(bench, DOMAIN[0], domain=True, dry_run=True)
    assert isinstance(beyond, Planned), beyond
    assert [str(one) for one in beyond.beyond] == DOMAIN[1:]
    assert isinstance(await ask(bench, DOMAIN[0], dry_run=True), Refused)
    assert not opened(bench, since)
    assert not bench.facts(What.LEASE_EXECUTED, since=since)


@pytest.mark.parametrize("bridge", ["0000:00:01.0", "0000:04:00.0"], ids=["port", "pci_bridge"])
async def test_a_bridge_is_not_reset_and_the_refusal_says_what_to_name(bench: Bench, bridge: str) -> None:
    refused = await ask(bench, bridge, domain=True)
    assert isinstance(refused, Refused)
    assert refused.reason is Reason.UNSUPPORTED
    assert "behind it" in refused.message


async def test_p9_what_is_integrated_is_not_recovered_because_somebody_says_so(bench: Bench) -> None:
    since = bench.mark()
    message = Recover(port=Address.parse("0000:00:1a.0"), cause=Cause.AER_FATAL)
    reply = await bench.request(subjects.coordinator(bench.host, "recover"), message, AcceptReply)
    assert isinstance(reply, Accepted), reply
    closed = await bench.wait_fact(What.RECOVERY_CLOSED, "0000:00:1a.0", since=since)
    assert closed.data["why"] == "nothing is left to recover"
    assert not opened(bench, since)


async def test_p3_by_policy_every_driver_is_bound_anew_and_its_device_is_registered_anew(rebinding: Bench) -> None:
    function, above, since = "0000:01:00.0", "0000:00:01.0", rebinding.mark()
    before = (await rebinding.registry())[function].generation
    await rebinding.inject("dpc", above, reason="uncorrectable")
    begun = await rebinding.wait_fact(What.RECOVERY_STARTED, above, since=since)
    assert verdicts(await rebinding.closed(above, begun.lease)) == {function: "rebound"}
    assert [step for _, step in told(rebinding, since)] == ["error_detected", "unbind", "bind"]

    async def registered() -> bool | None:
        return (await rebinding.registry())[function].generation == before + 1 or None

    await rebinding.eventually(registered, "a new generation")
    assert not rebinding.facts(What.DEVICE_REMOVED, above, since)
