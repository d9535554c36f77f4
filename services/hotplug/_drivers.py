"""Binding and unbinding drivers: requests to the function's driver, each bounded. Never a reason to stop."""

from __future__ import annotations

from shared.pcie import Address
from shared.protocol import ProtocolError, Refused
from shared.protocol.requests import Channel, DriverAnswer, DriverCall, DriverStep
from shared.runtime import BusError, Context, call_driver


class Drivers:
    """The drivers of one host's functions."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def bind(self, function: Address, lease: str | None, token: int = 0) -> str | None:
        """Bind a driver; return its name, or None where none took the function or none could be asked."""
        answer = await self._call(DriverCall(function=function, step=DriverStep.BIND, lease=lease, token=token))
        return None if answer is None else answer.driver

    async def unbind(self, function: Address, lease: str | None, channel: Channel, token: int = 0) -> None:
        """Unbind the driver. With PERM_FAILURE it is told that its device is gone."""
        await self._call(
            DriverCall(function=function, step=DriverStep.UNBIND, lease=lease, channel=channel, token=token)
        )

    async def _call(self, call: DriverCall) -> DriverAnswer | None:
        context = self._context
        try:
            reply = await call_driver(context, call)
        except (TimeoutError, BusError, ProtocolError) as trouble:
            why = str(trouble) or type(trouble).__name__
            context.log.warning("driver not reached", port=str(call.function), step=str(call.step), why=why)
            return None
        if isinstance(reply, Refused):
            context.log.warning("driver refused", port=str(call.function), step=str(call.step), why=reply.message)
            return None
        return reply
