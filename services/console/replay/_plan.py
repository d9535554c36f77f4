"""From a parsed kernel log to a machine and what happens to it.

Inputs are what hardware and drivers did, up to the kernel's first action; what the kernel concluded is laid beside the
outcome (`_verdicts`), never injected. Where the log leaves open how a failure went on, there is a plan for each way.
"""

from __future__ import annotations

from typing import Final

import msgspec

from services.console.kernel_log import EXPECTED, Containment, KernelLog, LinkLost, LogError, Report
from shared.pcie import Address

from ._drivers import seat_drivers
from ._facts import Episode, Planned, Source, episodes
from ._machine import TRAINING_S, topology
from ._steps import Ending, Hit, Step, Steps, endings
from ._topology import rebuild

_SOURCES: Final = tuple(Source)


class Plan(msgspec.Struct, frozen=True):
    """A replay: the machine as a topology file, what is done to it, and where each fact comes from."""

    log: str
    topology: str
    steps: tuple[Step, ...]
    facts: tuple[Planned, ...]
    functions: tuple[Address, ...]  # the endpoints, which are judged
    registered: tuple[Address, ...]  # everything below a port: hotplug registers it
    above: dict[Address, tuple[Address, ...]]  # the ports above each of them, nearest first
    broken: tuple[str, ...] = ()
    variant: Ending | None = None  # which of the ways that the log leaves open


def plans(log: KernelLog) -> tuple[Plan, ...]:
    """Plan the replay of a log: one plan, or one for each way that it leaves open. Raises LogError if there is none."""
    if not log.speaks:
        raise LogError(f"{log.name}: no PCIe line found; {EXPECTED}")
    stretches = episodes(log)
    hits = tuple(e for e in log.events if isinstance(e, Hit) and _begun(e, stretches))
    if not hits:
        raise LogError(
            f"{log.name}: unsupported: no containment (DPC), no error report (AER) and no lost link before the kernel "
            "acted on it; what it holds are the kernel's own conclusions, and those are not injected"
        )
    return tuple(_plan(log, stretches, hits, ending) for ending in endings(log, hits))


def _plan(log: KernelLog, stretches: tuple[Episode, ...], hits: tuple[Hit, ...], ending: Ending | None) -> Plan:
    tree = rebuild(log, tuple(dict.fromkeys(_struck(hit) for hit in hits)), stretches[0])
    seat_drivers(log, tree, stretches[0].until)
    bench = topology(log, tree)
    making = Steps(log, tree, hits, ending)
    steps = tuple(making.all())
    facts = making.facts + tree.facts + _remarks(log, stretches)
    return Plan(
        log=log.name,
        topology=bench,
        steps=steps,
        facts=tuple(sorted(facts, key=lambda fact: (_SOURCES.index(fact.source), fact.line or 0))),
        functions=tuple(node.address for node in tree.endpoints()),
        registered=tuple(node.address for node in tree.walk() if node.under is not None),
        above={node.address: tree.ports_above(node.address) for node in tree.endpoints()},
        broken=tuple(f"line {broken.line} is skipped: {broken.why}" for broken in log.broken),
        variant=ending,
    )


def _begun(hit: Hit, stretches: tuple[Episode, ...]) -> bool:
    """Tell whether hardware struck by itself."""
    return any(stretch.covers(hit.line) for stretch in stretches)


def _struck(hit: Hit) -> Address:
    match hit:
        case Report():
            return hit.function
        case Containment() | LinkLost():
            return hit.port


def _remarks(log: KernelLog, stretches: tuple[Episode, ...]) -> list[Planned]:
    """Say what holds for the whole replay."""
    told = [Planned(f"a link trains within {TRAINING_S:g} s once it is released", Source.ASSUMED)]
    told.append(Planned("every card has a serial number, and is the same one all the time", Source.ASSUMED))
    if log.backward:
        said = f"timestamps run backward {log.backward} times; the order of lines counts"
        told.append(Planned(said, Source.INFERRED))
    for stretch, after in zip(stretches, (*stretches[1:], None), strict=True):
        if stretch.until is not None:
            end = "nothing more is injected" if after is None else f"nothing is injected before line {after.first}"
            said = f"from here on the kernel acts on the hardware: {end}"
            told.append(Planned(said, Source.INFERRED, stretch.until))
    own = next(
        (e for e in log.events if isinstance(e, Hit) and e.line > stretches[-1].first and not _begun(e, stretches)),
        None,
    )
    if own is not None:
        told.append(Planned("what strikes here is a consequence of what the kernel did", Source.INFERRED, own.line))
    return told
