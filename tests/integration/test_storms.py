"""What does not come up again is tried three times under one mask, and then held down until somebody has seen to it."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from typing import Any, Final

import pytest
import pytest_asyncio

from shared.pcie import Address
from shared.pcie.registers import LINK_STATUS, LinkStatus
from shared.protocol import Reason, Refused, subjects
from shared.protocol.fabric import Quarantine
from shared.protocol.facts import What
from shared.protocol.requests import Accepted, AcceptReply, Cause, Hold, Lift, Recover, Reset, ResetMethod, ResetReply
from tests.integration.campaign import some_of
from tests.integration.fleet import Bench, start
from tests.integration.promises import enables, opened, p1_mask_before_reset, p6_one_owner, verdicts

pytestmark = pytest.mark.asyncio(loop_scope="module")

RECOVERIES: Final = 3  # more than these within the minute are a storm
PORTS: Final = tuple(range(1, 8))


def _pair(number: int) -> str:
    """Return a slot with DPC, the even ones without, and a card of one function."""
    return f"""
[[function]]
address = "0000:00:{number:02x}.0"
kind = "root_port"
bus = [{number:#04x}, {number:#04x}]
vendor = 0x8086
device = 0x6f04
dpc = {"true" if number % 2 else "false"}
slot = {{number = {number}}}

[[function]]
address = "0000:{number:02x}:00.0"
kind = "endpoint"
vendor = 0x144d
device = 0xa824
class = 0x010802
serial = "00-11-22-33-44-66-{number:02x}-00"
bars = [0x4000]
driver = {{name = "nvme"}}
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    """One fleet for all tests here, each with a port of its own: it is soon tired of trying."""
    tired = {
        "HOLDFAST_STORM_RECOVERIES": str(RECOVERIES),
        "HOLDFAST_STORM_S": "3600",
        "HOLDFAST_READY_S": "2",
        "HOLDFAST_LINK_S": "1",
        "HOLDFAST_OWNER_S": "1",
        "HOLDFAST_ALLOWED_S": "2",
    }
    topology = "".join(_pair(number) for number in PORTS)
    async with start(topology, tmp_path_factory.mktemp("storms"), environment=tired) as running:
        yield running


def port_of(number: int) -> str:
    return f"0000:00:{number:02x}.0"


def card_of(number: int) -> str:
    return f"0000:{number:02x}:00.0"


async def ask(bench: Bench, what: str, message: Any) -> Accepted | Refused:
    reply = await bench.request(subjects.coordinator(bench.host, what), message, AcceptReply)
    assert isinstance(reply, Accepted | Refused)
    return reply


async def fails(bench: Bench, number: int) -> int:
    """Have the port recovered, as DPC or AER asks for it; return where the story begins."""
    since = bench.mark()
    if number % 2:
        await bench.inject("dpc", port_of(number), reason="uncorrectable")
    else:
        await bench.inject("error", card_of(number), names=["MalfTLP"])
    return since


async def recovered(bench: Bench, number: int, since: int) -> tuple[str, str]:
    """Return the lease of the recovery begun since, and the verdict on the card."""
    begun = await bench.wait_fact(What.RECOVERY_STARTED, port_of(number), since=since)
    record = await bench.closed(port_of(number), begun.lease)
    return record.lease, verdicts(record)[card_of(number)]


async def quarantine_of(bench: Bench, number: int) -> Quarantine | None:
    listed = (await bench.leases()).quarantines
    return next((one for one in listed if str(one.port) == port_of(number)), None)


async def link_is_down(bench: Bench, number: int) -> bool:
    express = (await bench.topology()).get(Address.parse(port_of(number))).capabilities.express
    return not ((await bench.read(port_of(number), LINK_STATUS, express)) or 0) & LinkStatus.LINK_ACTIVE


async def held_down(bench: Bench, number: int, since: int) -> None:
    """Assert the quarantine of the port: its record, its link, what its slot says and what the registry keeps."""
    entered = await bench.wait_fact(What.QUARANTINE_ENTERED, port_of(number), since=since)
    assert entered.data["held_by"] == ("dpc" if number % 2 else "link_disable")
    assert await quarantine_of(bench, number) is not None
    assert await link_is_down(bench, number)
    told = bench.facts(What.RECOVERY_VOTE, since=since)
    about = [fact.data["step"] for fact in told if str(fact.data["function"]) == card_of(number)]
    assert "perm_failure" in about
    assert "resume" not in about

    async def failed() -> bool | None:
        return (await bench.registry())[card_of(number)].channel == "perm_failure" or None

    await bench.eventually(failed, "the registry knows")
    assert (await bench.registry())[card_of(number)].present
    assert not bench.facts(What.DEVICE_REMOVED, port_of(number), since)


async def lifted(bench: Bench, number: int) -> str:
    """Release the quarantine; return the verdict on the card."""
    since = bench.mark()
    reply = await ask(bench, "lift", Lift(port=Address.parse(port_of(number)), by="the test"))
    assert isinstance(reply, Accepted), reply
    record = await bench.closed(port_of(number), reply.lease)
    assert await quarantine_of(bench, number) is None
    begun = await bench.wait_fact(What.RECOVERY_STARTED, port_of(number), since=since)
    assert (begun.cause, begun.data["evidence"]) == ("lift", {"by": "the test"})
    return verdicts(record)[card_of(number)]


async def as_before(bench: Bench, since: int, before: dict[str, int | None], number: int, generation: int) -> None:
    """Assert P1, P2, P3 and P6 over everything since: first mask to last unmask, whatever was in between."""
    topology = await bench.topology()

    async def set_up() -> bool | None:
        device = (await bench.registry())[card_of(number)]
        restored = await enables(bench, [Address.parse(port_of(number))]) == before
        return (device.channel == "normal" and restored) or None

    await bench.eventually(set_up, "P2: the enables that were found first")
    device = (await bench.registry())[card_of(number)]
    assert (device.present, device.generation) == (True, generation), "P3"
    facts = bench.facts(since=since)
    p1_mask_before_reset(facts, topology)
    p6_one_owner(facts, topology)


async def state_of(bench: Bench, number: int) -> tuple[dict[str, int | None], int]:
    device = (await bench.registry())[card_of(number)]
    return await enables(bench, [Address.parse(port_of(number))]), device.generation


def tries(bench: Bench, number: int, since: int) -> list[str]:
    told = bench.facts(What.RECOVERY_PROGRESS, port_of(number), since)
    return [fact.data["why"] for fact in told if fact.data["step"] == "reset" and fact.data.get("why")]


async def tried(bench: Bench, number: int, since: int) -> bool | None:
    return bool(tries(bench, number, since)) or None


@pytest.mark.parametrize("number", some_of([pytest.param(1, id="with_dpc"), pytest.param(2, id="without_dpc")], 0))
async def test_p2_p3_what_never_answers_is_tried_three_times_then_held_down_and_kept_when_it_is_released(
    bench: Bench, number: int
) -> None:
    before, generation = await state_of(bench, number)
    await bench.inject("slow_ready", port_of(number), for_s=3600.0)
    since = await fails(bench, number)
    assert (await recovered(bench, number, since))[1] == "quarantined"
    assert [why.split(";")[0] for why in tries(bench, number, since)] == ["failure 1 of 3", "failure 2 of 3"]
    assert len(opened(bench, since, port_of(number))) == 1, "all tries are under one mask"
    await held_down(bench, number, since)

    for what, message in (
        ("hold", Hold(port=Address.parse(port_of(number)))),
        ("hold", Hold(port=Address.parse(card_of(number)))),
    ):
        refused = await ask(bench, what, message)
        assert isinstance(refused, Refused)
        assert refused.reason is Reason.QUARANTINED
    question = Reset(function=Address.parse(card_of(number)), method=ResetMethod.BUS, dry_run=True)
    planned = await bench.request(subjects.coordinator(bench.host, "reset"), question, ResetReply)
    assert isinstance(planned, Refused), "nothing is planned that would be refused"
    assert planned.reason is Reason.QUARANTINED
    await bench.inject("slow_ready", port_of(number))
    assert await lifted(bench, number) == "kept"
    await as_before(bench, since, before, number, generation)


async def test_what_is_not_in_quarantine_is_not_released(bench: Bench) -> None:
    since = bench.mark()
    for address in (port_of(5), card_of(5)):
        assert isinstance(await ask(bench, "lift", Lift(port=Address.parse(address))), Refused)
    assert not opened(bench, since, port_of(5))


async def test_p3_a_link_that_is_steady_at_the_second_try_is_kept_under_the_same_lease(bench: Bench) -> None:
    number = 3
    before, generation = await state_of(bench, number)
    # It is up for less time than it takes to restore what is behind it, and seen to be up all the same.
    await bench.inject("unstable_link", port_of(number), for_s=0.02, count=0)
    since = await fails(bench, number)
    await bench.eventually(lambda: tried(bench, number, since), "the first failure")
    await bench.inject("unstable_link", port_of(number), for_s=3600.0, count=1)  # from now on it is steady
    assert (await recovered(bench, number, since))[1] == "kept"
    assert len(opened(bench, since, port_of(number))) == 1
    await as_before(bench, since, before, number, generation)


async def test_p8_a_card_that_is_pulled_while_it_is_tried_again_is_removed_and_not_held_down(bench: Bench) -> None:
    number = 4
    await bench.inject("slow_ready", port_of(number), for_s=3600.0)
    since = await fails(bench, number)
    await bench.eventually(lambda: tried(bench, number, since), "the first failure")
    await bench.inject("remove", port_of(number))
    assert (await recovered(bench, number, since))[1] in {"removed", "failed"}
    assert await quarantine_of(bench, number) is None
    await bench.wait_fact(What.DEVICE_REMOVED, port_of(number), since=since)
    assert len(tries(bench, number, since)) == 1


async def test_one_recovery_too_many_in_a_minute_holds_the_port_down_and_releasing_it_begins_anew(bench: Bench) -> None:
    number = 5
    before, generation = await state_of(bench, number)
    beginning = bench.mark()
    for _ in range(RECOVERIES):
        since = await fails(bench, number)
        assert (await recovered(bench, number, since))[1] == "kept"
    since = await fails(bench, number)
    assert (await recovered(bench, number, since))[1] == "quarantined"
    await held_down(bench, number, since)
    entered = await bench.wait_fact(What.QUARANTINE_ENTERED, port_of(number), since=since)
    assert f"{RECOVERIES + 1} recoveries" in entered.data["why"]

    refused = await ask(bench, "recover", Recover(port=Address.parse(port_of(number)), cause=Cause.DPC))
    assert isinstance(refused, Refused)
    assert refused.reason is Reason.QUARANTINED

    assert await lifted(bench, number) == "kept"
    await as_before(bench, beginning, before, number, generation)
    since = await fails(bench, number)
    assert (await recovered(bench, number, since))[1] == "kept"


async def test_p2_a_coordinator_killed_between_two_tries_is_followed_by_one_who_counts_on(bench: Bench) -> None:
    number = 6
    before, generation = await state_of(bench, number)
    await bench.inject("slow_ready", port_of(number), for_s=3600.0)
    since = await fails(bench, number)
    await bench.eventually(lambda: tried(bench, number, since), "the first failure")
    bench.kill("coordinator", signal.SIGKILL)
    await bench.restart("coordinator")
    assert (await recovered(bench, number, since))[1] == "quarantined"
    await held_down(bench, number, since)
    assert len(opened(bench, since, port_of(number))) == 1
    await bench.inject("slow_ready", port_of(number))
    assert await lifted(bench, number) == "kept"
    await as_before(bench, since, before, number, generation)


async def test_a_coordinator_killed_between_two_recoveries_is_followed_by_one_who_counts_on(bench: Bench) -> None:
    number = 7
    before, generation = await state_of(bench, number)
    beginning = bench.mark()
    for _ in range(RECOVERIES):
        since = await fails(bench, number)
        assert (await recovered(bench, number, since))[1] == "kept"
    bench.kill("coordinator", signal.SIGKILL)
    await bench.restart("coordinator")
    since = await fails(bench, number)
    assert (await recovered(bench, number, since))[1] == "quarantined"
    assert await lifted(bench, number) == "kept"
    await as_before(bench, beginning, before, number, generation)
