"""`lease show` tells all that the fabric knows of one lease, `lease break` ends it: a Typer application of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import typer

from shared.pcie.registers import DeviceControl, SlotControl
from shared.protocol import LeaseRef, subjects
from shared.protocol.fabric import Lease, LeaseList, RetiredLease, SavedReporting, SavedSlot
from shared.protocol.requests import Accepted, AcceptReply, Break

from . import _options
from ._exit import ExitCode, Failure
from ._links import link_text
from ._names import lease_named
from ._options import DEFAULT_HOST, DEFAULT_TIMEOUT_S, DEFAULT_URL, Host, Json, Nats, Timeout, Yes
from ._outcome import Progress, closed
from ._output import print_json, print_table, tell
from ._run import ask, confirm, look
from ._session import Session, holder

_ENABLES: Final = {SlotControl.PRESENCE_CHANGED_ENABLE: "PDCE", SlotControl.LINK_STATE_CHANGED_ENABLE: "DLLSCE"}

app = typer.Typer(help="Show what a lease holds, or break it.", no_args_is_help=True, add_completion=False)


@app.command()
def show(
    lease: _options.Lease,
    nats: Nats = DEFAULT_URL,
    host: Host = DEFAULT_HOST,
    as_json: Json = False,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
) -> None:
    """Show who holds what, and what close will restore; of a lease that has ended, what became of the functions."""
    ask(nats, host, timeout, lambda s: _show(s, lease, as_json=as_json))


@app.command("break")
def break_lease(
    lease: _options.Lease,
    yes: Yes = False,
    nats: Nats = DEFAULT_URL,
    host: Host = DEFAULT_HOST,
    as_json: Json = False,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
) -> None:
    """End a lease against its holder's will: no driver is waited for, the port is rolled forward, verified, unmasked."""
    found = look(nats, host, timeout, lambda s: _open(s, lease))
    confirm(f"Break {_said(found.ref)}?", yes=yes)
    ask(nats, host, timeout, lambda s: _break(s, found, as_json=as_json))


# --- show ---


async def _show(session: Session, text: str, *, as_json: bool) -> None:
    found = named(await session.leases(), text, session.host)
    if as_json:
        print_json(found)
    elif isinstance(found, Lease):
        print_table(("LEASE", found.id), described(found), empty="")
    else:
        _print_ended(found)


def named(listed: LeaseList, text: str, host: str) -> Lease | RetiredLease:
    """Return the lease that `text` names, open or ended. Raises Failure where none is, or more than one."""
    if not text.strip():
        raise Failure(
            ExitCode.USAGE, "name the lease, or a part of its id; `holdfast leases` shows those that are open"
        )
    ended = {one.lease.id: one for one in reversed(listed.retired)}  # the oldest first
    known: dict[str, Lease | RetiredLease] = {**ended, **{lease.id: lease for lease in listed.leases}}
    nobody = f"host {host!r} has no lease {text!r}, and none that ended of late; see `holdfast leases`, `holdfast logs`"
    return known[lease_named(text, known, nobody=nobody)]


def described(lease: Lease) -> Iterator[tuple[str, str]]:
    """Yield every field with its value, a line for each where there are many."""
    yield "port", str(lease.port)
    yield "rank", lease.rank.name.lower().replace("_", " ")
    yield "reach", str(lease.reach)
    yield "cause", lease.cause.replace("_", " ")
    yield "holder", f"{lease.holder}, by {lease.role}"
    yield "token", "struck out"  # the fabric tells it to the holder alone
    yield "age", f"{lease.age_s:.1f} s, {lease.last_n} commands under this token"
    yield "silent", f"{lease.silent_s:.1f} s of {lease.allowed_s:g} s allowed"
    yield from _lines("saved slot", (f"{slot.port}  {enables(slot)}" for slot in lease.slots))
    yield from _lines("function", (f"{one.address}  {one.identity}" for one in lease.functions))
    yield from _lines("link", (f"{one.port}  {link_text(one.speed, one.width)}" for one in lease.links))
    yield from _lines("in reset", map(str, lease.debts.in_reset))
    yield from _lines("link disabled", map(str, lease.debts.link_disabled))
    yield from _lines("contained", map(str, lease.debts.contained))
    yield from _lines("quarantined", map(str, lease.quarantined), always=False)
    yield from _lines("may differ", map(str, lease.accept), always=False)
    yield from _lines("silenced", map(_silenced, lease.quiet), always=False)
    if lease.firmware_owned:
        yield "firmware", "owns AER and DPC: no register of theirs is touched"


def _lines(name: str, values: Iterable[str], *, always: bool = True) -> Iterator[tuple[str, str]]:
    """Yield a row for each value, named in the first; a dash for none, or nothing."""
    found = tuple(values)
    if not found and always:
        yield name, "-"
    yield from (("" if index else name, value) for index, value in enumerate(found))


def enables(slot: SavedSlot) -> str:
    """Name what close sets again in a slot: the enables that were set, and Surprise Down where it was not masked."""
    found = [name for bit, name in _ENABLES.items() if slot.enables & bit]
    if slot.surprise_down_masked is False:
        found.append("Surprise Down")
    return " ".join(found) or "nothing was enabled"


def _silenced(saved: SavedReporting) -> str:
    named = (
        (saved.command, "SERR# of Command"),
        (saved.bridge_control, "SERR# of Bridge Control"),
        (saved.device_control & DeviceControl.NONFATAL_REPORTING, "Non-Fatal Error Reporting"),
        (saved.device_control & DeviceControl.FATAL_REPORTING, "Fatal Error Reporting"),
    )
    return f"{saved.function}  " + (", ".join(text for bits, text in named if bits) or "nothing was enabled")


def _print_ended(retired: RetiredLease) -> None:
    ref = retired.lease
    heir = f", absorbed by {retired.absorbed_by}" if retired.absorbed_by is not None else ""
    tell(f"{_said(ref)} has ended{heir}")
    rows = [
        (str(one.function), f"{one.result}, degraded" if one.degraded else one.result, " ".join(one.differs) or "-")
        for one in retired.outcomes
    ]
    print_table(("FUNCTION", "OUTCOME", "DIFFERS"), rows, empty="no function was in its domain")


def _said(ref: LeaseRef) -> str:
    return f"{ref.id} on {ref.port} ({ref.rank}, {ref.cause}, held by {ref.holder})"


# --- break ---


def open_lease(listed: LeaseList, text: str, host: str) -> Lease:
    """Return the open lease that `text` names. Raises Failure where it has ended, or none is meant."""
    if any(text in lease.id for lease in listed.leases):  # ended ones are not in the way
        listed = LeaseList(leases=listed.leases)
    found = named(listed, text, host)
    if isinstance(found, RetiredLease):
        raise Failure(ExitCode.ABSENT, f"{_said(found.lease)} has ended; `holdfast lease show {text}` tells how")
    return found


async def _open(session: Session, text: str) -> Lease:
    return open_lease(await session.leases(), text, session.host)


async def _break(session: Session, lease: Lease, *, as_json: bool) -> ExitCode:
    async with Progress(session, quiet=as_json) as progress:
        request = Break(lease=lease.id, by=holder())
        subject = subjects.coordinator(session.host, "break")
        accepted: Accepted = await session.ask(
            subject, request, AcceptReply, whom="coordinator", what=f"break {lease.id}"
        )
        progress.of(accepted.lease)
        outcome = await closed(session, lease.port, accepted.lease, progress)
    outcome.show(as_json=as_json)
    return outcome.exit_code
