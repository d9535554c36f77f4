"""What firmware, a predecessor or a failed recovery has left behind: published once, then cleared, never recovered from.

A bit is stale that stands when its function answers for the first time, or again, and that no latched message is about
(linux-kernel.md, scenario 31, and what still hurts: a failed recovery leaves status that the next error is blamed on).
"""

from __future__ import annotations

from typing import Final

from shared.pcie import Address, Topology
from shared.protocol.fabric import LeaseList, Operation
from shared.protocol.facts import Ignored, What
from shared.runtime import Facts

from ._correctable import acknowledge_stale
from ._memory import Memory
from ._sources import BOTH, Case, Source, find_new, find_stale, is_nobodys, signs
from ._survey import Survey

_WHY: Final = "set before the function was first looked at, and no message of it was received"


class Leftovers:
    """The stale status of one root port's domain."""

    def __init__(self, facts: Facts, root: Address, memory: Memory) -> None:
        self._facts = facts
        self._root = root
        self._memory = memory

    def find(self, topology: Topology, survey: Survey, listed: LeaseList, *, starting: bool) -> None:
        """Publish what is stale, and remember it. What is under a lease is judged after it: it has been seen by then."""
        fresh = self._memory.fresh(survey.errors, starting=starting)
        for source in find_stale(topology, self._root, survey, fresh, self._memory.stale):
            if not _may_be_left(topology, survey, source, listed):
                continue
            self._memory.leave(source.function, source.bits)
            self._facts.say(
                What.ERROR_IGNORED,
                source.port,
                reason=Ignored.STALE,
                why=_WHY,
                severity=source.severity,
                functions=[source.function],
                status=source.bits,
                names=[name for report in source.reports for name in report.names],
            )

    def writes(self, topology: Topology, survey: Survey, listed: LeaseList) -> tuple[Operation, ...]:
        """Return the writes that clear what is stale, as far as nothing that is latched could be about it."""
        if survey.latch.uncorrectable:
            return ()
        stale = self._memory.stale
        return tuple(
            operation
            for source in find_new(topology, survey, BOTH, {})
            if source.function in stale and _may_be_left(topology, survey, source, listed)
            for operation in acknowledge_stale(
                topology.get(source.function), survey.errors[source.function], source.bits & stale[source.function]
            )
        )


def _may_be_left(topology: Topology, survey: Survey, source: Source, listed: LeaseList) -> bool:
    return is_nobodys(signs(topology, survey, Case(port=source.port, sources=(source,)), listed))
