"""`reset`: ask for it, show its steps, say what became of every function."""

from __future__ import annotations

import os
from typing import Final

from shared.protocol import subjects
from shared.protocol.requests import Accepted, AcceptReply, Reset, ResetMethod

from ._exit import ExitCode
from ._names import device_of, literal
from ._outcome import Progress, closed
from ._output import tell
from ._session import Session

LEASE_VARIABLE: Final = "HOLDFAST_LEASE"  # set by `hold` for its command: what the command asks for runs in its lease


async def reset(session: Session, name: str, *, method: ResetMethod | None, as_json: bool) -> ExitCode:
    """Reset one function and wait for the verdicts."""
    named, topology = await session.resolve(name)
    function = device_of(named, topology) if literal(name) is None else named  # a slot stands for its device
    above = topology.lease_port(function)
    port = function if above is None else above.address
    request = Reset(function=function, method=method, lease=os.environ.get(LEASE_VARIABLE))
    async with Progress(session, quiet=as_json) as progress:
        subject = subjects.coordinator(session.host, "reset")
        accepted: Accepted = await session.ask(
            subject, request, AcceptReply, whom="coordinator", what=f"reset {function}"
        )
        if accepted.joined and not as_json:
            tell(f"{function} is being recovered already, under lease {accepted.lease}")
        progress.of(accepted.lease)
        outcome = await closed(session, port, accepted.lease, progress)
    outcome.show(as_json=as_json)
    return outcome.exit_code
