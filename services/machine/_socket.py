"""The machine's socket: config access and interrupts for the fabric, as a stream of msgpack arrays.

    [id, "enumerate"]                       -> [id, [address, ...]]
    [id, "read", address, offset, length]   -> [id, bytes]           all ones where nothing completes
    [id, "write", address, offset, bytes]   -> [id, true]
    [id, "host"]                            -> [id, {"firmware_first": bool}]
    [id, "ost", address, status]            -> [id, true]            firmware first: the answer to "edr"
    anything else                           -> [id, null, "what is wrong"]
    ["irq", address, vector]                pushed to every client
    ["edr", address]                        firmware first: likewise; and to a new client while unanswered

Requests may be pipelined and are answered in order. Bytes that are no msgpack end the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgpack
import structlog

from shared.pcie import Address, AddressError

from ._machine import Machine
from ._specs import MachineError

_CHUNK: Final = 1 << 16
_BACKLOG_LIMIT: Final = 1 << 22  # bytes that a client may leave unread before it is dropped

_log = structlog.get_logger()


class MachineSocket:
    """Serves one machine at one path, for any number of clients."""

    def __init__(self, machine: Machine, path: Path) -> None:
        self._machine = machine
        self._path = path
        self._server: asyncio.Server | None = None
        self._clients: dict[asyncio.StreamWriter, asyncio.Task[None]] = {}
        self._unlisten = [machine.listen(lambda port, vector: self._push(["irq", str(port), vector]))]
        if machine.firmware is not None:
            self._unlisten.append(machine.firmware.listen(lambda port: self._push(["edr", str(port)])))

    async def start(self) -> None:
        """Listen. A socket file that nobody serves is taken over; one that is served raises MachineError."""
        await self._take_path()
        self._server = await asyncio.start_unix_server(self._connected, self._path)

    async def close(self) -> None:
        """Stop listening, drop the clients and remove the socket file."""
        for unlisten in self._unlisten:
            unlisten()
        if self._server is not None:
            self._server.close()
        tasks = list(self._clients.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()
        self._path.unlink(missing_ok=True)

    async def _take_path(self) -> None:
        if not self._path.exists():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            return
        with contextlib.suppress(ConnectionRefusedError):
            _, writer = await asyncio.open_unix_connection(self._path)
            writer.close()
            raise MachineError(f"another machine serves {self._path}")
        self._path.unlink()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients[writer] = task
        try:
            await self._serve(reader, writer)
        except (ConnectionError, ValueError, msgpack.UnpackException) as error:
            _log.warning("client dropped", why=str(error) or type(error).__name__)
        finally:
            del self._clients[writer]
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        unpacker = msgpack.Unpacker(raw=False)
        firmware = self._machine.firmware
        for port in firmware.waiting if firmware is not None else ():
            writer.write(msgpack.packb(["edr", str(port)]))
        while chunk := await reader.read(_CHUNK):
            unpacker.feed(chunk)
            for request in unpacker:
                writer.write(msgpack.packb(answer(self._machine, request)))
            await writer.drain()

    def _push(self, event: list[Any]) -> None:
        message = msgpack.packb(event)
        for writer, task in self._clients.items():
            if writer.transport.get_write_buffer_size() > _BACKLOG_LIMIT:
                task.cancel()  # it does not read: hardware waits for nobody
            else:
                writer.write(message)


def answer(machine: Machine, request: Any) -> list[Any]:
    """Do one request and return its answer."""
    match request:
        case [int(number), "enumerate"]:
            return [number, [str(address) for address in machine.enumerate()]]
        case [int(number), "host"]:
            return [number, {"firmware_first": machine.firmware is not None}]
        case [int(number), "ost", str(address), int(status)]:
            return _guarded(number, lambda: _answer_firmware(machine, address, status))
        case [int(number), "read", str(address), int(offset), int(length)]:
            return _guarded(number, lambda: machine.read(Address.parse(address), offset, length))
        case [int(number), "write", str(address), int(offset), bytes(data)]:
            return _guarded(number, lambda: _write(machine, address, offset, data))
        case _:
            return [
                request[0] if isinstance(request, list) and request else None,
                None,
                f"not a request: {request!r:.200}",
            ]


def _write(machine: Machine, address: str, offset: int, data: bytes) -> bool:
    machine.write(Address.parse(address), offset, data)
    return True


def _answer_firmware(machine: Machine, address: str, status: int) -> bool:
    if machine.firmware is None:
        raise MachineError("the firmware of this host keeps nothing for itself, and awaits no answer")
    machine.firmware.answer(Address.parse(address), status)
    return True


def _guarded(number: int, action: Callable[[], bytes | bool]) -> list[Any]:
    try:
        return [number, action()]
    except (MachineError, AddressError) as error:
        return [number, None, str(error)]
