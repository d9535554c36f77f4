from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, cast

import msgspec
import pytest

from shared.pcie import NO_ANSWER, Address
from shared.protocol import LeaseRef, Message, Reason, Refused, fabric
from shared.protocol.fabric import Lease, Operation, Rank, Reach, Role, Verb
from shared.runtime import (
    Bus,
    BusUnreachable,
    FabricClient,
    Fenced,
    LeaseHandle,
    NobodyListens,
    RefusedError,
    Unanswered,
    keep_alive,
)

PORT = Address.parse("0000:3b:00.0")
LEASE = Lease(
    id="l1",
    token=7,
    port=PORT,
    rank=Rank.RECOVERY,
    reach=Reach.RESET,
    role=Role.COORDINATOR,
    cause="dpc",
    holder="c",
    allowed_s=6.0,
)
READ = (Operation(verb=Verb.READ, function=PORT),)
FENCED = Refused(reason=Reason.FENCED, message="the token is dead")
Run = Callable[[Coroutine[Any, Any, None]], None]
Answer = Message | type[Exception]


class Wire:
    """Answers requests from a script, its last line for ever; an exception in it is raised after its time."""

    def __init__(self, *script: Answer) -> None:
        self.script = list(script)
        self.asked: list[tuple[str, Message]] = []

    async def request(self, subject: str, message: Message, _reply: Any, *, timeout_s: float) -> Message:
        self.asked.append((subject, message))
        answer = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(answer, Message):
            return answer
        if answer is Unanswered:
            await asyncio.sleep(timeout_s)
        raise answer(subject)


def client(wire: Wire) -> FabricClient:
    return FabricClient(cast("Bus", wire), "lab", Role.COORDINATOR, "c")


def executed(*values: int | None) -> fabric.Executed:
    return fabric.Executed(values=values)


def numbers(wire: Wire) -> list[int]:
    return [message.n for _, message in wire.asked if isinstance(message, fabric.Execute)]


def test_p9_a_register_without_an_answer_is_no_number(in_virtual_time: Run) -> None:
    async def story() -> None:
        wire = Wire(fabric.Values(values=(5, None)))
        assert await client(wire).read(READ * 2) == (5, NO_ANSWER)
        assert wire.asked[0][0] == "pcie.lab.fabric.read"

    in_virtual_time(story())


@pytest.mark.parametrize("trouble", [Unanswered, NobodyListens, BusUnreachable])
def test_a_question_is_asked_again_until_the_fabric_is_back(trouble: type[Exception], in_virtual_time: Run) -> None:
    async def story() -> None:
        wire = Wire(trouble, trouble, fabric.Values(values=(5,)))
        assert await client(wire).read(READ) == (5,)
        assert len(wire.asked) == 3

    in_virtual_time(story())


@pytest.mark.parametrize("trouble", [Unanswered, NobodyListens, BusUnreachable])
def test_a_question_nobody_answers_ends_in_bounded_time(trouble: type[Exception], in_virtual_time: Run) -> None:
    async def story() -> None:
        started = asyncio.get_running_loop().time()
        with pytest.raises(trouble):
            await client(Wire(trouble)).read(READ, timeout_s=3.0)
        assert asyncio.get_running_loop().time() - started <= 3.0

    in_virtual_time(story())


def test_a_refused_question_says_why(in_virtual_time: Run) -> None:
    async def story() -> None:
        refused = Refused(reason=Reason.UNKNOWN_PORT, message="no such function")
        with pytest.raises(RefusedError, match="unknown_port: no such function") as caught:
            await client(Wire(refused)).read(READ)
        assert caught.value.refused is refused

    in_virtual_time(story())


def test_a_command_without_an_answer_is_repeated_under_the_same_number(in_virtual_time: Run) -> None:
    async def story() -> None:
        wire = Wire(Unanswered, Unanswered, executed(3), executed(4))
        handle = LeaseHandle(LEASE)
        assert await client(wire).execute(handle, READ) == (3,)
        assert await client(wire).execute(handle, READ) == (4,)
        assert numbers(wire) == [1, 1, 1, 2]
        assert wire.asked[0][0] == "pcie.lab.fabric.coordinator.execute"

    in_virtual_time(story())


@pytest.mark.parametrize("reason", [Reason.STOPPING, Reason.NOT_OWNER])
def test_a_fabric_that_is_being_restarted_is_waited_for(reason: Reason, in_virtual_time: Run) -> None:
    async def story() -> None:
        passing = Refused(reason=reason, message="not now")
        wire = Wire(passing, NobodyListens, executed(3))
        assert await client(wire).execute(LeaseHandle(LEASE), READ) == (3,)
        assert numbers(wire) == [1, 1, 1]
        with pytest.raises(RefusedError, match="not now"):
            await client(Wire(passing)).execute(LeaseHandle(LEASE), READ)

    in_virtual_time(story())


@pytest.mark.parametrize(
    "trouble", [NobodyListens, Refused(reason=Reason.STOPPING, message="too many requests; ask again")]
)
def test_a_fabric_that_turns_everybody_away_is_asked_less_and_less_often(trouble: Answer, in_virtual_time: Run) -> None:
    """Else all who ask again at once keep it as busy as it was."""

    async def story() -> None:
        wire = Wire(trouble)
        with pytest.raises((NobodyListens, RefusedError)):
            await client(wire).read(READ, timeout_s=5.0)
        assert 5 < len(wire.asked) < 15

    in_virtual_time(story())


def test_a_command_that_stays_unknown_uses_its_number_up(in_virtual_time: Run) -> None:
    """It may be executed yet; another command under its number would then be answered with its values."""

    async def story() -> None:
        wire = Wire(Unanswered)
        handle = LeaseHandle(LEASE)
        with pytest.raises(Unanswered):
            await client(wire).execute(handle, READ)
        wire.script = [executed(4)]
        await client(wire).execute(handle, READ)
        assert set(numbers(wire)) == {1, 2}
        assert numbers(wire)[-1] == 2

    in_virtual_time(story())


def test_an_adopted_lease_counts_on_from_the_last_number(in_virtual_time: Run) -> None:
    async def story() -> None:
        wire = Wire(fabric.Adopted(lease=msgspec.structs.replace(LEASE, last_n=41)), executed())
        handle = await client(wire).adopt("l1")
        await client(wire).execute(handle, READ)
        assert numbers(wire) == [42]

    in_virtual_time(story())


def test_commands_of_two_tasks_never_overtake_each_other(in_virtual_time: Run) -> None:
    async def story() -> None:
        wire = Wire(Unanswered, executed(1), executed(2))
        handle = LeaseHandle(LEASE)
        await asyncio.gather(client(wire).execute(handle, READ), client(wire).execute(handle, READ))
        assert numbers(wire) == [1, 1, 2]

    in_virtual_time(story())


@pytest.mark.parametrize("reason", [Reason.FENCED, Reason.UNKNOWN_LEASE])
def test_p7_a_fenced_command_says_so_and_marks_the_lease_as_lost(reason: Reason, in_virtual_time: Run) -> None:
    async def story() -> None:
        handle = LeaseHandle(LEASE)
        with pytest.raises(Fenced, match="l1"):
            await client(Wire(Refused(reason=reason, message="dead"))).execute(handle, READ)
        assert handle.lost.is_set()

    in_virtual_time(story())


def test_another_refusal_does_not_lose_the_lease(in_virtual_time: Run) -> None:
    async def story() -> None:
        handle = LeaseHandle(LEASE)
        with pytest.raises(RefusedError):
            await client(Wire(Refused(reason=Reason.UNMASKED, message="P1"))).execute(handle, READ)
        assert not handle.lost.is_set()

    in_virtual_time(story())


def test_a_holder_beats_three_times_within_what_is_allowed(in_virtual_time: Run) -> None:
    async def story() -> None:
        wire = Wire(fabric.Alive(lease=LEASE.ref))
        handle = LeaseHandle(LEASE)
        async with keep_alive(client(wire), handle):
            await asyncio.sleep(LEASE.allowed_s - 0.1)
        assert len(wire.asked) == 3
        await asyncio.sleep(LEASE.allowed_s)
        assert len(wire.asked) == 3
        assert not handle.lost.is_set()

    in_virtual_time(story())


def test_a_fenced_beat_marks_the_lease_as_lost(in_virtual_time: Run) -> None:
    async def story() -> None:
        handle = LeaseHandle(LEASE)
        async with keep_alive(client(Wire(FENCED)), handle):
            await handle.lost.wait()

    in_virtual_time(story())


def test_a_holder_out_of_reach_counts_itself_as_dead_when_the_fabric_does(in_virtual_time: Run) -> None:
    async def story() -> None:
        loop = asyncio.get_running_loop()
        wire = Wire(fabric.Alive(lease=LEASE.ref), Unanswered)
        handle = LeaseHandle(LEASE)
        heard = loop.time()
        async with keep_alive(client(wire), handle):
            await handle.lost.wait()
        assert loop.time() - heard <= LEASE.allowed_s

    in_virtual_time(story())


def test_a_close_whose_answer_was_lost_is_found_among_the_retired_leases(in_virtual_time: Run) -> None:
    async def story() -> None:
        retired = fabric.RetiredLease(lease=LEASE.ref)
        wire = Wire(Unanswered, FENCED, fabric.LeaseList(leases=(), retired=(retired,)))
        assert await client(wire).close(LeaseHandle(LEASE)) == fabric.Closed(lease=LEASE.ref, outcomes=())

    in_virtual_time(story())


def test_a_lease_that_was_absorbed_was_not_closed_by_us(in_virtual_time: Run) -> None:
    async def story() -> None:
        other = LeaseRef(id="l2", port=str(PORT), rank="recovery", cause="dpc", holder="d")
        retired = (fabric.RetiredLease(lease=LEASE.ref, absorbed_by="l2"), fabric.RetiredLease(lease=other))
        wire = Wire(FENCED, fabric.LeaseList(leases=(), retired=retired))
        with pytest.raises(Fenced):
            await client(wire).close(LeaseHandle(LEASE))

    in_virtual_time(story())


def test_open_returns_a_refusal_as_a_value_because_it_is_an_expected_result(in_virtual_time: Run) -> None:
    async def story() -> None:
        held = Refused(reason=Reason.HELD, message="held", lease=LEASE.ref)
        command = fabric.Open(id="l9", port=PORT, rank=Rank.USER, cause="user_reset", holder="c")
        assert await client(Wire(held)).open(command) is held

    in_virtual_time(story())
