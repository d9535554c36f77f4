"""What nats-py raises, as what it means to the one who asked: not sent, not executed, or unknown."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import nats.errors
import nats.js.errors

from ._nats_client import HoldfastClient, NotPermittedError, describe
from .bus import BusError, BusUnreachable, NobodyListens, NotPermitted, Unanswered

# Error codes of the JetStream API (nats-server, server/errors.json).
WRONG_LAST_SEQUENCE: Final = (10071, 10164)
STREAM_NOT_FOUND: Final = 10059
STREAM_NAME_IN_USE: Final = 10058
NOT_CLUSTERED: Final = 10074  # more than one replica was asked of a server that stands alone

_NOT_SENT: Final = (
    nats.errors.OutboundBufferLimitError,
    nats.errors.ConnectionClosedError,
    nats.errors.ConnectionDrainingError,
    nats.errors.ConnectionReconnectingError,
)
_NOT_EXECUTED: Final = (
    nats.errors.NoRespondersError,
    nats.js.errors.NoStreamResponseError,
    nats.js.errors.ServiceUnavailableError,
)


def _cancellations() -> int:
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


@contextmanager
def translated(client: HoldfastClient, subject: str) -> Iterator[None]:
    """Refuse to send over a connection that is down, and turn nats-py's errors into the bus's.

    And let no cancellation get lost: nats-py waits with `asyncio.wait_for`, which until Python 3.12 returns the result
    and forgets the cancellation if both come at once. A task that goes on then beats for ever, or is awaited for ever.
    """
    if not client.ready:
        raise BusUnreachable(f"{subject}: there is no connection to the bus; nothing was sent")
    before = _cancellations()
    try:
        yield
        if _cancellations() > before:
            raise asyncio.CancelledError
    except _NOT_SENT as error:
        raise BusUnreachable(f"{subject}: {describe(error)}; nothing was sent") from error
    except _NOT_EXECUTED as error:
        raise NobodyListens(f"{subject}: nobody answers there") from error
    except NotPermittedError as error:
        raise NotPermitted(f"{subject}: {error}") from error
    except nats.errors.TimeoutError as error:
        raise Unanswered(f"{subject}: no answer in time; it may have been executed") from error
    except nats.errors.Error as error:
        raise BusError(f"{subject}: {describe(error)}") from error
