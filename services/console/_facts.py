"""`watch` and `history`: facts as they come, and as they came. The same order and the same shape."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from typing import Final

from rich.text import Text

from shared.pcie import Address, Topology
from shared.protocol import subjects
from shared.protocol.facts import Fact

from . import _names
from ._exit import ExitCode, Failure
from ._output import console, plain, print_json, tell
from ._session import Session

NEW_ONLY: Final = 0  # as `since_sequence`: none of what is stored already

_STYLES: Final = {
    "link": "cyan",
    "slot": "blue",
    "device": "green",
    "error": "red",
    "containment": "magenta",
    "lease": "yellow",
    "quarantine": "bold red",
    "recovery": "bold",
}


async def watch(session: Session, port: str | None, *, as_json: bool) -> None:
    """Print facts as they come, until interrupted."""
    chosen = await _subjects(session, port)
    async for fact in session.bus.facts(chosen, since_sequence=NEW_ONLY, follow=True):
        show(fact, as_json=as_json)


async def history(session: Session, port: str | None, *, lease: str | None, limit: int | None, as_json: bool) -> None:
    """Print the facts that are stored, oldest first: all, or the last `limit` of those chosen.

    Raises Failure where none speaks of `lease`.
    """
    chosen = await _subjects(session, port)
    silent = True
    async for fact in _last(session.bus.facts(chosen), lease, limit):
        show(fact, as_json=as_json)
        silent = False
    if silent and lease is not None:
        where = f"host {session.host!r}" if port is None else port
        told = f"{where}: no fact names a lease {lease!r}; give the whole of its id, `holdfast logs` takes a part"
        raise Failure(ExitCode.ABSENT, told)
    if silent:
        tell("nothing has happened there so far")


def show(fact: Fact, *, as_json: bool) -> None:
    """Print one fact, in the shape that every stream of facts has."""
    if as_json:
        print_json(fact)
    else:
        console().print(line(fact), soft_wrap=True)


def line(fact: Fact) -> Text:
    """Write one fact for people: time, port, what, then who, which lease and why, then the rest."""
    at = fact.at.astimezone().strftime("%H:%M:%S.%f")[:-3]
    kind = fact.what.split(".", maxsplit=1)[0]
    known = {"service": fact.service, "lease": fact.lease, "cause": fact.cause}
    details = {**{name: value for name, value in known.items() if value is not None}, **fact.data}
    return Text.assemble(
        (at, "dim"),
        f"  {fact.port}  ",
        (f"{fact.what:<22}", _STYLES.get(kind, "")),
        *(part for name, value in details.items() for part in ((f"  {name}=", "dim"), plain(value))),
    )


def of_host(host: str) -> tuple[str, ...]:
    """Return the subjects of all facts of a host."""
    return tuple(subjects.fact(host, "*", f"{kind}.>") for kind in subjects.FACT_KINDS)


async def _last(facts: AsyncIterator[Fact], lease: str | None, limit: int | None) -> AsyncIterator[Fact]:
    kept: deque[Fact] = deque(maxlen=limit)
    async for fact in facts:
        if lease is not None and fact.lease != lease:
            continue
        if limit is None:
            yield fact
        else:
            kept.append(fact)
    for fact in kept:
        yield fact


async def _subjects(session: Session, port: str | None) -> tuple[str, ...]:
    """Return the fact subjects of the host, or of what concerns `port`: the port, what is below, and its port above."""
    if port is None:
        return of_host(session.host)
    concerned = await _concerned(session, port)
    return tuple(
        subjects.fact(session.host, address, f"{kind}.>") for address in concerned for kind in subjects.FACT_KINDS
    )


async def _concerned(session: Session, port: str) -> tuple[Address, ...]:
    try:
        address, topology = await session.resolve(port)
    except Failure:
        # The audit log outlives the fabric, and devices that are gone: an address is enough to ask it.
        address_only = _names.literal(port)
        if address_only is None:
            raise
        address, topology = address_only, Topology()
    function = topology.find(address)
    above = None if function is None or function.is_port else topology.port_above(address)
    below = tuple(found.address for found in topology.below(address))
    return (*(() if above is None else (above.address,)), address, *below)
