"""The whole fleet under users of its own, over TLS: everything works as before, and a stolen key opens no other door."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio

from shared.pcie import Address
from shared.pcie import registers as r
from shared.protocol import Reason, Refused, permissions, subjects
from shared.protocol.fabric import (
    Adopt,
    AdoptReply,
    Close,
    CloseReply,
    Execute,
    ExecuteReply,
    Open,
    Opened,
    OpenReply,
    Operation,
    Rank,
    Reach,
    Role,
    Verb,
)
from shared.protocol.facts import What
from shared.protocol.records import Owner
from shared.runtime import NatsBus, NotPermitted, public_key
from tests.integration.cli import Cli
from tests.integration.conftest import TOPOLOGIES, UNHURRIED
from tests.integration.fleet import Bench, start
from tests.integration.promises import keeps, verdicts
from tests.integration.secured import make_keys

pytestmark = pytest.mark.asyncio(loop_scope="module")

PORT: Final = Address.parse("0000:00:02.0")
STORMY: Final = "0000:00:02.0"  # recovered more than once
STUCK: Final = "0000:02:00.0"  # a function behind it
FOREVER_S: Final = 3600.0  # what is not permitted is not waited for
DENIED: Final = 77
_AGAIN_S: Final = 0.2


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def secured(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    directory: Path = tmp_path_factory.mktemp("secured-fleet")
    keys = make_keys(directory / "keys")
    tired = {"HOLDFAST_STORM_RECOVERIES": "1", "HOLDFAST_STORM_S": "3600"}  # a port's second recovery is one too many
    async with start(
        (TOPOLOGIES / "bench.toml").read_text(), directory, keys=keys, environment=tired | UNHURRIED
    ) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def thief(secured: Bench) -> AsyncIterator[NatsBus]:
    """Somebody with hotplug's key."""
    bus = await secured.connect("hotplug")
    yield bus
    await bus.close()


# --- It works ---


async def test_p3_a_device_is_kept_and_a_viewer_may_look_at_its_story(secured: Bench) -> None:
    since = secured.mark()
    operator, viewer = Cli(secured), Cli(secured, user="viewer")
    async with keeps(secured, "00:01.0", resets=True):
        code, _, err = await operator.run("inject", "dpc", "00:01.0", "--reason", "uncorrectable")
        assert code == 0, err
        started = await secured.wait_fact(What.RECOVERY_STARTED, "00:01.0", since=since)
        record = await secured.closed("00:01.0", started.lease)
    assert verdicts(record) == {"0000:01:00.0": "kept"}
    for command in (["timeline"], ["logs"], ["lease", "show", record.lease]):
        code, out, err = await viewer.run(*command)
        assert code == 0, f"{command}: {err}"
        assert out


@pytest.mark.parametrize(
    "command",
    ["doctor", "status", "topology", "leases", "history", "audit", "quarantine list", "dump 01:00.0"],
)
async def test_a_viewer_may_look_at_everything(secured: Bench, command: str) -> None:
    code, out, err = await Cli(secured, user="viewer").run(*command.split())
    assert (code, bool(out)) == (0, True), err


async def test_a_viewer_may_watch(secured: Bench) -> None:
    watching = await Cli(secured, user="viewer").start("watch", "--json")
    assert watching.stdout is not None
    line = asyncio.create_task(watching.stdout.readline())
    try:
        while not line.done():
            await secured.inject("error", "03:00.0", names=["RxErr"])
            await asyncio.wait({line}, timeout=_AGAIN_S)
        assert json.loads(line.result())["host"] == "lab"
    finally:
        watching.kill()
        await watching.wait()


async def test_an_operator_may_reset_hold_and_switch_slots(secured: Bench) -> None:
    operator = Cli(secured)
    for command in (
        ["reset", "03:00.0", "--dry-run"],
        ["reset", "03:00.0", "--yes"],
        ["hold", "00:03.0", "--", "true"],
        ["hold", "00:03.0", "--accept", "revision", "--quiet-errors", "--", "true"],
        ["power", "off", "00:05.0", "--yes"],
        ["power", "on", "00:05.0"],
        ["dump", "03:00.0"],
        ["log-level", "dpc", "debug"],
    ):
        code, _, err = await operator.run(*command)
        assert code == 0, f"{command}: {err}"


async def test_an_operator_may_break_a_lease_and_release_a_quarantine_and_a_viewer_may_neither(secured: Bench) -> None:
    breaking, releasing = ("lease", "break", "--yes"), ("quarantine", "release", "--yes")
    await secured.hang(STUCK, "error_detected", name="mlx5_core")
    lease = await contained(secured)
    await is_denied(secured, *breaking, lease)
    await Cli(secured).run(*breaking, lease)
    assert (await secured.closed(STORMY, lease)).lease == lease
    broken = await secured.wait_fact(What.RECOVERY_BROKEN, STORMY)
    assert broken.lease == lease
    await secured.answer(STUCK, name="mlx5_core")

    record = await secured.closed(STORMY, await contained(secured))
    assert set(verdicts(record).values()) == {"quarantined"}
    await is_denied(secured, *releasing, STORMY)
    assert (await secured.leases()).quarantines
    code, _, err = await Cli(secured).run(*releasing, STORMY)
    assert code == 0, err
    assert not (await secured.leases()).quarantines


async def contained(secured: Bench) -> str:
    """Have the port contain an error; return the lease of its recovery."""
    since = secured.mark()
    await secured.inject("dpc", STORMY, reason="uncorrectable")
    started = await secured.wait_fact(What.RECOVERY_STARTED, STORMY, since=since)
    assert started.lease is not None
    return started.lease


@pytest.mark.parametrize(
    "command",
    [
        ["inject", "remove", "00:05.0"],
        ["reset", "03:00.0", "--yes"],
        ["reset", "03:00.0", "--dry-run"],
        ["hold", "00:03.0", "--", "true"],
        ["hold", "00:03.0", "--accept", "revision", "--quiet-errors", "--", "true"],
        ["log-level", "dpc", "debug"],
        ["power", "off", "00:04.0", "--yes"],
    ],
)
async def test_a_viewer_may_do_nothing_and_is_told_so_at_once(secured: Bench, command: list[str]) -> None:
    await is_denied(secured, *command)


async def is_denied(secured: Bench, *command: str) -> None:
    end = command.index("--") if "--" in command else len(command)
    options = ("--timeout", str(FOREVER_S))
    code, _, err = await Cli(secured, user="viewer").run(*command[:end], *options, *command[end:])
    assert code == DENIED, err
    assert "permits this credential no" in err


# --- What hotplug's key opens, and what it does not ---


def opening(lease: str, rank: Rank, reach: Reach) -> Open:
    return Open(id=lease, port=PORT, rank=rank, cause="theft", holder="thief", reach=reach)


async def ask(thief: NatsBus, role: Role, name: str, message: Any, reply: Any) -> Any:
    return await thief.request(subjects.command("lab", role, name), message, reply, timeout_s=FOREVER_S)


@pytest.mark.parametrize(
    ("name", "message", "reply"),
    [
        ("open", opening("stolen", Rank.RECOVERY, Reach.RESET), OpenReply),
        ("execute", Execute(token=1, n=1, operations=()), ExecuteReply),
        ("adopt", Adopt(id="stolen", holder="thief"), AdoptReply),
        ("close", Close(token=1), CloseReply),
    ],
)
async def test_p7_a_stolen_hotplug_key_cannot_command_as_the_coordinator(
    thief: NatsBus, name: str, message: Any, reply: Any
) -> None:
    with pytest.raises(NotPermitted):
        await ask(thief, Role.COORDINATOR, name, message, reply)


async def test_p1_a_stolen_hotplug_key_cannot_open_a_recovery(secured: Bench, thief: NatsBus) -> None:
    for rank in (Rank.RECOVERY, Rank.EXTERNAL, Rank.USER):
        refused = await ask(thief, Role.HOTPLUG, "open", opening("stolen", rank, Reach.RESET), OpenReply)
        assert isinstance(refused, Refused)
        assert refused.reason is Reason.ROLE
    assert not [lease for lease in (await secured.leases()).leases if lease.id == "stolen"]


@pytest.mark.parametrize(
    ("register", "bit"),
    [(r.BRIDGE_CONTROL, r.BridgeControl.SECONDARY_BUS_RESET), (r.LINK_CONTROL, r.LinkControl.LINK_DISABLE)],
)
async def test_p1_a_stolen_hotplug_key_cannot_write_a_reset_bit(
    secured: Bench, thief: NatsBus, register: r.Register, bit: int
) -> None:
    wanted = opening(f"slot-theft-{bit}", Rank.SLOT_OPERATION, Reach.NOTHING)

    async def let_in() -> Opened | None:
        reply = await ask(thief, Role.HOTPLUG, "open", wanted, OpenReply)  # refused while the real one looks
        return reply if isinstance(reply, Opened) else None

    opened = await secured.eventually(let_in, "a lease for the thief")
    express = (await secured.topology()).get(PORT).capabilities.express
    base = 0 if register is r.BRIDGE_CONTROL else express
    write = Operation(
        verb=Verb.MODIFY,
        function=PORT,
        offset=base + register.offset,
        width=register.width,
        value=int(bit),
        mask=int(bit),
    )
    refused = await ask(
        thief, Role.HOTPLUG, "execute", Execute(token=opened.lease.token, n=1, operations=(write,)), ExecuteReply
    )
    assert isinstance(refused, Refused)
    value = await secured.read(PORT, register, base)
    assert value is not None
    assert not value & int(bit)
    await ask(thief, Role.HOTPLUG, "close", Close(token=opened.lease.token), CloseReply)


def inbox(secured: Bench, user: str) -> str:
    seed = Path(secured.fleet.access(user)["HOLDFAST_NATS_CREDENTIAL"]).read_bytes().strip()
    return permissions.inbox(public_key(seed))


@pytest.mark.parametrize("asker", ["coordinator", "aer", "dpc"])
async def test_p7_a_stolen_hotplug_key_cannot_answer_for_another_service(
    secured: Bench, thief: NatsBus, asker: str
) -> None:
    with pytest.raises(NotPermitted):
        await thief.request(f"{inbox(secured, asker)}.one.two", Close(token=1), CloseReply, timeout_s=FOREVER_S)


@pytest.mark.parametrize("what", [What.RECOVERY_CLOSED, What.LEASE_CLOSED, What.CONTAINMENT_RELEASED])
async def test_p10_a_stolen_hotplug_key_cannot_forge_an_outcome(thief: NatsBus, what: What) -> None:
    with pytest.raises(NotPermitted):
        await thief.request(subjects.fact("lab", PORT, what), Close(token=1), CloseReply, timeout_s=FOREVER_S)


async def test_a_stolen_hotplug_key_cannot_write_the_journal_or_own_what_is_not_its_own(thief: NatsBus) -> None:
    forged = Owner(owner="thief", beat=1)
    for key in (subjects.recovery_key("lab", PORT), subjects.owner_key("lab", "coordinator")):
        with pytest.raises(NotPermitted):
            await thief.put(key, forged, revision=0)
