"""One recovery followed across all services by its lease, as `holdfast logs` tells it: while it runs, and afterwards."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from typing import Any

import pytest

from shared.protocol import from_builtins, to_builtins
from shared.protocol.fact_data import DATA
from shared.protocol.facts import Fact, What
from tests.integration.cli import Cli, ended
from tests.integration.conftest import TOPOLOGIES, StartFleet
from tests.integration.fleet import Bench

BENCH = (TOPOLOGIES / "bench.toml").read_text()
PORT = "0000:00:01.0"
DRIVE = "0000:01:00.0"
ADDED = ("since_s", "step", "text", "why")  # by `logs` to the fact


def lines(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def facts_of(told: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name not in ADDED} for line in told]


def in_time(facts: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out what hotplug finds when all is over: that may be after `--follow` has waited for it long enough."""
    return sorted((fact for fact in facts if fact["service"] != "hotplug"), key=str)


def as_declared(facts: Iterable[Fact]) -> None:
    """Assert that each fact carries what the protocol declares for its kind, and nothing else."""
    for fact in facts:
        kind = DATA[fact.what]
        from_builtins(fact.data, kind)
        undeclared = fact.data.keys() - kind.__struct_encode_fields__
        assert not undeclared, (fact.what, fact.data)


async def test_p10_a_recovery_is_followed_across_all_services_through_the_death_of_its_coordinator(
    fleet: StartFleet,
) -> None:
    bench = await fleet(BENCH, environment={"HOLDFAST_OWNER_S": "1"})
    await bench.hang(DRIVE, "error_detected")
    since = bench.mark()
    await bench.inject("dpc", PORT, reason="uncorrectable")
    lease = (await bench.wait_fact(What.RECOVERY_STARTED, PORT, since=since)).lease
    assert lease is not None
    bench.kill("coordinator")
    following = await Cli(bench).start("logs", lease.removeprefix("r-"), "--follow", "--json")
    assert following.stdout is not None
    begun = await following.stdout.readline()
    await bench.restart("coordinator")
    await bench.answer(DRIVE)
    await bench.closed(PORT, lease)

    code, out, err = await ended(following)  # by itself, since the lease is over

    assert code == 0, err
    told = lines(begun.decode() + out)
    by_itself = [line["what"] for line in told]
    assert (
        by_itself.index("containment.entered") < by_itself.index("lease.adopted") < by_itself.index("recovery.closed")
    )
    own = [to_builtins(fact) for fact in bench.facts(since=since) if fact.lease == lease]
    named = [fact for fact in facts_of(told) if fact["lease"] == lease]
    assert in_time(named) == in_time(own)  # every one of them, and each once
    # Told afterwards, it is the same story.
    await bench.wait_fact(What.DEVICE_KEPT, PORT, since=since, lease=lease)
    code, out, err = await Cli(bench).run("logs", lease, "--json")
    assert (code, err) == (0, "")
    whole = lines(out)
    assert {line["service"] for line in whole} == {"dpc", "fabric", "coordinator", "hotplug"}
    assert in_time(facts_of(told)) == in_time(facts_of(whole))
    assert [line["at"] for line in whole] == sorted(line["at"] for line in whole)
    assert whole[0]["since_s"] == 0
    afterwards = [line["what"] for line in whole]  # hotplug may have deferred a moment before dpc spoke
    assert afterwards.index("containment.entered") < afterwards.index("lease.opened")
    as_declared(bench.facts())


@pytest.mark.asyncio(loop_scope="session")
async def test_what_is_not_over_is_told_so_far_with_how_to_follow_it(bench: Bench) -> None:
    since = bench.mark()
    holding = await Cli(bench).start("hold", PORT, "--", "cat", stdin=subprocess.PIPE)
    held = await bench.wait_fact(What.RECOVERY_STARTED, PORT, since=since)

    code, out, err = await Cli(bench).run("logs")  # without a name: the last recovery

    assert code == 0
    assert out.startswith(f"Lease {held.lease} on {PORT} (hold), from ")
    assert f"`holdfast logs {held.lease} --follow`" in err
    assert holding.stdin is not None
    holding.stdin.close()
    assert (await ended(holding))[0] == 0


@pytest.mark.asyncio(loop_scope="session")
async def test_for_people_each_line_says_when_who_in_which_step_what_and_why(bench: Bench) -> None:
    since = bench.mark()
    await bench.inject("dpc", PORT, reason="uncorrectable")
    started = await bench.wait_fact(What.RECOVERY_STARTED, PORT, since=since)
    await bench.closed(PORT, started.lease)
    await bench.wait_fact(What.DEVICE_KEPT, PORT, since=since)

    code, out, err = await Cli(bench).run("logs", "--follow")  # what is over is told, and that is all

    assert (code, err) == (0, "")
    assert out.startswith(f"Lease {started.lease} on {PORT} (dpc), from ")
    _, *story = out.splitlines()
    assert story[0].split()[:2] == ["+0.000", "s"]
    assert ["dpc", f"{PORT}: DPC takes the link down (uncorrectable)"] in [one.split(maxsplit=3)[2:] for one in story]
    (vote,) = [line for line in story if "slot_reset → recovered" in line]
    assert vote.split()[2:4] == ["coordinator", "slot_reset"]
    (unmasked,) = [line for line in story if "interrupts as they were found" in line]
    assert unmasked.split()[2:4] == ["fabric", "close"]
    assert unmasked.endswith(": unchanged, and nothing is latched")
    assert any("device kept: the same device answers after dpc" in line for line in story)
    as_declared(bench.facts(since=since))


@pytest.mark.asyncio(loop_scope="session")
async def test_what_is_done_by_hand_carries_what_is_declared(bench: Bench) -> None:
    """Resets, holds, slots, errors: the rest of the facts that the table of fact data speaks of."""
    begin = bench.mark()  # what a test before us has forged is not declared
    for command in (
        ("reset", DRIVE),
        ("hold", PORT, "--", "true"),
        ("power", "off", PORT, "--yes"),
        ("power", "on", PORT),
    ):
        code, _, err = await Cli(bench).run(*command)
        assert code == 0, err
    since = bench.mark()
    await bench.inject("error", DRIVE, names=["BadTLP"])
    await bench.wait_fact(What.ERROR_CORRECTABLE, since=since)
    await bench.inject("error", DRIVE, names=["CmpltTO"], severity="nonfatal")

    async def recovered() -> bool | None:
        return any(fact.cause == "aer_nonfatal" for fact in bench.facts(What.RECOVERY_CLOSED, since=since)) or None

    await bench.eventually(recovered, "the recovery is closed")
    await bench.inject("remove", PORT)
    await bench.wait_fact(What.DEVICE_REMOVED, since=since)
    await bench.inject("insert", PORT)
    await bench.wait_fact(What.DEVICE_ADDED, since=since)
    as_declared(bench.facts(since=begin))


@pytest.mark.asyncio(loop_scope="session")
async def test_a_lease_that_no_fact_names_says_where_to_look(bench: Bench) -> None:
    code, out, err = await Cli(bench).run("logs", "r-nobody")
    assert (code, out) == (5, "")
    assert "'r-nobody'" in err
    assert "`holdfast history`" in err


@pytest.mark.asyncio(loop_scope="session")
async def test_a_part_of_several_leases_is_a_usage_error_that_names_them(bench: Bench) -> None:
    await bench.wait_fact(What.LEASE_CLOSED)
    code, out, err = await Cli(bench).run("logs", "0000-00-")
    assert (code, out) == (2, "")
    assert "ambiguous" in err
    assert "name more of it" in err
