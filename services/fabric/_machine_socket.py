"""Hardware over the machine's Unix socket: a stream of msgpack arrays, requests pipelined and answered in order.

    [id, verb, ...]  ->  [id, result]  or  [id, nil, "what was wrong"]
    pushed:              ["irq", address, vector]
                         ["edr", address]          firmware first; again, while unanswered, on each new connection

A machine that is not there is a host whose every read is all ones; it is looked for until it comes (back).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Final

import msgpack
import structlog

from shared.pcie import Address

from ._hardware import FirmwareHandler, InterruptHandler

_RETRY_S: Final = 0.1  # between attempts to connect
_REPLY_S_MAX: Final = 2.0  # a machine that takes longer is as good as gone: the connection is made anew
_CHUNK: Final = 1 << 16
_IRQ: Final = "irq"
_EDR: Final = "edr"
_ALL_ONES: Final = b"\xff"

_log = structlog.get_logger()


class MachineError(Exception):
    """The machine refused a request: a bug on one of the two sides."""


class MachineSocket:
    """Hardware as the machine simulates it. `run` keeps the connection, and says when it is made and lost."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._writer: asyncio.StreamWriter | None = None
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._last_id = 0
        self._interrupt: InterruptHandler | None = None
        self._firmware: FirmwareHandler | None = None

    def on_interrupt(self, handler: InterruptHandler) -> None:
        """Call `handler` for every interrupt pushed from now on."""
        self._interrupt = handler

    def on_firmware_event(self, handler: FirmwareHandler) -> None:
        """Call `handler` for every EDR notification pushed from now on."""
        self._firmware = handler

    async def enumerate(self) -> tuple[Address, ...]:
        """Return the functions that answer; none without a machine."""
        found = await self._ask("enumerate")
        return () if found is None else tuple(Address.parse(text) for text in found)

    async def read(self, address: Address, offset: int, length: int) -> bytes:
        """Read; all ones without a machine."""
        data = await self._ask("read", str(address), offset, length)
        return _ALL_ONES * length if data is None else bytes(data)

    async def write(self, address: Address, offset: int, data: bytes) -> None:
        """Write; dropped without a machine, as hardware drops it."""
        await self._ask("write", str(address), offset, data)

    async def firmware_first(self) -> bool | None:
        """Tell whether AER and DPC are the firmware's; None without a machine."""
        about = await self._ask("host")
        return None if about is None else bool(about["firmware_first"])

    async def answer_firmware(self, address: Address, status: int) -> bool:
        """Answer an EDR notification; False without a machine."""
        return await self._ask("ost", str(address), status) is not None

    async def run(self, on_return: Callable[[], None], on_loss: Callable[[], None]) -> None:
        """Keep connected until cancelled. Calls `on_return` each time a connection is made, `on_loss` when it drops."""
        told = False
        while True:
            try:
                reader, self._writer = await asyncio.open_unix_connection(self._path)
            except OSError as error:
                if not told:
                    _log.warning("machine not reachable", path=self._path, error=str(error))
                    told = True
                await asyncio.sleep(_RETRY_S)
                continue
            told = False
            _log.info("machine connected", path=self._path)
            on_return()
            try:
                await self._receive(reader)
            finally:
                await self._disconnect()
            _log.warning("machine lost", path=self._path)
            on_loss()

    async def _receive(self, reader: asyncio.StreamReader) -> None:
        unpacker = msgpack.Unpacker()
        with contextlib.suppress(ConnectionError):
            while chunk := await reader.read(_CHUNK):
                unpacker.feed(chunk)
                for message in unpacker:
                    self._deliver(message)

    def _deliver(self, message: list[Any]) -> None:
        if message[0] == _IRQ:
            if self._interrupt is not None:
                self._interrupt(Address.parse(message[1]), message[2])
            return
        if message[0] == _EDR:
            if self._firmware is not None:
                self._firmware(Address.parse(message[1]))
            return
        number, result, *error = message
        waiting = self._waiting.pop(number, None)
        if waiting is None or waiting.done():
            return
        if error:
            waiting.set_exception(MachineError(error[0]))
        else:
            waiting.set_result(result)

    async def _ask(self, *request: Any) -> Any:
        """Send one request and await its answer; None if the machine is gone, or goes before it answers."""
        writer = self._writer
        if writer is None or writer.is_closing():
            return None
        self._last_id += 1
        number = self._last_id
        waiting = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(_REPLY_S_MAX):
                writer.write(msgpack.packb([number, *request]))
                await writer.drain()
                return await waiting
        except (ConnectionError, TimeoutError) as error:
            _log.warning("machine does not answer", request=request[0], error=repr(error))
            writer.close()
            return None
        finally:
            self._waiting.pop(number, None)

    async def _disconnect(self) -> None:
        writer, self._writer = self._writer, None
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_result(None)
        self._waiting.clear()
        if writer is not None:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
