"""Calling a driver: asked again until it answers or its time is over, since a message may be lost and a driver slow.

From outside the two look the same: silence. So the request is repeated, and what makes that safe is the driver's side:
calls with the same lease, step and channel are *one* call, which runs once, and whose answer goes to everybody who
asks; to a successor, too.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import Final

import msgspec

from shared.protocol import subjects
from shared.protocol.requests import DriverCall, DriverReply

from ._context import Context
from .bus import BusUnreachable, NobodyListens, Unanswered

REPEAT_S: Final = 2.0  # how long a request may be lost before it is sent again
_NONCE_BYTES: Final = 8
_AGAIN_S: Final = 0.1  # until a request that could not be delivered is sent again
_ABSENT_S: Final = 3.0  # who does not listen for longer than a reconnect takes is not there


async def call_driver(context: Context, call: DriverCall) -> DriverReply:
    """Return what the driver says within `settings.driver_s` (seconds).

    Raises TimeoutError if it never answers, NobodyListens if nobody drives this host's functions, and ProtocolError for
    an answer that is none.
    """
    subject = subjects.driver(context.host, call.function)
    if call.lease is None:
        call = msgspec.structs.replace(call, nonce=secrets.token_hex(_NONCE_BYTES))
    loop = asyncio.get_running_loop()
    absent_since: float | None = None
    async with asyncio.timeout(context.settings.driver_s):
        while True:
            try:
                reply: DriverReply = await context.bus.request(subject, call, DriverReply, timeout_s=REPEAT_S)
            except NobodyListens:
                absent_since = loop.time() if absent_since is None else absent_since
                if loop.time() - absent_since > _ABSENT_S:
                    raise
                await asyncio.sleep(_AGAIN_S)
            except BusUnreachable:
                absent_since = None
                await asyncio.sleep(_AGAIN_S)
            except Unanswered:
                absent_since = None
            else:
                return reply
