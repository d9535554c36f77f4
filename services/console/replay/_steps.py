"""What happens to the machine of a replay: one injection after another, as hardware did it in the log."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from enum import StrEnum
from typing import Final, TypeAlias

import msgspec

from services.console.kernel_log import (
    Containment,
    ContainmentHeader,
    Decided,
    Decision,
    HostLink,
    KernelLog,
    LinkLost,
    Report,
    RootPortError,
)
from shared.pcie import Address
from shared.pcie.errors import Severity
from shared.pcie.registers import DpcReason, RpPio
from shared.protocol.requests import Inject, Injection

from ._facts import Planned, Source
from ._topology import Tree

GAP_MAX_S: Final = 5.0  # a longer gap between two injections ...
GAP_SHORT_S: Final = 1.0  # ... is made this long, once all that came before is over
UNTIMED_GAP_S: Final = 0.1  # between injections whose lines have no usable timestamps
FLAP_S: Final = 0.05  # how long a link that comes back is down
_UNSTABLE_MAX_S: Final = 1.0  # a link that falls so soon after it trained is not stable
_SURPRISE_DOWN: Final = "SDES"
_ASSUMED_REQUEST: Final = RpPio.MEMORY_TIMEOUT
_DPC_REASONS: Final = {
    DpcReason.UNCORRECTABLE: "uncorrectable",
    DpcReason.ERR_NONFATAL: "err_nonfatal",
    DpcReason.ERR_FATAL: "err_fatal",
    DpcReason.RP_PIO: "rp_pio",
    DpcReason.SOFTWARE: "software",
}
_DPC_WORDS: Final = {
    DpcReason.UNCORRECTABLE: "an unmasked uncorrectable error of its own",
    DpcReason.ERR_NONFATAL: "ERR_NONFATAL received",
    DpcReason.ERR_FATAL: "ERR_FATAL received",
    DpcReason.RP_PIO: "an RP PIO error",
    DpcReason.SOFTWARE: "a software trigger",
}

Hit: TypeAlias = Containment | Report | LinkLost


class Ending(StrEnum):
    """What became of a link that was lost."""

    RETURNS = "returns"
    GONE = "gone"


class Step(msgspec.Struct, frozen=True):
    """One injection, `after_s` seconds after the one before; `settled`: and not before that is over."""

    after_s: float
    inject: Inject
    what: str
    line: int
    settled: bool = False


def endings(log: KernelLog, hits: tuple[Hit, ...]) -> tuple[Ending | None, ...]:
    """Return the endings that the log leaves open: both, where it does not tell whether a lost link returned."""
    lost = [hit for hit in hits if isinstance(hit, Report) and _SURPRISE_DOWN in hit.names]
    open_ended = any(_told_ending(log, report) is None for report in lost)
    return tuple(Ending) if open_ended else (None,)


class Steps:
    """Makes the steps, and notes in `facts` how each of them is known."""

    def __init__(self, log: KernelLog, tree: Tree, hits: tuple[Hit, ...], ending: Ending | None) -> None:
        self._log = log
        self._tree = tree
        self._hits = hits
        self._ending = ending
        self.facts: list[Planned] = []

    def all(self) -> Iterator[Step]:
        """Yield what happens, in order. What makes a link misbehave comes right before what strikes it."""
        explained: set[int] = set()  # reports that tell why a containment happened
        last: Hit | None = None
        before = [self._never_back(port, line) for port, line in self._tree.dead.items()]
        for hit in self._hits:
            if hit.line in explained:
                continue
            report = self._cause(hit) if isinstance(hit, Containment) else hit if isinstance(hit, Report) else None
            if report is not None:
                explained.add(report.line)
            after_s, settled = (0.0, False) if last is None else self._gap(last.at, hit)
            last = hit
            for inject, what in (*before, *self._injections(hit, report)):
                yield Step(after_s, inject, what, hit.line, settled)
                after_s, settled = 0.0, False
            before = []

    def _gap(self, last: float | None, hit: Hit) -> tuple[float, bool]:
        if last is None or hit.at is None or hit.at < last:
            self._assume(f"{UNTIMED_GAP_S:g} s before line {hit.line}: its timestamp does not tell", hit.line)
            return UNTIMED_GAP_S, False
        gap = hit.at - last
        if gap <= GAP_MAX_S:
            return gap, False
        said = f"the gap of {gap:.1f} s before line {hit.line} is compressed to {GAP_SHORT_S:g} s"
        self._assume(said, hit.line)
        return GAP_SHORT_S, True

    def _injections(self, hit: Hit, report: Report | None) -> list[tuple[Inject, str]]:
        if isinstance(hit, LinkLost):
            return self._host_link_lost(hit)
        if isinstance(hit, Containment):
            reason = "a reserved reason" if hit.reason is None else _DPC_WORDS[hit.reason]
            self._know(f"{hit.port} contained by DPC: {reason}", hit.line)
        if report is None:
            assert isinstance(hit, Containment)
            return [self._containment(hit)]
        self._tell_report(report)
        if _SURPRISE_DOWN in report.names and (port := self._tree.port_above(report.function)) is not None:
            return [self._link_lost(port, report)]
        inject = Inject(
            what=Injection.ERROR,
            target=report.function,
            names=report.names,
            header=report.header,
            severity=None if report.severity is Severity.CORRECTABLE else str(report.severity),
        )
        return [(inject, f"{report.severity} error {', '.join(report.names)} at {report.function}")]

    # --- Errors and containment ---

    def _cause(self, hit: Containment) -> Report | None:
        """Return the report of the error that triggered: the port's own, or that of the message's sender."""
        if hit.reason in {DpcReason.RP_PIO, DpcReason.SOFTWARE}:
            return None
        where = hit.port.with_requester_id(hit.source) if hit.source else hit.port
        return next(
            (r for r in self._hits if isinstance(r, Report) and r.function == where and r.line > hit.line), None
        )

    def _tell_report(self, report: Report) -> None:
        names = ", ".join(report.names)
        header = "" if not report.header else f", TLP header {' '.join(f'{word:08x}' for word in report.header)}"
        registers = f"status {report.status:08x}, mask {report.mask:08x}{header}"
        self._know(f"{report.severity} error {names} at {report.function} ({registers})", report.line)
        told = {printed.partition("] ")[0].removeprefix("[").strip() for printed in report.printed}
        bits = {str(bit) for bit in range(32) if report.status & ~report.mask & 1 << bit}
        if told and not told <= bits:
            printed = ", ".join(report.printed)
            self._infer(
                f"the error is {names}: the status register says so, although the text says {printed}", report.line
            )

    def _containment(self, hit: Containment) -> tuple[Inject, str]:
        header = next(
            (e.header for e in self._log.events if isinstance(e, ContainmentHeader) and e.port == hit.port), ()
        )
        inject = Inject(
            what=Injection.DPC,
            target=hit.port,
            reason=_DPC_REASONS[hit.reason or DpcReason.UNCORRECTABLE],
            source=hit.port.with_requester_id(hit.source) if hit.source else None,
            names=self._requests(hit) if hit.reason is DpcReason.RP_PIO else (),
            header=header[:4],
        )
        return inject, f"containment of {hit.port}"

    def _requests(self, hit: Containment) -> tuple[str, ...]:
        """Return which requests of the root port failed, as RP PIO status names them."""
        said = next(
            (e for e in self._log.events if isinstance(e, RootPortError) and e.port == hit.port and e.line > hit.line),
            None,
        )
        status = RpPio(0 if said is None else said.status)
        names = tuple(bit.name.lower() for bit in status if bit.name is not None)
        if names:
            self._know(f"what failed: {', '.join(names)}", hit.line if said is None else said.line)
            return names
        assumed = str(_ASSUMED_REQUEST.name).lower()
        why = (
            "no line tells which request failed"
            if said is None
            else "rp_pio_status is 0 and does not tell which request failed"
        )
        self._assume(f"{why}: {assumed}", hit.line if said is None else said.line)
        return (assumed,)

    # --- Links ---

    def _link_lost(self, port: Address, report: Report) -> tuple[Inject, str]:
        """Surprise Down *is* the loss of the link: inject the loss, and the hardware reports the error by itself."""
        told = _told_ending(self._log, report)
        ending, line = told or (self._ending or Ending.GONE, report.line)
        tell = self._infer if told is not None else self._assume
        doubt = "" if told is not None else "; the log does not say"
        self._infer(f"the link below {port} goes down (Surprise Down is reported by itself)", report.line)
        if ending is Ending.RETURNS:
            tell(f"the link below {port} comes back{doubt}", line)
            self._assume(f"it is down for {FLAP_S:g} s, and for as long as it is held down after that", line)
            return _flap(port)
        tell(f"the link below {port} stays down{doubt}", line)
        if "slot" not in self._tree.nodes[port].settings:
            return Inject(what=Injection.LINK_DOWN, target=port), f"the link below {port} goes down"
        self._assume(f"the card below {port} is out: no line tells of presence, PDS = 0 is taken", line)
        return Inject(what=Injection.REMOVE, target=port), f"the card below {port} is pulled"

    def _host_link_lost(self, hit: LinkLost) -> list[tuple[Inject, str]]:
        """Return what a host bridge's own interrupt tells of, on a port that reports by AER instead."""
        self._know(f"the link below {hit.port} goes down", hit.line)
        self._assume("the host bridge has an interrupt for that; here the port reports Surprise Down (AER)", hit.line)
        self._assume(f"the link is down for {FLAP_S:g} s, and for as long as it is held down after that", hit.line)
        return [*self._unstable(hit), _flap(hit.port)]

    def _unstable(self, hit: LinkLost) -> list[tuple[Inject, str]]:
        """Tell whether the link fell again as soon as it had trained: then it does so every time from now on."""
        later = next((e.line for e in self._hits if e.line > hit.line), None)
        links = [
            e
            for e in self._log.events
            if isinstance(e, HostLink) and e.line > hit.line
            if later is None or e.line < later
        ]
        fallen = next(
            (
                (up, down)
                for up, down in itertools.pairwise(links)
                if up.up and not down.up and up.at is not None and down.at is not None
                if 0 <= down.at - up.at <= _UNSTABLE_MAX_S
            ),
            None,
        )
        if fallen is None:
            return []
        up, down = fallen
        assert up.at is not None
        assert down.at is not None
        drops_s = round(down.at - up.at, 3)
        said = f"the link below {hit.port} falls {drops_s * 1000:.0f} ms after it trained"
        self._know(said, down.line)
        self._assume(f"{said}, every time from here on", down.line)
        return [(Inject(what=Injection.UNSTABLE_LINK, target=hit.port, for_s=drops_s, count=0), f"from here on {said}")]

    def _never_back(self, port: Address, line: int) -> tuple[Inject, str]:
        said = f"the link below {port} does not train again once it is down"
        self._infer(f"{port} did not answer after the reset and before any slot spoke: {said}", line)
        return Inject(what=Injection.STUCK_TRAINING, target=port), said

    # --- How it is known ---

    def _know(self, what: str, line: int) -> None:
        self.facts.append(Planned(what, Source.LOG, line))

    def _infer(self, what: str, line: int) -> None:
        self.facts.append(Planned(what, Source.INFERRED, line))

    def _assume(self, what: str, line: int) -> None:
        self.facts.append(Planned(what, Source.ASSUMED, line))


def _flap(port: Address) -> tuple[Inject, str]:
    return Inject(what=Injection.LINK_FLAP, target=port, for_s=FLAP_S), f"the link below {port} goes down"


def _told_ending(log: KernelLog, report: Report) -> tuple[Ending, int] | None:
    """Return what the log tells of a lost link, and on which line; None where it does not."""
    of_decision = {
        Decided.NO_LINK: Ending.GONE,
        Decided.RESET_FAILED: Ending.GONE,
        Decided.RECOVERED: Ending.RETURNS,
        Decided.SLOT_RESET: Ending.RETURNS,
    }
    for event in log.events:
        if isinstance(event, Decision) and event.line > report.line and event.function == report.function:
            ending = of_decision.get(event.what)
            if ending is not None:
                return ending, event.line
    return None
