"""Must show 13: a person with a TCP connection, and a stranger who lies on the bus."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest

from shared.pcie import Address
from shared.protocol import subjects, to_builtins
from shared.protocol.fabric import Dump, Dumped, DumpReply
from shared.protocol.facts import What
from shared.protocol.requests import Accepted, AcceptReply, Hold, Release
from shared.recovery import Step
from tests.integration.cli import Cli, ended
from tests.integration.fleet import Bench
from tests.integration.promises import keeps, quiet, verdicts
from tests.integration.stranger import Stranger

pytestmark = pytest.mark.asyncio(loop_scope="session")

PORT: Final = Address.parse("0000:00:01.0")
DRIVE: Final = Address.parse("0000:01:00.0")
SETTLE_S: Final = 0.6  # for what must not happen: longer than the grace before a removal is believed
RENEW_S: Final = 1.0
HARDWARE: Final = ("port", "drive", "registry", "open")

# Everything that the registers could say of a port that lost its device, and of one that is contained.
LIES: Final[dict[str, dict[str, int | None]]] = {
    "hotplug": {"slot_control": 0, "slot_status": 0x0108, "link_status": 0},
    "aer": {"root_error_status": 0x7C, "error_source": 0x0100_0100},
    "dpc": {"dpc_control": 0x9, "dpc_status": 0x1F09, "dpc_source": 0x0100},
}
AUTHORITY: Final = {
    "link": "hotplug", "slot": "hotplug", "device": "hotplug", "error": "aer", "containment": "dpc",
    "lease": "fabric", "recovery": "coordinator",
}  # fmt: skip
FORGED_FACTS: Final[tuple[tuple[What, dict[str, Any]], ...]] = (
    (What.LINK_DOWN, {}),
    (What.SLOT_STATE, {"from": "on", "to": "off", "why": "forged"}),
    (What.SLOT_BUTTON, {}),
    (What.DEVICE_REMOVED, {"function": str(DRIVE), "generation": 1, "why": "forged"}),
    (What.DEVICE_CHANNEL, {"function": str(DRIVE), "from": "normal", "to": "perm_failure"}),
    (What.ERROR_FATAL, {"function": str(DRIVE), "names": ["MalfTLP"]}),
    (What.CONTAINMENT_ENTERED, {"reason": "uncorrectable"}),
    (What.LEASE_OPENED, {"rank": "recovery", "reach": "reset", "holder": "nobody"}),
    (What.LEASE_ABSORBED, {"heir": "nobody"}),
    (What.LEASE_ADOPTED, {"holder": "nobody"}),
    (What.LEASE_CLOSED, {"outcomes": {str(DRIVE): ["removed"]}}),
    (What.RECOVERY_VOTE, {"step": "error_detected", "function": str(DRIVE), "vote": "disconnect"}),
    (What.RECOVERY_CLOSED, {"verdicts": {str(DRIVE): "removed"}}),
)


async def image(bench: Bench, function: Address) -> bytes:
    reply = await bench.request(subjects.fabric(bench.host, "dump"), Dump(function=function), DumpReply)
    assert isinstance(reply, Dumped)
    return reply.config


async def everything(bench: Bench) -> dict[str, Any]:
    """Return what a lie must not change: registers, registry, journal, and who holds what."""
    leases = await bench.leases()
    return {
        "port": await image(bench, PORT),
        "drive": await image(bench, DRIVE),
        "registry": {name: to_builtins(device) for name, device in (await bench.registry()).items()},
        "journal": to_builtins(await bench.recovery(PORT)),
        "open": [lease.ref for lease in leases.leases],
        "retired": [retired.lease for retired in leases.retired],
    }


async def lie(stranger: Stranger, bench: Bench, lease: str | None) -> None:
    """Forge interrupts, facts and votes about the port, each in the form that its reader expects."""
    host = bench.host
    for service, registers in LIES.items():
        await stranger.publish(subjects.irq(host, PORT, service), {"port": str(PORT), "registers": registers})
        await stranger.publish(
            subjects.irq(host, PORT, service), {"port": str(PORT), "registers": dict.fromkeys(registers)}
        )
    for number, (what, data) in enumerate(FORGED_FACTS):
        fact = {
            "what": what, "host": host, "port": str(PORT), "service": AUTHORITY[what.split(".")[0]], "seq": number,
            "at": "2026-01-01T00:00:00Z", "lease": lease, "cause": "forged", "data": data,
        }  # fmt: skip
        await stranger.publish(subjects.fact(host, PORT, what), fact)
    for vote in ("disconnect", "need_reset", "none"):
        answer = {"type": "answer", "vote": vote, "driver": "nvme", "has_callbacks": True}
        await stranger.publish(subjects.driver(host, DRIVE), answer)
        await stranger.publish(subjects.driver(host, DRIVE), answer, reply=subjects.inject(host))
        await stranger.publish("_INBOX.coordinator", answer)
    await stranger.arrived()


@asynccontextmanager
async def changes_nothing(bench: Bench) -> AsyncIterator[None]:
    """Assert P9 of what is said inside."""
    before = await everything(bench)
    yield
    await asyncio.sleep(SETTLE_S)
    after = await everything(bench)
    for name, was in before.items():
        assert after[name] == was, f"P9: {name} changed"


async def test_by_hand_an_injection_in_json_is_answered_in_json(bench: Bench) -> None:
    async with Stranger(bench.fleet.url) as person:
        asked = {"what": "interrupt", "target": str(PORT), "service": "hotplug"}
        answer = await person.ask(f"pcie.{bench.host}.inject", asked)
        assert answer is not None
        assert json.loads(answer) == {"type": "injected", "v": 1, "what": "interrupt", "target": str(PORT)}
        since = bench.mark()
        async with keeps(bench, str(PORT), resets=True):
            asked = {"what": "dpc", "target": "00:01.0", "reason": "uncorrectable"}
            answer = await person.ask(f"pcie.{bench.host}.inject", asked)
            assert answer is not None
            assert json.loads(answer)["type"] == "injected"
            started = await bench.wait_fact(What.RECOVERY_STARTED, PORT, since=since)
            assert verdicts(await bench.closed(PORT, started.lease)) == {str(DRIVE): "kept"}


async def test_by_hand_every_question_is_answered_in_json(bench: Bench) -> None:
    async with Stranger(bench.fleet.url) as person:
        for subject, asked, kind in (
            ("fabric.topology", {}, "topology"),
            ("fabric.leases", {"port": str(PORT)}, "leases"),
            ("fabric.dump", {"function": str(DRIVE)}, "dumped"),
            (f"{PORT.token}.slot.status", {}, "slot"),
            (f"{DRIVE.token}.driver", {"function": str(DRIVE), "step": "mmio_enabled"}, "answer"),
        ):
            answer = await person.ask(f"pcie.{bench.host}.{subject}", asked)
            assert answer is not None, subject
            assert json.loads(answer)["type"] == kind, answer


async def test_p9_forged_interrupts_facts_and_votes_change_no_slot_and_no_device(bench: Bench) -> None:
    async with Stranger(bench.fleet.url) as stranger, changes_nothing(bench):
        await lie(stranger, bench, None)
        await lie(stranger, bench, "r-0000-00-01-0-nobody-1")


async def test_p9_the_same_lies_during_an_open_lease_end_it_no_sooner_and_unmask_nothing(bench: Bench) -> None:
    subject = subjects.coordinator(bench.host, "hold")
    before = await everything(bench)
    async with Stranger(bench.fleet.url) as stranger:
        held = await bench.request(subject, Hold(port=PORT, holder="test"), AcceptReply)
        assert isinstance(held, Accepted), held

        async def renewing() -> None:
            while True:
                await bench.request(subject, Hold(port=PORT, holder="test", lease=held.lease), AcceptReply)
                await asyncio.sleep(RENEW_S)

        renewal = asyncio.create_task(renewing())
        await bench.eventually(lambda: holding(bench, held.lease), "the journal says that it is held")
        async with changes_nothing(bench):
            await lie(stranger, bench, held.lease)
        assert [lease.id for lease in (await bench.leases()).leases] == [held.lease]
        renewal.cancel()
        release = subjects.coordinator(bench.host, "release")
        assert isinstance(await bench.request(release, Release(lease=held.lease), AcceptReply), Accepted)
        assert verdicts(await bench.closed(PORT, held.lease)) == {str(DRIVE): "kept"}
    await quiet(bench, str(PORT))
    after = await everything(bench)
    assert {name: after[name] for name in HARDWARE} == {name: before[name] for name in HARDWARE}


async def holding(bench: Bench, lease: str) -> bool | None:
    """Tell whether the device's channel is frozen and the journal is at rest: nobody has anything to write any more."""
    record = await bench.recovery(PORT)
    frozen = (await bench.registry())[str(DRIVE)].channel == "frozen"
    return (frozen and record is not None and record.lease == lease and record.step != Step.OPENED) or None


async def test_p9_an_unsolicited_vote_during_a_recovery_counts_for_nothing(bench: Bench) -> None:
    await bench.hang(DRIVE, "error_detected")
    before = await everything(bench)
    async with Stranger(bench.fleet.url) as stranger:
        since = bench.mark()
        await bench.inject("dpc", PORT, reason="uncorrectable")
        started = await bench.wait_fact(What.RECOVERY_STARTED, PORT, since=since)
        await lie(stranger, bench, started.lease)
        await bench.answer(DRIVE)
        record = await bench.closed(PORT, started.lease)
    assert {step: votes[str(DRIVE)] for step, votes in record.told.items()}["error_detected"] == "need_reset"
    assert verdicts(record) == {str(DRIVE): "kept"}
    await quiet(bench, str(PORT))
    after = await everything(bench)
    assert {name: after[name] for name in HARDWARE} == {name: before[name] for name in HARDWARE}


async def test_p9_a_forged_end_of_a_recovery_does_not_end_the_command_that_waits_for_it(bench: Bench) -> None:
    """The record says when it is closed, and how; the fact only wakes."""
    await bench.hang(DRIVE, "reset_prepare")
    async with Stranger(bench.fleet.url) as stranger:
        since = bench.mark()
        resetting = await Cli(bench).start("reset", str(DRIVE), "--method", "flr")
        started = await bench.wait_fact(What.RECOVERY_STARTED, PORT, since=since)
        await lie(stranger, bench, started.lease)
        assert resetting.returncode is None
        await bench.answer(DRIVE)
        code, _, err = await ended(resetting)
    assert code == 0, err
    assert f"{DRIVE} kept" in err
    await bench.closed(PORT, started.lease)
