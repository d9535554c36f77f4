from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, cast

import pytest

from shared.protocol import Message, decode, encode
from shared.protocol.records import Owner
from shared.runtime import Bus, BusUnreachable, Entry, Ownership, Unanswered, WrongRevision

KEY = "owner.lab.hotplug"
SILENCE_S = 6.0
Run = Callable[[Coroutine[Any, Any, None]], None]


class Bucket:
    """Records in memory, with the faults that a bus has."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.last = 0
        self.down = False
        self.loses_answers = 0  # so many writes are executed, and not answered
        self.delays = 0  # so many writes of an owner are not answered, and executed only by `arrive`
        self.delayed: list[tuple[str, Message, str, int]] = []

    async def get(self, key: str) -> Entry | None:
        self._reach()
        return self.entries.get(key)

    async def put(self, key: str, message: Message, *, revision: int) -> int:
        self._reach()
        entry = self.entries.get(key)
        return self._write(key, message, agreed=revision == (entry.revision if entry else 0))

    async def put_owned(self, key: str, message: Message, *, owner_key: str, owner_revision: int) -> int:
        self._reach()
        if self.delays:
            self.delays -= 1
            self.delayed.append((key, message, owner_key, owner_revision))
            raise Unanswered(key)
        return self._write_owned(key, message, owner_key, owner_revision)

    def arrive(self) -> None:
        """Execute what was delayed on its way, on the condition that it carries."""
        while self.delayed:
            with contextlib.suppress(WrongRevision):
                self._write_owned(*self.delayed.pop())

    def _write_owned(self, key: str, message: Message, owner_key: str, owner_revision: int) -> int:
        entry = self.entries.get(owner_key)
        return self._write(key, message, agreed=entry is not None and entry.revision == owner_revision)

    def owner(self) -> Owner:
        record: Owner = decode(self.entries[KEY].value, Owner)
        return record

    def _reach(self) -> None:
        if self.down:
            raise BusUnreachable("down")

    def _write(self, key: str, message: Message, *, agreed: bool) -> int:
        if not agreed:
            raise WrongRevision(key)
        self.last += 1
        self.entries[key] = Entry(key=key, value=encode(message), revision=self.last)
        if self.loses_answers:
            self.loses_answers -= 1
            raise Unanswered(key)
        return self.last


def candidate(bucket: Bucket, instance: str, *, preferred: bool = True) -> Ownership:
    return Ownership(cast("Bus", bucket), KEY, instance, SILENCE_S, preferred=preferred)


async def holding(bucket: Bucket, instance: str, *, preferred: bool = True) -> tuple[Ownership, asyncio.Task[None]]:
    ownership = candidate(bucket, instance, preferred=preferred)
    await ownership.acquire()
    return ownership, asyncio.create_task(ownership.keep())


def record(text: str) -> Owner:
    return Owner(owner=text, beat=0)  # any message will do


def test_the_first_instance_owns_the_host_at_once_and_keeps_it(in_virtual_time: Run) -> None:
    async def story() -> None:
        bucket = Bucket()
        first, keeping = await holding(bucket, "a")
        await asyncio.sleep(10 * SILENCE_S)
        assert first.held
        assert not keeping.done()
        keeping.cancel()

    in_virtual_time(story())


def test_a_standby_takes_over_from_an_instance_that_fell_silent(in_virtual_time: Run) -> None:
    async def story() -> None:
        bucket = Bucket()
        first, keeping = await holding(bucket, "a")
        await asyncio.sleep(2 * SILENCE_S)
        keeping.cancel()  # as if killed: it says nothing more
        second, second_keeping = await holding(bucket, "b")
        assert second.held
        assert not first.held
        assert bucket.owner().owner == second.owner
        second_keeping.cancel()

    in_virtual_time(story())


def test_a_standby_never_takes_over_from_an_instance_that_beats(in_virtual_time: Run) -> None:
    async def story() -> None:
        bucket = Bucket()
        first, keeping = await holding(bucket, "a")
        acquiring = asyncio.create_task(candidate(bucket, "b").acquire())
        await asyncio.sleep(20 * SILENCE_S)
        assert not acquiring.done()
        assert first.held
        for task in (acquiring, keeping):
            task.cancel()

    in_virtual_time(story())


def test_a_released_host_is_taken_over_without_waiting_out_the_silence(in_virtual_time: Run) -> None:
    async def story() -> None:
        bucket = Bucket()
        first, keeping = await holding(bucket, "a")
        loop = asyncio.get_running_loop()
        await first.release()
        released = loop.time()
        keeping.cancel()
        second, second_keeping = await holding(bucket, "b")
        assert second.held
        assert loop.time() == released
        second_keeping.cancel()

    in_virtual_time(story())


def test_p7_a_deposed_owner_writes_nothing(in_virtual_time: Run) -> None:
    async def story() -> None:
        bucket = Bucket()
        first, keeping = await holding(bucket, "a")
        keeping.cancel()
        second, second_keeping = await holding(bucket, "b")
        with pytest.raises(WrongRevision):
            await first.put_owned("device.lab.x", record("zombie"))
        await second.put_owned("device.lab.x", record("owner"))
        assert decode(bucket.entries["device.lab.x"].value, Owner) == record("owner")
        second_keeping.cancel()

    in_virtual_time(story())


def test_p7_the_bucket_refuses_a_deposed_owner_that_still_believes_in_itself(in_virtual_time: Run) -> None:
    async def story() -> None:
        bucket = Bucket()
        first, keeping = await holding(bucket, "a")
        await bucket.put(KEY, record("usurper"), revision=first.revision)
        believed = first.held
        with pytest.raises(WrongRevision):
            await first.put_owned("device.lab.x", record("zombie"))
        assert (believed, first.held) == (True, False)
        assert "device.lab.x" not in bucket.entries
        keeping.cancel()

    in_virtual_time(story())


def test_an_owner_without_a_bus_stops_believing_before_anybody_can_take_over(in_virtual_time: Run) -> None:
    async def story() -> None:
        bucket = Bucket()
        first, keeping = await holding(bucket, "a")
        bucket.down = True
        started = asyncio.get_running_loop().time()
        await keeping
        assert first.lost.is_set()
        assert not first.held
        assert asyncio.get_running_loop().time() - started < SILENCE_S

    in_virtual_time(story())


def test_an_owner_survives_an_outage_shorter_than_the_silence(in_virtual_time: Run) -> None:
    async def story() -> None:
        bucket = Bucket()
        first, keeping = await holding(bucket, "a")
        bucket.down = True
        await asyncio.sleep(SILENCE_S / 2)
        bucket.down = False
        await asyncio.sleep(10 * SILENCE_S)
        assert first.held
        keeping.cancel()

    in_virtual_time(story())


def test_a_beat_whose_answer_was_lost_is_not_taken_for_a_lost_race(in_virtual_time: Run) -> None:
    """prior-art/nats.md K8."""

    async def story() -> None:
        bucket = Bucket()
        first, keeping = await holding(bucket, "a")
        bucket.loses_answers = 1
        await asyncio.sleep(SILENCE_S / 3 + 0.1)  # the beat was executed, and the owner does not know
        assert bucket.entries[KEY].revision != first.revision
        await first.put_owned("device.lab.x", record("owner"))
        await asyncio.sleep(10 * SILENCE_S)
        assert first.held
        keeping.cancel()

    in_virtual_time(story())


def test_an_acquisition_whose_answer_was_lost_is_completed(in_virtual_time: Run) -> None:
    async def story() -> None:
        bucket = Bucket()
        bucket.loses_answers = 1
        first, keeping = await holding(bucket, "a")
        assert first.held
        keeping.cancel()

    in_virtual_time(story())


def test_a_second_life_under_the_same_name_is_somebody_else(in_virtual_time: Run) -> None:
    async def story() -> None:
        bucket = Bucket()
        _, keeping = await holding(bucket, "hotplug-1")
        keeping.cancel()
        loop = asyncio.get_running_loop()
        died = loop.time()
        second, second_keeping = await holding(bucket, "hotplug-1")
        assert second.held
        assert loop.time() - died >= SILENCE_S
        second_keeping.cancel()

    in_virtual_time(story())


def test_an_owner_whose_record_was_forgotten_by_the_bus_loses_the_host_and_gets_it_back(in_virtual_time: Run) -> None:
    """NATS may forget (prior-art/nats.md 1.4, K7): revisions start again, and a conditional write fails."""

    async def story() -> None:
        bucket = Bucket()
        first, keeping = await holding(bucket, "a")
        await asyncio.sleep(SILENCE_S)
        bucket.entries.clear()
        bucket.last = 0
        await keeping
        assert not first.held
        await first.acquire()
        assert first.held

    in_virtual_time(story())


def test_a_malformed_record_is_not_honoured_for_longer_than_the_silence(in_virtual_time: Run) -> None:
    async def story() -> None:
        bucket = Bucket()
        bucket.entries[KEY] = Entry(key=KEY, value=b"{nonsense", revision=7)
        bucket.last = 7
        first, keeping = await holding(bucket, "a")
        assert first.held
        keeping.cancel()

    in_virtual_time(story())


@pytest.mark.parametrize("was", ["never had", "released"])
def test_a_host_that_nobody_has_goes_to_the_instance_that_names_it_first(in_virtual_time: Run, was: str) -> None:
    async def story() -> None:
        bucket = Bucket()
        if was == "released":
            before, keeping = await holding(bucket, "before")
            await before.release()
            keeping.cancel()
        second = asyncio.create_task(candidate(bucket, "second", preferred=False).acquire())
        await asyncio.sleep(SILENCE_S / 3 - 0.1)  # the second was faster by almost a look
        first, keeping = await holding(bucket, "first")
        await asyncio.sleep(10 * SILENCE_S)
        assert first.held
        assert not second.done()
        for task in (second, keeping):
            task.cancel()

    in_virtual_time(story())


def test_an_instance_that_is_alone_soon_has_also_the_hosts_that_it_does_not_name_first(in_virtual_time: Run) -> None:
    async def story() -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        alone, keeping = await holding(Bucket(), "alone", preferred=False)
        assert alone.held
        assert loop.time() - began <= SILENCE_S / 2
        keeping.cancel()

    in_virtual_time(story())


def test_a_dead_owner_is_followed_no_later_by_an_instance_that_does_not_name_the_host_first(
    in_virtual_time: Run,
) -> None:
    async def story() -> None:
        loop, took = asyncio.get_running_loop(), []
        for preferred in (True, False):
            bucket = Bucket()
            _, keeping = await holding(bucket, "dead")
            keeping.cancel()
            died = loop.time()
            _, keeping = await holding(bucket, "heir", preferred=preferred)
            took.append(loop.time() - died)
            keeping.cancel()
        assert took[1] <= took[0]

    in_virtual_time(story())


def test_p9_a_write_that_was_delayed_on_its_way_does_not_overwrite_a_later_one(in_virtual_time: Run) -> None:
    """prior-art/nats.md C1: a frozen server executes a write seconds after its writer has given it up."""

    async def story() -> None:
        bucket = Bucket()
        owner, keeping = await holding(bucket, "a")
        bucket.delays = 1
        with pytest.raises(Unanswered):
            await owner.put_owned("recovery.lab.x", record("opened"))
        for step in ("opened", "reset"):
            await owner.put_owned("recovery.lab.x", record(step))
        bucket.arrive()
        assert decode(bucket.entries["recovery.lab.x"].value, Owner) == record("reset")
        assert owner.held
        keeping.cancel()

    in_virtual_time(story())


def test_a_host_is_released_also_after_a_beat_whose_answer_was_lost(in_virtual_time: Run) -> None:
    async def story() -> None:
        bucket = Bucket()
        owner, keeping = await holding(bucket, "a")
        bucket.loses_answers = 1
        await asyncio.sleep(SILENCE_S / 3 + 0.1)
        await owner.release()
        assert bucket.owner().released
        keeping.cancel()

    in_virtual_time(story())
