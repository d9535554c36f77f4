"""An operator ends a lease: nobody is waited for any more, and the port ends as if all had gone well (P2)."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from shared.pcie import Address
from shared.protocol import Reason, Refused, subjects
from shared.protocol.facts import What
from shared.protocol.requests import Accepted, AcceptReply, Break, Hold, Release
from tests.integration.conftest import TOPOLOGIES
from tests.integration.fleet import Bench, start
from tests.integration.promises import keeps, verdicts

pytestmark = pytest.mark.asyncio(loop_scope="module")

PORT, CARD = "0000:00:01.0", "0000:01:00.0"
TWO, FIRST, SECOND = "0000:00:02.0", "0000:02:00.0", "0000:02:00.1"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    """One fleet for all tests here: a driver may take an hour, so what ends has been ended."""
    patient = {"HOLDFAST_DRIVER_S": "3600", "HOLDFAST_OWNER_S": "1", "HOLDFAST_ALLOWED_S": "2"}
    text = (TOPOLOGIES / "bench.toml").read_text()
    async with start(text, tmp_path_factory.mktemp("break"), environment=patient) as running:
        yield running


async def breaks(bench: Bench, lease: str) -> Accepted | Refused:
    message = Break(lease=lease, by="ann")
    reply = await bench.request(subjects.coordinator(bench.host, "break"), message, AcceptReply)
    assert isinstance(reply, Accepted | Refused)
    return reply


async def stuck(bench: Bench, port: str, function: str, step: str, name: str) -> tuple[str, int]:
    """Have a driver hang in a step of a recovery; return its lease, and where the story begins."""
    await bench.hang(function, step, name=name)
    since = bench.mark()
    await bench.inject("dpc", port, reason="uncorrectable")

    async def entered() -> str | None:
        steps = (one for one in bench.facts(What.RECOVERY_STEP, port, since) if one.data["step"] == step)
        return next((one.lease for one in steps), None)

    return await bench.eventually(entered, f"step {step} of {port}"), since


@pytest.mark.parametrize("step", ["error_detected", "slot_reset", "resume"])
async def test_p2_a_recovery_whose_driver_hangs_is_ended_and_the_others_are_kept(bench: Bench, step: str) -> None:
    async with keeps(bench, TWO, but=[SECOND], resets=True):
        lease, since = await stuck(bench, TWO, SECOND, step, "mlx5_core")
        assert await breaks(bench, lease) == Accepted(lease=lease, joined=True)
        record = await bench.closed(TWO, lease)
        assert verdicts(record) == {FIRST: "kept", SECOND: "failed"}
        broken = await bench.wait_fact(What.RECOVERY_BROKEN, TWO, since=since)
        assert (broken.data, broken.lease) == ({"by": "ann", "step": step}, lease)
        await bench.answer(SECOND, name="mlx5_core")
        since = bench.mark()
        await bench.inject("dpc", TWO, reason="uncorrectable")  # which the driver that hung recovers from
        begun = await bench.wait_fact(What.RECOVERY_STARTED, TWO, since=since)
        assert verdicts(await bench.closed(TWO, begun.lease)) == {FIRST: "kept", SECOND: "kept"}


async def test_p7_a_broken_hold_refuses_renewals_and_ends_with_its_release(bench: Bench) -> None:
    async with keeps(bench, PORT, resets=False):
        hold = await bench.request(
            subjects.coordinator(bench.host, "hold"), Hold(port=Address.parse(PORT)), AcceptReply
        )
        assert isinstance(hold, Accepted), hold
        assert isinstance(await breaks(bench, hold.lease), Accepted)
        renewed = await bench.request(
            subjects.coordinator(bench.host, "hold"), Hold(port=Address.parse(PORT), lease=hold.lease), AcceptReply
        )
        assert isinstance(renewed, Refused)
        assert renewed.reason is Reason.UNKNOWN_LEASE
        released = await bench.request(
            subjects.coordinator(bench.host, "release"), Release(lease=hold.lease), AcceptReply
        )
        assert isinstance(released, Accepted), released
        record = await bench.closed(PORT, hold.lease)
        assert verdicts(record) == {CARD: "kept"}


async def test_p2_a_broken_hold_whose_holder_is_silent_ends_by_itself(bench: Bench) -> None:
    async with keeps(bench, PORT, resets=False):
        hold = await bench.request(
            subjects.coordinator(bench.host, "hold"), Hold(port=Address.parse(PORT)), AcceptReply
        )
        assert isinstance(hold, Accepted), hold
        await breaks(bench, hold.lease)
        assert verdicts(await bench.closed(PORT, hold.lease)) == {CARD: "kept"}


async def test_p2_what_is_broken_stays_broken_if_the_coordinator_dies(bench: Bench) -> None:
    async with keeps(bench, PORT, but=[CARD], resets=True):
        lease, since = await stuck(bench, PORT, CARD, "error_detected", "nvme")
        bench.kill("coordinator", signal.SIGKILL)
        await bench.restart("coordinator")
        await bench.wait_fact(What.LEASE_ADOPTED, PORT, since=since)
        assert isinstance(await breaks(bench, lease), Accepted)
        assert verdicts(await bench.closed(PORT, lease)) == {CARD: "failed"}
        await bench.answer(CARD)
        since = bench.mark()
        await bench.inject("dpc", PORT, reason="uncorrectable")
        begun = await bench.wait_fact(What.RECOVERY_STARTED, PORT, since=since)
        assert verdicts(await bench.closed(PORT, begun.lease)) == {CARD: "kept"}


async def test_what_is_no_open_lease_is_not_broken(bench: Bench) -> None:
    refused = await breaks(bench, "r-of-yesterday")
    assert isinstance(refused, Refused)
    assert refused.reason is Reason.UNKNOWN_LEASE
