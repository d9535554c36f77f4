"""Calling drivers: one at a time within a device, devices side by side, and a barrier at the end of each step.

A driver may take as long as it likes up to its bound; its lease is kept by beats meanwhile, so slowness costs time and
nothing else. One that does not come back fails alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import msgspec

from shared.pcie import Address
from shared.protocol import ProtocolError, Refused
from shared.protocol.requests import Channel, DriverAnswer, DriverCall, DriverStep, Vote
from shared.runtime import Context, NobodyListens, call_driver

PROGRESS_EVERY: Final = 1.0  # seconds between two reports of a step that waits for drivers


class Heard(msgspec.Struct, frozen=True):
    """What one driver answered. `answered` is false where it did not come back within its bound."""

    function: Address
    step: DriverStep
    vote: Vote
    driver: str | None
    took_s: float
    answered: bool = True


class Call(msgspec.Struct, frozen=True):
    """One step for many functions."""

    step: DriverStep
    functions: tuple[Address, ...]
    channel: Channel
    lease: str
    token: int
    within_s: float | None = None  # less patience than the settings ask for: somebody has broken the lease


Hear = Callable[[Sequence[Heard]], Awaitable[None]]
Wait = Callable[[Call, Sequence[Address], float], None]


class Drivers:
    """The drivers of one host."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.busy: set[Address] = set()  # whose driver has not come back yet; also after the asker was stopped

    async def call(self, call: Call, hear: Hear, waiting: Wait) -> None:
        """Call all functions; return when every one has answered or failed to.

        `hear` is awaited with the answers as they come, `waiting` is told about once a second who is still awaited.
        """
        started = asyncio.get_running_loop().time()
        heard: list[Heard] = []
        news = asyncio.Event()
        open_functions = set(call.functions)
        tasks = {
            asyncio.create_task(self._device(call, functions, heard, news), name=f"{call.step} {functions[0]}")
            for functions in _by_device(call.functions)
        }
        try:
            while open_functions:
                waiter = asyncio.create_task(news.wait())
                pending = {task for task in tasks if not task.done()}
                done, _ = await asyncio.wait(
                    {waiter, *pending}, timeout=PROGRESS_EVERY, return_when=asyncio.FIRST_COMPLETED
                )
                waiter.cancel()
                for task in done - {waiter}:
                    task.result()
                news.clear()
                answers, heard[:] = tuple(heard), ()
                if answers:
                    open_functions -= {answer.function for answer in answers}
                    await hear(answers)
                if not done:
                    waiting(call, sorted(open_functions), asyncio.get_running_loop().time() - started)
        finally:
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)

    async def _device(self, call: Call, functions: Sequence[Address], heard: list[Heard], news: asyncio.Event) -> None:
        for function in functions:
            heard.append(await self._one(call, function))
            news.set()

    async def _one(self, call: Call, function: Address) -> Heard:
        loop = asyncio.get_running_loop()
        started = loop.time()
        self.busy.add(function)
        try:
            answer = await self._ask(call, function)
        except TimeoutError:
            self.busy.discard(function)
            return Heard(function, call.step, Vote.DISCONNECT, None, loop.time() - started, answered=False)
        self.busy.discard(function)
        vote = answer.vote
        if vote is Vote.NO_HANDLER and answer.has_callbacks:
            vote = Vote.NONE  # only this callback is missing, which the kernel passes over
        return Heard(function, call.step, vote, answer.driver, loop.time() - started)

    async def _ask(self, call: Call, function: Address) -> DriverAnswer:
        message = DriverCall(
            function=function, step=call.step, channel=call.channel, lease=call.lease, token=call.token
        )
        try:
            async with asyncio.timeout(call.within_s):
                reply = await call_driver(self._context, message)
        except NobodyListens:
            return DriverAnswer(vote=Vote.NONE)  # nobody drives it
        except ProtocolError as error:
            self._context.log.warning("driver speaks another protocol", port=str(function), error=str(error))
            return DriverAnswer(vote=Vote.DISCONNECT)
        if isinstance(reply, Refused):
            self._context.log.warning("driver refused", port=str(function), step=call.step, why=reply.message)
            return DriverAnswer(vote=Vote.NONE)
        return reply


def _by_device(functions: Sequence[Address]) -> tuple[tuple[Address, ...], ...]:
    devices: dict[tuple[int, int, int], list[Address]] = {}
    for function in sorted(functions):
        devices.setdefault((function.domain, function.bus, function.device), []).append(function)
    return tuple(tuple(members) for members in devices.values())
