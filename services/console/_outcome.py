"""Wait for the end of a recovery, showing its steps; the journal record says what became of the devices."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Final, Self

import msgspec

from shared.pcie import Address
from shared.protocol import ProtocolError, from_builtins, subjects
from shared.protocol.facts import Fact, What
from shared.protocol.records import RecoveryState, Verdict
from shared.runtime import BusError, Incoming, Subscription

from ._exit import VERDICT_OF_RESULT, ExitCode, Failure, of_verdicts
from ._output import print_json, tell
from ._session import Session
from ._story import account

_POLL_S: Final = 0.05
_SILENCE_MAX_S: Final = 20.0  # without any answer: longer than a successor needs to take over
_SHOWN: Final = frozenset(
    {What.RECOVERY_WAITING, What.RECOVERY_ESCALATED, What.RECOVERY_STEP, What.RECOVERY_VOTE, What.RECOVERY_PROGRESS}
)


class Outcome(msgspec.Struct, frozen=True):
    """What became of one recovery, as `--json` prints it."""

    lease: str
    port: str
    verdicts: dict[str, Verdict]
    degraded: tuple[str, ...] = ()  # of those kept, the ones whose link is slower or narrower than before

    @property
    def exit_code(self) -> ExitCode:
        """The code of the worst verdict."""
        return of_verdicts(self.verdicts.values())

    def show(self, *, as_json: bool) -> None:
        """Print it."""
        if as_json:
            print_json(self)
            return
        for function, verdict in sorted(self.verdicts.items()):
            slower = ", but its link is degraded: `holdfast status` shows it" if function in self.degraded else ""
            tell(f"{function} {verdict}{slower}")


class Progress:
    """Shows the steps of one recovery on stderr, also those that came before its lease was known to us."""

    def __init__(self, session: Session, *, quiet: bool) -> None:
        self._session = session
        self._quiet = quiet
        self._early: list[Fact] = []
        self._lease: str | None = None
        self.ended: dict[str, dict[str, Verdict]] = {}  # verdicts by lease, of the recoveries that closed meanwhile
        self._subscription: Subscription | None = None

    async def __aenter__(self) -> Self:
        subject = subjects.fact(self._session.host, "*", "recovery.>")
        self._subscription = await self._session.bus.watch_facts(subject, self._hear)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._subscription is not None
        await self._subscription.close()

    def of(self, lease: str) -> None:
        """Show this lease's steps from now on."""
        self._lease = lease
        early, self._early = self._early, []
        for fact in early:
            self._show(fact)

    def _hear(self, incoming: Incoming) -> None:
        fact = incoming.message
        assert isinstance(fact, Fact)
        if fact.what is What.RECOVERY_CLOSED and fact.lease is not None:
            with contextlib.suppress(ProtocolError):
                self.ended[fact.lease] = from_builtins(fact.data.get("verdicts"), dict[str, Verdict])
        if self._lease is None:
            self._early.append(fact)
        else:
            self._show(fact)

    def _show(self, fact: Fact) -> None:
        if not self._quiet and fact.lease == self._lease and fact.what in _SHOWN:
            tell(account(fact))


async def closed(session: Session, port: Address, lease: str, progress: Progress) -> Outcome:
    """Wait until `lease` is closed. Raises Failure when the time that the user gave is over.

    The record decides. A fact may be forged: it counts only where nothing else is left that speaks of the lease, as
    of a reset inside a hold whose record the hold has overwritten. A lease that was absorbed ends as its heir does.
    Services that restart meanwhile are waited for. Whoever interrupts is told that the lease goes on.
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(session.timeout_s):
            answered = loop.time()
            while True:
                try:
                    outcome = await _recorded(session, port, lease)
                    if outcome is None and lease in progress.ended and not await _under_way(session, port, lease):
                        outcome = Outcome(lease, str(port), progress.ended[lease])
                    if outcome is not None:
                        return await _with_degraded(session, outcome)
                    port, lease = await _heir(session, port, lease)
                    answered = loop.time()
                except (Failure, BusError):
                    if loop.time() - answered > _SILENCE_MAX_S:
                        raise
                await asyncio.sleep(_POLL_S)
    except asyncio.CancelledError:
        tell(
            f"lease {lease} on {port} goes on without you: `holdfast logs -f {lease}` follows it, `lease break` ends it"
        )
        raise
    except TimeoutError as error:
        raise Failure(
            ExitCode.UNREACHABLE,
            f"lease {lease} on {port} is still open after {session.timeout_s:g} s, and nothing has failed: "
            f"`holdfast logs -f {lease}` follows it, `holdfast lease break {lease}` ends it",
        ) from error


async def _recorded(session: Session, port: Address, lease: str) -> Outcome | None:
    """Return the outcome that the record of `port` gives, or, if a later recovery has overwritten it, the fabric."""
    record = await session.recovery(port)
    if record is not None and record.lease == lease:
        done = record.state is RecoveryState.CLOSED
        return Outcome(lease, str(port), record.verdicts) if done else None
    for retired in (await session.leases()).retired:
        if retired.lease.id == lease and retired.absorbed_by is None:
            verdicts = {str(o.function): VERDICT_OF_RESULT[o.result] for o in retired.outcomes}
            return Outcome(lease, str(port), verdicts)
    return None


async def _with_degraded(session: Session, outcome: Outcome) -> Outcome:
    """Add what the fabric alone has judged: which links came back with less than before."""
    for retired in (await session.leases()).retired:
        if retired.lease.id == outcome.lease:
            slower = tuple(str(one.function) for one in retired.outcomes if one.degraded)
            return msgspec.structs.replace(outcome, degraded=slower)
    return outcome


async def _under_way(session: Session, port: Address, lease: str) -> bool:
    """Tell whether the record or the fabric says that the lease is still open."""
    record = await session.recovery(port)
    if record is not None and record.lease == lease and record.state is RecoveryState.OPEN:
        return True
    return any(found.id == lease for found in (await session.leases()).leases)


async def _heir(session: Session, port: Address, lease: str) -> tuple[Address, str]:
    """Return whose end is to be waited for: that of the lease, or of the one that absorbed it."""
    listed = await session.leases()
    heir = next((r.absorbed_by for r in listed.retired if r.lease.id == lease and r.absorbed_by is not None), None)
    if heir is None:
        return port, lease
    tell(f"lease {lease} was absorbed by {heir}")
    known = (*(open_lease.ref for open_lease in listed.leases), *(retired.lease for retired in listed.retired))
    return next((Address.parse(ref.port) for ref in known if ref.id == heir), port), heir
