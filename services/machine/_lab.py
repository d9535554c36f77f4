"""The bench on the bus: injections, and the callbacks of its drivers. Each call is a task: a slow driver delays none."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final, TypeVar, cast

from shared.protocol import Message, Reason, Refused, subjects
from shared.protocol.requests import DriverCall, Inject, Injected
from shared.runtime.bus import Bus, Request, Subscription

from ._calls import Calls
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
        self._calls = Calls()

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
        answering = self._calls.once(call, lambda: self._task(self._machine.call_driver(call)))
        await request.answer(answering if isinstance(answering, Refused) else await asyncio.shield(answering))
