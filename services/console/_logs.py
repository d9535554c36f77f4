"""`logs`: one recovery's story, gathered from the facts of all services."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec
from rich.text import Text

from shared.protocol import to_builtins
from shared.protocol.facts import Fact, What

from ._facts import of_host
from ._lease_facts import AROUND_S, chosen, concerned, is_around, is_over, places, tells_of
from ._output import console, print_json, tell
from ._session import Session
from ._story import account, why

_LINGER_S: Final = AROUND_S  # after the lease is over, for what follows it


class Told(msgspec.Struct, frozen=True):
    """One line of the story."""

    since_s: float  # since the story's first fact, by the stamps of the services
    step: str | None  # of the recovery, under way at that time
    text: str
    why: str | None
    fact: Fact

    def as_json(self) -> dict[str, Any]:
        """Return the fact in the shape that every stream of facts has, and beside it what its place in the story adds."""
        added = {"since_s": self.since_s, "step": self.step, "text": self.text, "why": self.why}
        return {**to_builtins(self.fact), **added}


class Story:
    """Tells the facts of one lease, those on record and those that come."""

    def __init__(self, lease: str, recorded: Iterable[Fact]) -> None:
        """Begin with the facts on record, some of which name the lease."""
        recorded = list(recorded)
        self.lease = lease
        self._own = [fact for fact in recorded if tells_of(fact, lease)]
        self._places = frozenset[str]().union(*(places(fact) for fact in self._own))
        self._recorded = concerned(recorded, self._own)
        self.first = self._recorded[0]
        self.opened = next((fact for fact in self._own if fact.lease == lease), self.first)
        self._since = min(fact.at for fact in self._own)
        self._until = max(fact.at for fact in self._own)
        self._step: str | None = None

    @property
    def is_over(self) -> bool:
        """Whether the end of the lease has been told."""
        return is_over(self._own, self.lease)

    def recorded(self) -> Iterator[Told]:
        """Tell what is on record, in the order in which it happened."""
        return map(self._told, self._recorded)

    def hear(self, fact: Fact) -> Told | None:
        """Tell a fact that came later; None if it belongs elsewhere."""
        if tells_of(fact, self.lease):
            self._own.append(fact)
            self._places |= places(fact)
            self._until = max(self._until, fact.at)
        else:
            until = self._until if self.is_over else max(self._until, fact.at)
            if not is_around(fact, self._places, self._since, until):
                return None
        return self._told(fact)

    def _told(self, fact: Fact) -> Told:
        if fact.lease == self.lease and fact.what is What.RECOVERY_STEP:
            self._step = str(fact.data.get("step"))
        told = Told(
            since_s=round((fact.at - self.first.at).total_seconds(), 6),
            step=self._step,
            text=account(fact),
            why=why(fact),
            fact=fact,
        )
        if fact.lease == self.lease and fact.what is What.RECOVERY_CLOSED:
            self._step = None
        return told


async def logs(session: Session, lease: str | None, *, follow: bool, as_json: bool) -> None:
    """Print the story of a lease so far; with `follow`, go on until it is over."""
    recorded = [fact async for fact in session.bus.facts(of_host(session.host))]
    story = Story(chosen(recorded, lease, session.host), recorded)
    if not as_json:
        _show_title(story)
    for told in story.recorded():
        _show(told, as_json=as_json)
    if follow:
        await _follow(session, story, {_identity(fact) for fact in recorded}, as_json=as_json)
    elif not story.is_over:
        tell(f"lease {story.lease} is not over; `holdfast logs {story.lease} --follow` shows how it goes on")


async def _follow(session: Session, story: Story, known: set[Any], *, as_json: bool) -> None:
    """Tell what comes. The record is read once more from its beginning, so that nothing is lost in between."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_S if story.is_over else None) as patience:
            async for fact in session.bus.facts(of_host(session.host), follow=True):
                told = None if _identity(fact) in known else story.hear(fact)
                if told is None:
                    continue
                _show(told, as_json=as_json)
                if story.is_over:
                    patience.reschedule(loop.time() + _LINGER_S)


def _identity(fact: Fact) -> tuple[Any, ...]:
    """Tell a fact from all others: a service's count begins anew when it is restarted."""
    return fact.service, fact.seq, fact.at


def _show_title(story: Story) -> None:
    started = story.first.at.astimezone().strftime("%H:%M:%S.%f")[:-3]
    cause = f" ({story.opened.cause})" if story.opened.cause else ""
    title = f"Lease {story.lease} on {story.opened.port}{cause}, from {started}"
    console().print(Text(title, style="bold"), soft_wrap=True)


def _show(told: Told, *, as_json: bool) -> None:
    if as_json:
        print_json(told.as_json())
        return
    head = (
        (f"{told.since_s:+9.3f} s  ", "dim"),
        (f"{told.fact.service:<12}", "cyan"),
        (f"{told.step or '':<15}", "dim"),
    )
    console().print(Text.assemble(*head, told.text), soft_wrap=True)
