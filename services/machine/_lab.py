"""The bench on the bus: injections, and the callbacks of its drivers. Each call is a task: a slow driver delays none.

A call that arrives again is not run again: whoever repeats it waits for, or gets, the answer of the first (DriverCall).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final, TypeVar, cast

from shared.pcie import Address
from shared.protocol import Message, Reason, Refused, subjects
from shared.protocol.requests import DriverAnswer, DriverCall, Inject, Injected
from shared.runtime.bus import Bus, Request, Subscription

from ._machine import Machine
from ._specs import MachineError

SERVICE: Final = "machine"

T = TypeVar("T")


class Lab:
    """Serves one machine as one host."""

    def __init__(self, machine: Machine, host: str) -> None:
        self._machine = machine
        self._host = host
        self._tasks: set[asyncio.Task[Any]] = set()
        self._last: dict[Address, tuple[DriverCall, asyncio.Task[DriverAnswer]]] = {}  # per function, the newest call

    async def serve(self, bus: Bus) -> Subscription:
        """Answer on the bus until the subscription returned is closed."""
        endpoints: Mapping[str, tuple[type[Message], Callable[[Request], None]]] = {
            subjects.inject(self._host): (Inject, lambda request: self._start(self._inject(request))),
            subjects.driver(self._host, "*"): (DriverCall, lambda request: self._start(self._call(request))),
        }
        return await bus.serve(SERVICE, endpoints)

    async def close(self) -> None:
        """End the calls under way, those of drivers that hang included. They stay unanswered, as with a dead kernel."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        self._task(work)

    def _task(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _inject(self, request: Request) -> None:
        asked = cast("Inject", request.message)
        reply: Message
        try:
            self._machine.inject(asked)
            reply = Injected(what=asked.what, target=asked.target)
        except MachineError as error:
            reply = Refused(reason=Reason.UNSUPPORTED, message=str(error))
        await request.answer(reply)

    async def _call(self, request: Request) -> None:
        call = cast("DriverCall", request.message)
        if request.subject != subjects.driver(self._host, call.function):
            message = f"the subject {request.subject} is not that of {call.function}"
            await request.answer(Refused(reason=Reason.MALFORMED, message=message))
            return
        await request.answer(await asyncio.shield(self._once(call)))

    def _once(self, call: DriverCall) -> asyncio.Task[DriverAnswer]:
        last = self._last.get(call.function)
        if last is not None and call.lease is not None and (last[0].lease, last[0].step) == (call.lease, call.step):
            return last[1]
        task = self._task(self._machine.call_driver(call))
        self._last[call.function] = (call, task)
        return task
