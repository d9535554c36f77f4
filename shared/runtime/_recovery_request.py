"""Asking the coordinator for a recovery: may be repeated at will, as asking again joins what is under way."""

from __future__ import annotations

from typing import Final

from shared.protocol import Reason, Refused, subjects
from shared.protocol.requests import Accepted, AcceptReply, Recover

from .bus import Bus, Unanswered

ANSWER_MAX_S: Final = 2.0  # the coordinator answers at once, after one command to the fabric

# Refusals that asking again does not change: a quarantine, a function without any reset, a card that is not there.
FINAL: Final = frozenset({Reason.POLICY, Reason.UNSUPPORTED, Reason.ABSENT, Reason.QUARANTINED})


async def ask_recovery(bus: Bus, host: str, request: Recover) -> Accepted | Refused | None:
    """Ask once. None: no answer, so it may be under way or not; ask again. Raises BusUnreachable."""
    try:
        reply: Accepted | Refused = await bus.request(
            subjects.coordinator(host, "recover"), request, AcceptReply, timeout_s=ANSWER_MAX_S
        )
    except Unanswered:
        return None
    return reply
