"""What runs inside a hold: before, the command, after; never without the lease (P7), and never for longer than --max."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any, cast

import pytest

from services.console._exit import ExitCode, Failure
from services.console._hold import Wanted, wanted
from services.console._session import Session
from services.console._tenant import LeaseLost, Signals, Tenant
from shared.pcie import Address, IdentityField
from shared.protocol import Message, Reason, Refused
from shared.protocol.fabric import Lease, Rank, Reach, Role
from shared.protocol.requests import Accepted
from shared.runtime import Unanswered

PORT = Address.parse("0000:00:01.0")
LEASE = Lease(
    id="x-1", token=0, port=PORT, rank=Rank.EXTERNAL, reach=Reach.RESET, role=Role.COORDINATOR, cause="hold",
    holder="hold me", allowed_s=5.0,
)  # fmt: skip
SLEEP = ("sleep", "600")


class FakeBus:
    """A coordinator that accepts renewals, until told to refuse them or to be silent."""

    def __init__(self) -> None:
        self.lost = self.silent = False
        self.stopping = 0  # so many renewals are refused by a coordinator that is about to go
        self.renewed = 0

    async def request(self, subject: str, message: Message, reply: Any, *, timeout_s: float) -> Message:
        del subject, message, reply
        await asyncio.sleep(0)
        if self.silent:
            raise Unanswered(f"no answer within {timeout_s} s")
        if self.stopping:
            self.stopping -= 1
            return Refused(reason=Reason.STOPPING, message="the coordinator is stopping; ask again")
        if self.lost:
            return Refused(reason=Reason.UNKNOWN_LEASE, message="x-1 is not a hold of this host, or has ended")
        self.renewed += 1
        return Accepted(lease="x-1")


class FakeSession:
    host = "lab"

    def __init__(self, bus: FakeBus) -> None:
        self.bus = bus


def tenant(bus: FakeBus, signals: Signals, max_s: float | None = None, lease: Lease = LEASE) -> Tenant:
    return Tenant(cast("Session", FakeSession(bus)), lease, PORT, signals, max_s)


def says(word: str, where: Path) -> str:
    return f"echo {word} $HOLDFAST_LEASE >> {where}/story"


def story(where: Path) -> list[str]:
    return (where / "story").read_text().splitlines() if (where / "story").exists() else []


async def begun(where: Path) -> None:
    """Wait until a command has said its word."""
    while True:
        if story(where):
            return
        await asyncio.sleep(0.01)


async def test_before_the_command_and_after_run_in_order_and_know_their_lease(tmp_path: Path) -> None:
    with Signals() as signals:
        code = await tenant(FakeBus(), signals).run_all(
            ("sh", "-c", says("command", tmp_path)), before=says("before", tmp_path), after=says("after", tmp_path)
        )
    assert code == 0
    assert story(tmp_path) == ["before x-1", "command x-1", "after x-1"]


@pytest.mark.parametrize(
    ("before", "command", "after", "code", "told"),
    [
        pytest.param("exit 3", "exit 4", "exit 5", 3, ["before", "after"], id="before fails"),
        pytest.param("true", "exit 4", "exit 5", 4, ["before", "command", "after"], id="the command fails"),
        pytest.param("true", "true", "exit 5", 5, ["before", "command", "after"], id="after fails"),
    ],
)
async def test_the_first_code_counts_a_failing_before_prevents_the_command_and_after_always_runs(
    tmp_path: Path, before: str, command: str, after: str, code: int, told: list[str]
) -> None:
    with Signals() as signals:
        ended = await tenant(FakeBus(), signals).run_all(
            ("sh", "-c", f"{says('command', tmp_path)}; {command}"),
            before=f"{says('before', tmp_path)}; {before}",
            after=f"{says('after', tmp_path)}; {after}",
        )
    assert ended == code
    assert [line.split()[0] for line in story(tmp_path)] == told


async def test_what_runs_for_longer_than_max_is_killed_and_after_runs_all_the_same(tmp_path: Path) -> None:
    with Signals() as signals:
        overdue = tenant(FakeBus(), signals, 0.3).run_all(SLEEP, before=None, after=says("after", tmp_path))
        with pytest.raises(Failure, match=r"sleep was killed: it ran for longer than --max 0\.3 s") as failed:
            await overdue
    assert failed.value.code is ExitCode.OVERDUE
    assert story(tmp_path) == ["after x-1"]


async def test_max_bounds_before_and_after_too() -> None:
    with Signals() as signals:
        for options in ({"before": "sleep 600", "after": None}, {"before": None, "after": "sleep 600"}):
            with pytest.raises(Failure, match="was killed") as failed:
                await tenant(FakeBus(), signals, 0.3).run_all(("true",), **options)
            assert failed.value.code is ExitCode.OVERDUE


async def test_p7_a_command_whose_lease_is_lost_is_killed_and_after_does_not_run_without_a_lease(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bus = FakeBus()
    script = f"{says('command', tmp_path)}; sleep 600"
    with Signals() as signals:
        work = asyncio.create_task(
            tenant(bus, signals).run_all(("sh", "-c", script), before=None, after=says("after", tmp_path))
        )
        await begun(tmp_path)
        bus.lost = True
        with pytest.raises(LeaseLost, match="x-1 is lost") as failed:
            await work
    assert failed.value.code is ExitCode.HELD
    assert story(tmp_path) == ["command x-1"]
    assert "--after was not run" in " ".join(capsys.readouterr().err.split())


async def test_p7_nothing_is_started_under_a_lease_that_ended_meanwhile(tmp_path: Path) -> None:
    bus = FakeBus()
    bus.lost = True
    with Signals() as signals, pytest.raises(LeaseLost):
        await tenant(bus, signals).run_all(("sh", "-c", says("command", tmp_path)), before=None, after=None)
    assert story(tmp_path) == []


async def test_p7_nothing_is_started_under_a_lease_that_nobody_renews(tmp_path: Path) -> None:
    bus = FakeBus()
    bus.silent = True
    brief = Lease(**{name: getattr(LEASE, name) for name in LEASE.__struct_fields__} | {"allowed_s": 0.3})
    with Signals() as signals, pytest.raises(LeaseLost, match="could not be renewed") as failed:
        await tenant(bus, signals, lease=brief).run_all(
            ("sh", "-c", says("command", tmp_path)), before=None, after=None
        )
    assert failed.value.code is ExitCode.UNREACHABLE
    assert story(tmp_path) == []


async def test_a_signal_ends_the_command_and_after_runs(tmp_path: Path) -> None:
    with Signals() as signals:
        script = f"{says('command', tmp_path)}; sleep 600"
        work = asyncio.create_task(
            tenant(FakeBus(), signals).run_all(("sh", "-c", script), before=None, after=says("after", tmp_path))
        )
        await begun(tmp_path)
        os.kill(os.getpid(), signal.SIGTERM)
        assert await work == 128 + signal.SIGTERM
    assert story(tmp_path) == ["command x-1", "after x-1"]


async def test_a_second_signal_ends_after_as_well(tmp_path: Path) -> None:
    with Signals() as signals:
        work = asyncio.create_task(
            tenant(FakeBus(), signals).run_all(("true",), before=None, after=f"{says('after', tmp_path)}; sleep 600")
        )
        await begun(tmp_path)
        os.kill(os.getpid(), signal.SIGINT)
        assert await work == 128 + signal.SIGINT


# --- What is typed ---


def test_what_is_asked_for_is_read() -> None:
    asked = wanted(("true",), accept=("revision, device", "serial,device"), quiet_errors=True, max_s=2.5, before="a")
    fields = (IdentityField.REVISION, IdentityField.DEVICE, IdentityField.SERIAL)
    assert asked == Wanted(("true",), fields, quiet_errors=True, max_s=2.5, before="a")


@pytest.mark.parametrize(
    ("command", "options", "said"),
    [
        pytest.param((), {}, "the command is empty", id="no command"),
        pytest.param(("",), {}, "the command is empty", id="an empty command"),
        pytest.param((" ",), {}, "the command is empty", id="blanks"),
        pytest.param(("no-such-tool",), {}, "no-such-tool cannot be started", id="no such tool"),
        pytest.param(("/etc/passwd",), {}, "/etc/passwd cannot be started", id="not executable"),
        pytest.param(("/tmp",), {}, "/tmp cannot be started", id="a directory"),  # noqa: S108 - it is not written
        pytest.param(("true",), {"accept": ("revsion",)}, "'revsion' is no field of an identity", id="a field"),
        pytest.param(("true",), {"accept": ("",)}, "'' is no field of an identity", id="no field"),
        pytest.param(("true",), {"accept": ("serial,",)}, "there are vendor, device, class, revision", id="a comma"),
        pytest.param(("true",), {"max_s": -1.0}, "--max -1: give a number of seconds above 0", id="negative"),
        pytest.param(("true",), {"max_s": 0.0}, "--max 0:", id="zero"),
        pytest.param(("true",), {"max_s": float("nan")}, "--max nan:", id="nan"),
        pytest.param(("true",), {"max_s": float("inf")}, "--max inf:", id="inf"),
        pytest.param(("true",), {"before": ""}, "--before is empty", id="before"),
        pytest.param(("true",), {"after": "  "}, "--after is empty", id="after"),
    ],
)
def test_what_is_typed_wrong_is_refused_before_anybody_is_asked(
    command: tuple[str, ...], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(Failure) as failed:
        wanted(command, **options)
    assert failed.value.code is ExitCode.USAGE
    assert said in str(failed.value)


async def test_p7_a_coordinator_that_stops_while_another_takes_over_costs_no_command_its_life(tmp_path: Path) -> None:
    bus = FakeBus()

    async def restarts() -> None:
        await begun(tmp_path)
        bus.stopping = 2
        while True:
            if not bus.stopping:
                (tmp_path / "go").touch()
                return
            await asyncio.sleep(0.01)

    with Signals() as signals:
        restarting = asyncio.create_task(restarts())
        script = f"{says('begun', tmp_path)}; while [ ! -e {tmp_path}/go ]; do sleep 0.05; done"
        assert await tenant(bus, signals).run_all(("sh", "-c", script), before=None, after=None) == 0
        await restarting
