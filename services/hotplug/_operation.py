"""A slot operation: a lease of the lowest rank, under which every register write of this service is made.

A recovery may take the lease away at any moment (P5). Whoever works under it then gets `Fenced`, out of whatever it is
waiting for, and leaves everything as it is: the slot is judged afresh once that recovery has closed. A hint that this
may have happened (`doubt`) only makes the operation ask the fabric, whose answer decides (P9).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

from shared.pcie import Address, Value
from shared.protocol import Reason, Refused
from shared.protocol.fabric import Condition, Open, Operation, Rank, Reach
from shared.protocol.requests import Cause
from shared.recovery import Do, Logic, Note, Pause
from shared.runtime import BusError, FabricClient, Fenced, LeaseHandle, RefusedError, Settings, keep_alive

R = TypeVar("R")


class Held(Exception):  # noqa: N818 - named for what is true
    """The fabric did not open the lease: somebody else holds one there, or it may not be."""

    def __init__(self, refused: Refused) -> None:
        super().__init__(refused.message)
        self.refused = refused


class SlotOperation:
    """An open slot operation."""

    def __init__(self, fabric: FabricClient, handle: LeaseHandle) -> None:
        self._fabric = fabric
        self._handle = handle
        self._doubted = asyncio.Event()
        self._ended = False

    @property
    def lease(self) -> str:
        """The id of the lease."""
        return self._handle.id

    @property
    def token(self) -> int:
        """The token of the lease."""
        return self._handle.token

    def doubt(self) -> None:
        """Ask the fabric soon whether the lease is still ours."""
        self._doubted.set()

    async def do(self, *operations: Operation, provided: tuple[Condition, ...] = ()) -> tuple[Value, ...]:
        """Execute the operations as one step. Raises Fenced once the lease is lost."""
        return await self.unless_lost(self._fabric.execute(self._handle, operations, provided))

    async def pause(self, seconds: float) -> float:
        """Let time pass; return the loop's clock after it."""
        await self.unless_lost(asyncio.sleep(seconds))
        return asyncio.get_running_loop().time()

    async def perform(self, logic: Logic[R]) -> R:
        """Drive `logic` to its end."""
        sent: Any = None
        while True:
            try:
                effect = logic.send(sent)
            except StopIteration as end:
                result: R = end.value
                return result
            match effect:
                case Do(operations, provided):
                    sent = await self.do(*operations, provided=provided)
                case Pause(seconds):
                    sent = await self.pause(seconds)
                case Note():
                    sent = None

    async def unless_lost(self, work: Coroutine[Any, Any, R]) -> R:
        """Await `work`, or raise Fenced as soon as the lease is lost."""
        task = asyncio.ensure_future(work)
        lost = asyncio.ensure_future(self._handle.lost.wait())
        try:
            await asyncio.wait({task, lost}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise Fenced(
                Refused(reason=Reason.FENCED, message=f"lease {self.lease} is lost", lease=self._handle.lease.ref)
            )
        finally:
            lost.cancel()
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, BusError, RefusedError):
                    await task

    def end(self) -> None:
        """Have `watch` end. A cancellation alone may be lost where a request is answered in the same moment."""
        self._ended = True
        self._doubted.set()

    async def watch(self) -> None:
        """Turn doubts into questions, until the end. The beat that is fenced marks the handle as lost."""
        while True:
            await self._doubted.wait()
            if self._ended:
                return
            self._doubted.clear()
            with contextlib.suppress(BusError, RefusedError):
                await self._fabric.beat(self._handle)


@contextlib.asynccontextmanager
async def slot_operation(
    fabric: FabricClient, port: Address, lease_id: str, settings: Settings
) -> AsyncIterator[SlotOperation]:
    """Open a slot operation on `port`, keep it alive, and close it at the end. Raises Held where it is refused."""
    opened = await fabric.open(
        Open(
            id=lease_id,
            port=port,
            rank=Rank.SLOT_OPERATION,
            cause=Cause.SLOT,
            holder=settings.instance,
            reach=Reach.NOTHING,
            allowed_s=settings.allowed_s,
        )
    )
    if isinstance(opened, Refused):
        raise Held(opened)
    handle = LeaseHandle(opened.lease)
    try:
        async with keep_alive(fabric, handle):
            operation = SlotOperation(fabric, handle)
            watch = asyncio.create_task(operation.watch(), name=f"watch {lease_id}")
            try:
                yield operation
            finally:
                operation.end()
                watch.cancel()
                await asyncio.wait({watch})
    finally:
        await _close(fabric, handle, settings)


async def _close(fabric: FabricClient, handle: LeaseHandle, settings: Settings) -> None:
    """Close the lease. One that was absorbed is not ours to close; one that cannot be closed now ends in silence."""
    if handle.lost.is_set():
        return
    with contextlib.suppress(BusError, RefusedError, TimeoutError):
        async with asyncio.timeout(settings.allowed_s):
            await fabric.close(handle)
