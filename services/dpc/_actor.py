"""The actor of one port with containment: looks, says what it sees, asks for the recovery. Writes nothing."""

from __future__ import annotations

from typing import Any, Final

from shared.pcie import Address, Function, Topology, error_wording
from shared.pcie.registers import DpcReason
from shared.protocol import Reason, Refused
from shared.protocol.fabric import LeaseList
from shared.protocol.facts import Ignored, What
from shared.protocol.requests import Accepted, Cause, Recover
from shared.runtime import FINAL, PortActor, PortActors, Wake, ask_recovery

from ._containment import (
    Containment,
    Progress,
    Standing,
    Verdict,
    contained_above,
    decode,
    judge,
    progress,
    quarantined,
    reads,
    unread,
)

_SPURIOUS: Final = "DPC Interrupt Status is set without DPC Trigger Status: nothing is contained"
_QUARANTINED: Final = "the port is in quarantine: it stays contained until an operator releases it"


class ContainmentActor(PortActor):
    """Everything about one port's containment, in order.

    An episode lasts from the first look that finds the trigger set to the first that finds it clear, or until the
    recovery that was accepted for it has ended. `_lease` is that recovery's lease.
    """

    def __init__(self, port: Address, ports: PortActors) -> None:
        super().__init__(f"dpc {port}", port, ports)
        self._facts = ports.context.facts
        self._lease: str | None = None
        self._told: set[str] = set()

    @property
    def _cause(self) -> Cause:
        return Cause.EDR if self.ports.topology.firmware_first else Cause.DPC

    async def look(self, wakes: frozenset[Wake]) -> None:
        """Read the registers, and ask for a recovery unless one is under way."""
        topology = self.ports.topology
        function = topology.find(self.port)
        if function is None:
            return
        listed = LeaseList(leases=())
        if topology.firmware_first:
            listed = await self.ports.fabric.leases()
            if self.port not in listed.edr:
                self._end_episode()
                return  # what its registers hold is the firmware's business
        containment = await self._examine(topology, function, listed)
        if containment is None:
            return  # no answer: something above is contained, down or gone, and that is not this port's story (P9)
        if containment.triggered and not topology.firmware_first:
            listed = await self.ports.fabric.leases()
        standing = Standing(
            how_far=progress(self._lease, listed),
            quarantined=quarantined(topology, self.port, listed),
            handed_over=topology.firmware_first,
        )
        await self._act(function, containment, standing, wakes)

    async def _examine(self, topology: Topology, function: Function, listed: LeaseList) -> Containment | None:
        """Read what may be read. None: the port does not answer; if it was handed over, that is no way out."""
        above = contained_above(topology, self.port, listed.edr)
        found = decode(function, await self.ports.fabric.read(reads(function, above)))
        return unread(self.port) if found is None and topology.firmware_first else found

    async def _act(
        self, function: Function, containment: Containment, standing: Standing, wakes: frozenset[Wake]
    ) -> None:
        verdict = judge(containment, standing)
        if verdict in {Verdict.NOTHING, Verdict.SPURIOUS}:
            self._end_episode(keep=_SPURIOUS if verdict is Verdict.SPURIOUS else None)
        if verdict is Verdict.SPURIOUS:
            self._ignore(containment, Ignored.SPURIOUS, _SPURIOUS)
        elif verdict is Verdict.QUARANTINED:
            self._ignore(containment, Ignored.QUARANTINED, _QUARANTINED)
        elif verdict is Verdict.RECOVER and (standing.how_far is not Progress.UNKNOWN or wakes != {Wake.INTERRUPT}):
            if standing.how_far is Progress.ENDED:
                self._end_episode()
            self._tell(function, containment)
            await self._ask(containment)

    def _end_episode(self, keep: str | None = None) -> None:
        self._lease = None
        self._told &= {keep}
        self.progressed()

    async def _ask(self, containment: Containment) -> None:
        request = Recover(
            port=self.port,
            cause=self._cause,
            functions=(containment.source,),
            evidence={
                "dpc_status": containment.status,
                "dpc_source": containment.source_id,
                "reason": _reason_name(containment),
            },
        )
        reply = await ask_recovery(self.context.bus, self.context.host, request)
        if isinstance(reply, Accepted):
            self._lease = reply.lease
            self.progressed()
            return
        if isinstance(reply, Refused) and reply.reason in FINAL:
            quarantine = reply.reason is Reason.QUARANTINED
            self._ignore(
                containment,
                Ignored.QUARANTINED if quarantine else Ignored.REFUSED,
                _QUARANTINED if quarantine else reply.message,
            )
            return  # the trigger stays; the poll asks again
        why = "no answer" if reply is None else reply.message
        self.context.log.info("recovery not accepted yet", port=str(self.port), cause=request.cause, why=why)
        self.retry()

    # --- Facts ---

    def _tell(self, function: Function, containment: Containment) -> None:
        """Publish the containment, and the errors that the port itself has detected, once for an episode."""
        if not containment.triggered or not self._first(What.CONTAINMENT_ENTERED):
            return
        text = [error_wording.containment(containment.status, containment.source)]
        data: dict[str, Any] = {
            "status": containment.status,
            "reason": _reason_name(containment),
            "source": containment.source,
        }
        pio = containment.rp_pio
        if pio is not None and containment.reason is DpcReason.RP_PIO:
            data |= {"rp_pio_status": pio.status, "rp_pio_mask": pio.mask}
            text += error_wording.rp_pio(
                pio.status, pio.mask, pio.severity, pio.syserror, pio.exception, pio.first, pio.header
            )
        own = () if containment.errors is None else containment.errors.uncorrectable
        data["errors"] = [
            {"severity": report.severity, "status": report.status, "names": report.names} for report in own
        ]
        self._facts.say(What.CONTAINMENT_ENTERED, self.port, cause=self._cause, text=text, **data)
        if containment.reason is DpcReason.UNCORRECTABLE:
            self._tell_errors(function, containment)

    def _tell_errors(self, function: Function, containment: Containment) -> None:
        errors = containment.errors
        if errors is None:
            return
        for report in errors.uncorrectable:
            self._facts.say(
                What(f"error.{report.severity}"),
                self.port,
                cause=self._cause,
                function=self.port,
                **error_wording.particulars(report),
                text=error_wording.bus_error(function, errors, report),
            )

    def _ignore(self, containment: Containment, reason: Ignored, why: str) -> None:
        if self._first(why):
            about: dict[str, Any] = {"reason": reason, "why": why, "status": containment.status}
            self._facts.say(What.CONTAINMENT_IGNORED, self.port, cause=self._cause, **about)

    def _first(self, what: str) -> bool:
        fresh = what not in self._told
        self._told.add(what)
        return fresh


def _reason_name(containment: Containment) -> str:
    if not containment.triggered:
        return "not_contained"
    return "reserved" if containment.reason is None else containment.reason.name.lower()
