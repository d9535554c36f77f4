from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from shared.runtime import Actor

Run = Callable[[Coroutine[Any, Any, None]], None]


class Recording(Actor[str]):
    def __init__(self, *, limit: int = 10) -> None:
        super().__init__("recording", limit=limit)
        self.story: list[str] = []

    async def started(self) -> None:
        self.story.append("started")

    async def receive(self, message: str) -> None:
        if message == "crash":
            raise RuntimeError(message)
        self.story.append(message)

    async def refused(self, message: str) -> None:
        self.story.append(f"refused {message}")


async def end(running: asyncio.Task[None]) -> None:
    running.cancel()
    await asyncio.wait({running})


def test_messages_are_handled_one_by_one_in_order(in_virtual_time: Run) -> None:
    async def story() -> None:
        actor = Recording()
        running = asyncio.create_task(actor.run())
        for message in "abc":
            assert actor.tell(message)
        await asyncio.sleep(1)
        assert actor.story == ["started", "a", "b", "c"]
        assert actor.statistics().handled == 3
        await end(running)

    in_virtual_time(story())


def test_a_crashed_actor_starts_over_with_what_is_left_in_its_mailbox(in_virtual_time: Run) -> None:
    async def story() -> None:
        actor = Recording()
        running = asyncio.create_task(actor.run())
        for message in ("a", "crash", "b"):
            actor.tell(message)
        await asyncio.sleep(1)
        assert actor.story == ["started", "a", "started", "b"]
        assert actor.statistics().crashes == 1
        await end(running)

    in_virtual_time(story())


def test_a_full_mailbox_drops_and_counts(in_virtual_time: Run) -> None:
    async def story() -> None:
        actor = Recording(limit=1)
        assert actor.tell("a")
        assert not actor.tell("b")
        assert actor.statistics().dropped == 1

    in_virtual_time(story())


def test_what_is_left_in_the_mailbox_at_the_end_is_refused(in_virtual_time: Run) -> None:
    async def story() -> None:
        actor = Recording()
        running = asyncio.create_task(actor.run())
        await asyncio.sleep(0)
        actor.tell("late")
        await end(running)
        assert actor.story == ["started", "refused late"]

    in_virtual_time(story())
