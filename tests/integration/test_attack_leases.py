"""Must show 7 and 12, by force: what does not come back, goes away below a lease, or fails once more while one ends."""

from __future__ import annotations

import json
import signal
import sys

import pytest

from shared.pcie import Address
from shared.pcie.registers import SlotControl
from shared.protocol import subjects
from shared.protocol.facts import What
from shared.protocol.requests import Accepted, AcceptReply, Hold
from tests.integration.cli import Cli, ended
from tests.integration.conftest import TOPOLOGIES, StartFleet
from tests.integration.fleet import Bench
from tests.integration.promises import enables, keeps, promises, quiet, verdicts

BENCH = (TOPOLOGIES / "bench.toml").read_text()
# The switch stands in a hotplug slot itself here.
SWITCH = (
    (TOPOLOGIES / "switch.toml").read_text().replace("dpc = true\nlink", "dpc = true\nslot = {number = 8}\nlink", 1)
)
PORT, CARD = Address.parse("00:01.0"), "01:00.0"


async def entered(bench: Bench, port: Address | str, step: str, since: int) -> None:
    async def look() -> bool | None:
        return step in {fact.data["step"] for fact in bench.facts(What.RECOVERY_STEP, port, since)} or None

    await bench.eventually(look, f"step {step} of {port}")


async def test_p6_a_fault_that_comes_while_drivers_resume_is_recovered_next(fleet: StartFleet) -> None:
    bench = await fleet(BENCH)
    await bench.hang(CARD, "resume")
    since = bench.mark()
    async with keeps(bench, str(PORT), resets=True):
        await bench.inject("dpc", PORT, reason="uncorrectable")
        first = await bench.wait_fact(What.RECOVERY_STARTED, PORT, since=since)
        await entered(bench, PORT, "resume", since)
        later = bench.mark()
        await bench.inject("dpc", PORT, reason="uncorrectable")
        await bench.answer(CARD)
        second = await bench.wait_fact(What.RECOVERY_STARTED, PORT, since=later)
        assert second.lease != first.lease
        assert verdicts(await bench.closed(PORT, second.lease)) == {"0000:01:00.0": "kept"}


async def test_p2_p8_a_switch_that_is_pulled_below_a_nested_recovery_leaves_no_lease_and_no_device(
    fleet: StartFleet,
) -> None:
    bench = await fleet(SWITCH)
    await bench.inject("driver", "04:00.0", driver={"name": "nvme", "delay_s": {"error_detected": 1.0}})
    before, since = await enables(bench, [PORT]), bench.mark()
    async with promises(bench):
        await bench.inject("dpc", "02:01.0", reason="uncorrectable")
        await entered(bench, "02:01.0", "error_detected", since)
        await bench.inject("remove", PORT)

        async def gone() -> bool | None:
            devices = (await bench.registry()).values()
            here = {str(one.function) for one in devices if one.present}
            return here.isdisjoint({"0000:03:00.0", "0000:04:00.0", "0000:05:00.0", "0000:06:00.0"}) or None

        await bench.eventually(gone, "all behind the switch removed")
        await quiet(bench, str(PORT))
    assert await enables(bench, [PORT]) == before


async def test_p2_a_reset_inside_a_hold_ends_although_the_coordinator_dies_in_it(fleet: StartFleet) -> None:
    """The hold waits for its command, and the command for the reset: a successor goes on with both."""
    bench = await fleet(BENCH, environment={"HOLDFAST_OWNER_S": "1", "HOLDFAST_ALLOWED_S": "15"})
    await bench.hang(CARD, "reset_prepare")
    since = bench.mark()
    async with keeps(bench, str(PORT), resets=True):
        reset = f"{sys.executable} -m services.console reset {CARD} --method bus --json --timeout 30"
        command = await Cli(bench).start("hold", str(PORT), "--", "sh", "-c", reset)
        await entered(bench, PORT, "reset_prepare", since)
        bench.kill("coordinator", signal.SIGKILL)
        await bench.restart("coordinator")
        await bench.answer(CARD)
        code, out, err = await ended(command)
        assert code == 0, err
        assert json.loads(out.splitlines()[0])["verdicts"]["0000:01:00.0"] == "kept"
    told = [fact.data["step"] for fact in bench.facts(What.RECOVERY_VOTE, since=since)]
    assert told.count("reset_done") == 1


@pytest.mark.campaign
async def test_p2_a_root_port_that_stays_busy_ends_in_quarantine_and_only_presence_speaks(fleet: StartFleet) -> None:
    text = BENCH.replace("dpc = true\nslot = {number = 1}", "dpc = true\nrp_busy_s = 3600.0\nslot = {number = 1}", 1)
    bench = await fleet(text)
    before, since = await enables(bench, [PORT]), bench.mark()
    await bench.inject("dpc", PORT, reason="uncorrectable")
    started = await bench.wait_fact(What.RECOVERY_STARTED, PORT, since=since)
    unmasked = await bench.wait_fact(What.LEASE_UNMASKED, PORT, since=since)
    assert unmasked.lease == started.lease
    found = before[str(PORT)]
    assert found is not None
    assert unmasked.data["enables"] == found & SlotControl.PRESENCE_CHANGED_ENABLE
    closed = await bench.wait_fact(What.RECOVERY_CLOSED, PORT, since=since)
    assert closed.data["verdicts"]["0000:01:00.0"] == "quarantined"
    assert [one.port for one in (await bench.leases()).quarantines] == [PORT]


@pytest.mark.campaign
async def test_p2_a_hold_whose_user_falls_silent_is_rolled_forward_and_unmasked(fleet: StartFleet) -> None:
    bench = await fleet(BENCH, environment={"HOLDFAST_ALLOWED_S": "1"})
    since = bench.mark()
    async with keeps(bench, str(PORT), resets=False):
        asked = Hold(port=PORT, holder="a test that dies")
        accepted = await bench.request(subjects.coordinator(bench.host, "hold"), asked, AcceptReply)
        assert isinstance(accepted, Accepted)
        await bench.wait_fact(What.LEASE_MASKED, PORT, since=since)
        await bench.closed(PORT, accepted.lease)
    assert bench.facts(What.LEASE_UNMASKED, PORT, since)
