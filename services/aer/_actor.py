"""The actor of one root port or event collector: surveys, publishes, asks, acknowledges. Decides nothing by itself.

Order is everything here. Uncorrectable latches of the root port are acknowledged only when every case has been
accepted by the coordinator, belongs to somebody else, or is nobody's; so a crash at any point finds the latch again.
After every acknowledgement the domain is surveyed once more: a message that arrived in between would latch nothing
new, and an edge that is never raised is never told (linux-kernel.md, scenarios 11 and 21).
"""

from __future__ import annotations

import asyncio
from typing import Final

from shared.pcie import Address, Function, Topology, error_wording
from shared.pcie.errors import PROVOKED_UNCORRECTABLE, Severity
from shared.pcie.registers import RootErrorStatus
from shared.protocol import Reason
from shared.protocol.fabric import LeaseList, Operation
from shared.protocol.facts import Ignored, What
from shared.protocol.requests import Accepted, Cause, Recover
from shared.runtime import FINAL, PortActor, PortActors, RefusedError, Wake, ask_recovery

from ._correctable import TRACELESS, Correctables, acknowledge_root
from ._counters import Counters
from ._memory import Memory
from ._sources import (
    BECAUSE,
    BOTH,
    IGNORED,
    Case,
    Source,
    Verdict,
    advisory,
    cases,
    covering,
    find_new,
    find_signalled,
    first_severity,
    is_nobodys,
    judge,
    signalled,
    signs,
)
from ._stale import Leftovers
from ._survey import RootLatch, Survey, decode_root, decode_survey, root_reads, survey_reads

ROUNDS_MAX: Final = 8  # of one look: under a flood the mailbox still gets its turn

_CAUSE: Final = {Severity.FATAL: Cause.AER_FATAL, Severity.NONFATAL: Cause.AER_NONFATAL}
_FIRMWARE: Final = "the firmware keeps AER for itself on this host"


class RootPortActor(PortActor):
    """Everything about one root port's errors, in order."""

    def __init__(self, port: Address, ports: PortActors, counters: Counters) -> None:
        super().__init__(f"aer {port}", port, ports)
        self._fabric = ports.fabric
        self._facts = ports.context.facts
        self._counters = counters
        self._correctables = Correctables(self._facts, port, counters)
        self._memory = Memory()
        self._leftovers = Leftovers(self._facts, port, self._memory)
        self._left_to_firmware: RootErrorStatus | None = None

    async def look(self, wakes: frozenset[Wake]) -> None:
        """Survey and handle until nothing is left, for a bounded number of rounds."""
        topology = self.ports.topology
        root = topology.find(self.port)
        if root is None:
            return
        if topology.firmware_first:
            await self._leave_to_firmware(root, wakes)
            return
        self._pay_debts(topology)
        if wakes == {Wake.INTERRUPT} and not await self._is_latched(root):
            return
        starting, waiting = Wake.START in wakes, False
        carried: frozenset[Severity] = frozenset()
        for _ in range(ROUNDS_MAX):
            survey = decode_survey(topology, root, await self._fabric.read(survey_reads(topology, root)))
            if survey is None:
                return  # no answer is no evidence of anything (P9)
            self._memory.see(survey.errors)
            listed = await self._listed_for(survey)
            if not carried:
                self._leftovers.find(topology, survey, listed, starting=starting)
            await self._clear(self._leftovers.writes(topology, survey, listed))
            self._learn_advisory(survey)
            acknowledged: frozenset[Severity] = frozenset()
            if not waiting:
                settled = await self._uncorrectable(topology, survey, carried & BOTH, listed)
                waiting, acknowledged = settled is None, settled or acknowledged
            acknowledged |= await self._correctable(
                topology, survey, forced=starting or Severity.CORRECTABLE in carried
            )
            if not acknowledged:
                return
            starting, carried = False, acknowledged
        self.again(0.0)

    async def _clear(self, writes: tuple[Operation, ...]) -> None:
        """Clear what is stale. The fabric refuses where a message has come in by now: then it is judged with that."""
        if not writes:
            return
        try:
            await self._fabric.acknowledge(writes, stale=True)
        except RefusedError as trouble:
            self.context.log.info("stale status not cleared", port=str(self.port), why=str(trouble))

    # --- Correctable ---

    async def _correctable(self, topology: Topology, survey: Survey, *, forced: bool) -> frozenset[Severity]:
        """Tell and acknowledge correctable errors that were signalled, or all when `forced`."""
        if not survey.latch.correctable and not forced:
            return frozenset()
        writes = self._correctables.handle(topology, survey, asyncio.get_running_loop().time())
        self._pay_debts(topology)
        if not writes:
            return frozenset()
        await self._fabric.acknowledge(writes)
        return frozenset({Severity.CORRECTABLE})

    def _learn_advisory(self, survey: Survey) -> None:
        """Remember which uncorrectable bits are advisory, so that no later message is blamed on them."""
        if not survey.latch.correctable or Severity.NONFATAL in signalled(survey.latch):
            return  # with both received, a bit cannot be told from one that was signalled as an error
        for function, errors in survey.errors.items():
            self._memory.learn(function, advisory(errors))

    def _pay_debts(self, topology: Topology) -> None:
        now = asyncio.get_running_loop().time()
        due = self._correctables.tell_owed(topology, now)
        if due is not None:
            self.again(max(0.0, due - now))

    # --- Uncorrectable ---

    async def _uncorrectable(
        self, topology: Topology, survey: Survey, carried: frozenset[Severity], listed: LeaseList
    ) -> frozenset[Severity] | None:
        """Settle every case, then acknowledge the latch; return the severities acknowledged. None: not settled yet."""
        latched = survey.latch.uncorrectable
        if latched:
            sources = find_signalled(topology, self.port, survey, self._memory.known, frozenset(self._memory.settled))
        else:
            sources = self._unsignalled(topology, survey, carried, listed)
        settled = [await self._settle(topology, survey, case, listed) for case in cases(sources)]
        if not all(settled):
            return None
        self.progressed()
        if not latched:
            return frozenset()
        if not sources and not self._memory.settled and not self._memory.contained:
            self._ignore_traceless(survey)
        await self._fabric.acknowledge((acknowledge_root(topology.get(self.port), latched),))
        self._memory.unlatched()
        return signalled(survey.latch)

    def _unsignalled(
        self, topology: Topology, survey: Survey, carried: frozenset[Severity], listed: LeaseList
    ) -> tuple[Source, ...]:
        """Return errors whose message may have been lost: those of a severity just acknowledged, and fatal ones.

        A non-fatal bit alone says nothing: an advisory error, masked as it is by default, leaves just that. Nor do
        bits that a reset provokes, nor ports that are somebody else's at the moment.
        """
        return tuple(
            source
            for source in find_new(topology, survey, carried | {Severity.FATAL}, self._memory.known)
            if (source.severity in carried or source.bits & ~PROVOKED_UNCORRECTABLE)
            and is_nobodys(signs(topology, survey, Case(port=source.port, sources=(source,)), listed))
        )

    async def _settle(self, topology: Topology, survey: Survey, case: Case, listed: LeaseList) -> bool:
        """Do what the case asks for. False: not done yet, and another look is planned."""
        now = asyncio.get_running_loop().time()
        seen = signs(topology, survey, case, listed)
        verdict = judge(seen)
        released = verdict is Verdict.RECOVER and self._memory.was_contained(case)
        if released:
            verdict = Verdict.CONTAINED
        elif verdict is Verdict.CONTAINED:
            self._memory.contained.add(case.port)
        since = self._memory.gone_since(case.port, now, gone=verdict is Verdict.GONE)
        if verdict is Verdict.RECOVER:
            done = await self._ask(topology, survey, case)
        elif verdict is Verdict.GONE:
            done = self._grace_is_over(since, now)
        else:
            # Evidence stays until the lease of the recovery that will see it is open (DESIGN 4).
            done = verdict is not Verdict.CONTAINED or seen.covered or released
            if not done:
                self.retry()
        if verdict is not Verdict.RECOVER and (done or verdict is Verdict.CONTAINED):
            lease = covering(topology, case.port, listed.leases)
            self._ignore(case, IGNORED[verdict], BECAUSE[verdict], lease=None if lease is None else lease.id)
        if done:
            self._memory.settle(case)
        return done

    def _grace_is_over(self, since: float, now: float) -> bool:
        """Tell whether a port has looked empty long enough to be believed; if not, look again then."""
        left = since + self.context.settings.removal_grace_s - now
        if left > 0:
            self.again(left)
        return left <= 0

    async def _ask(self, topology: Topology, survey: Survey, case: Case) -> bool:
        for source in case.sources:
            self._publish(topology, survey, case, source)
        latch = survey.latch
        request = Recover(
            port=case.port,
            cause=_CAUSE[case.severity],
            functions=tuple(source.function for source in case.sources),
            evidence={
                "root_error_status": int(latch.status),
                "error_source": latch.source,
                "errors": [
                    {"function": str(source.function), "severity": report.severity, "status": report.status}
                    for source in case.sources
                    for report in source.reports
                ],
            },
        )
        reply = await ask_recovery(self.context.bus, self.context.host, request)
        if isinstance(reply, Accepted):
            return True
        if reply is not None and reply.reason in FINAL:
            quarantine = reply.reason is Reason.QUARANTINED
            why = BECAUSE[Verdict.QUARANTINED] if quarantine else reply.message
            lease = None if reply.lease is None else reply.lease.id
            self._ignore(case, Ignored.QUARANTINED if quarantine else Ignored.REFUSED, why, lease=lease)
            return True
        why = "no answer" if reply is None else reply.message
        self.context.log.info("recovery not accepted yet", port=str(case.port), cause=request.cause, why=why)
        self.retry()
        return False

    # --- Facts ---

    def _publish(self, topology: Topology, survey: Survey, case: Case, source: Source) -> None:
        cause = _CAUSE[source.severity]
        if not source.reports and self._memory.first_saying(source.function, "inaccessible"):
            self._facts.say(
                What(f"error.{source.severity}"),
                case.port,
                cause=cause,
                function=source.function,
                text=(self._received(survey, source), error_wording.inaccessible(source.severity)),
            )
        for report in source.reports:
            if not self._memory.first_telling(source.function, report):
                continue
            self._counters.count(source.function, report)
            errors = survey.errors[source.function]
            self._facts.say(
                What(f"error.{report.severity}"),
                case.port,
                cause=cause,
                function=source.function,
                **error_wording.particulars(report),
                counts=self._counters.totals(source.function, report.severity),
                text=(
                    self._received(survey, source),
                    *error_wording.bus_error(topology.get(source.function), errors, report),
                ),
            )

    def _received(self, survey: Survey, source: Source) -> str:
        multiple = RootErrorStatus.MULTIPLE_UNCORRECTABLE in survey.latch.status
        sender = self.port.with_requester_id(survey.latch.uncorrectable_id)
        return error_wording.message_received(source.severity, sender, multiple=multiple, found=True)

    def _ignore(self, case: Case, reason: Ignored, why: str, *, lease: str | None) -> None:
        if not self._memory.first_saying(case.port, why):
            return
        self._facts.say(
            What.ERROR_IGNORED,
            case.port,
            lease=lease,
            cause=_CAUSE[case.severity],
            reason=reason,
            why=why,
            severity=case.severity,
            functions=[source.function for source in case.sources],
            names=[name for source in case.sources for report in source.reports for name in report.names],
        )

    def _ignore_traceless(self, survey: Survey) -> None:
        severity = first_severity(survey.latch)
        sender = self.port.with_requester_id(survey.latch.uncorrectable_id)
        multiple = RootErrorStatus.MULTIPLE_UNCORRECTABLE in survey.latch.status
        self._facts.say(
            What.ERROR_IGNORED,
            self.port,
            cause=_CAUSE[severity],
            reason=Ignored.TRACELESS,
            why=TRACELESS,
            severity=severity,
            functions=[sender],
            text=(error_wording.message_received(severity, sender, multiple=multiple, found=False),),
        )

    async def _leave_to_firmware(self, root: Function, wakes: frozenset[Wake]) -> None:
        """Say, once for each latch, that an interrupt has come which is the firmware's. Nothing is read otherwise."""
        if Wake.INTERRUPT not in wakes:
            return
        latch = decode_root(await self._fabric.read(root_reads(root)))
        if latch is None or latch.status == self._left_to_firmware:
            return
        self._left_to_firmware = latch.status
        if latch.uncorrectable or latch.correctable:
            self._ignore_firmwares(latch)

    def _ignore_firmwares(self, latch: RootLatch) -> None:
        worst = first_severity(latch) if latch.uncorrectable else Severity.CORRECTABLE
        sender = latch.uncorrectable_id if latch.uncorrectable else latch.correctable_id
        self._facts.say(
            What.ERROR_IGNORED,
            self.port,
            reason=Ignored.FIRMWARE,
            why=_FIRMWARE,
            severity=worst,
            functions=[self.port.with_requester_id(sender)],
            status=int(latch.status),
        )

    async def _listed_for(self, survey: Survey) -> LeaseList:
        """Return leases and quarantines, where the survey shows anything that they could matter for."""
        if not survey.latch.uncorrectable and not any(errors.uncorrectable for errors in survey.errors.values()):
            return LeaseList(leases=())
        return await self._fabric.leases()

    async def _is_latched(self, root: Function) -> bool:
        latch = decode_root(await self._fabric.read(root_reads(root)))
        return latch is not None and bool(latch.correctable or latch.uncorrectable)
