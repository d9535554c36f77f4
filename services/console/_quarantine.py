"""`quarantine list` shows what is held down for good and why, `quarantine release` brings it back."""

from __future__ import annotations

import msgspec
import typer

from shared.pcie import Address, Function, Topology
from shared.pcie.registers import DPC_STATUS, LINK_CONTROL, DpcStatus, LinkControl, Register
from shared.protocol import subjects
from shared.protocol.fabric import Quarantine
from shared.protocol.requests import Accepted, AcceptReply, Lift

from ._exit import ExitCode, Failure
from ._options import DEFAULT_HOST, DEFAULT_TIMEOUT_S, DEFAULT_URL, Host, Json, Nats, Port, Timeout, Yes
from ._outcome import Progress, closed
from ._output import print_json, print_table
from ._run import ask, confirm
from ._session import Session, holder

app = typer.Typer(
    help="List the ports that are held down for good, or release one.", no_args_is_help=True, add_completion=False
)


class Held(msgspec.Struct, frozen=True):
    """One port in quarantine, as `--json` prints it. `held_down_by` is empty if nothing holds it down any more."""

    port: str
    slot: int | None
    age_s: float
    why: str
    lease: str
    behind: dict[str, str]  # function -> identity, as it was when the port was taken out of service
    held_down_by: tuple[str, ...]


@app.command("list")
def list_quarantines(
    nats: Nats = DEFAULT_URL, host: Host = DEFAULT_HOST, as_json: Json = False, timeout: Timeout = DEFAULT_TIMEOUT_S
) -> None:
    """Show the ports in quarantine: since when, why, what is behind them, and what holds them down."""
    ask(nats, host, timeout, lambda s: _list(s, as_json=as_json))


@app.command()
def release(
    port: Port,
    yes: Yes = False,
    nats: Nats = DEFAULT_URL,
    host: Host = DEFAULT_HOST,
    as_json: Json = False,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
) -> None:
    """Bring back what is behind a port in quarantine: reset, verify, unmask; drivers go on."""
    confirm(f"Release {port} from quarantine?", yes=yes)
    ask(nats, host, timeout, lambda s: _release(s, port, as_json=as_json))


async def _list(session: Session, *, as_json: bool) -> None:
    listed = await session.leases()
    topology = await session.topology()
    found = [await _held(session, one, topology) for one in listed.quarantines]
    if as_json:
        for held in found:
            print_json(held)
        return
    rows = [
        (
            held.port,
            "-" if held.slot is None else str(held.slot),
            f"{held.age_s:.0f} s ago",
            held.why,
            "\n".join(f"{function} {identity}" for function, identity in held.behind.items()) or "-",
            " and ".join(held.held_down_by) or "nothing!",
            held.lease,
        )
        for held in found
    ]
    columns = ("PORT", "SLOT", "SINCE", "WHY", "BEHIND IT", "HELD DOWN BY", "LEASE")
    print_table(columns, rows, empty="no port is in quarantine")


async def _held(session: Session, one: Quarantine, topology: Topology) -> Held:
    port = topology.find(one.port)
    return Held(
        port=str(one.port),
        slot=None if port is None or port.slot is None else port.slot_number,
        age_s=one.age_s,
        why=one.why,
        lease=one.lease,
        behind={str(saved.address): str(saved.identity) for saved in one.functions if saved.address != one.port},
        held_down_by=() if port is None else await _holds_down(session, port),
    )


async def _holds_down(session: Session, port: Function) -> tuple[str, ...]:
    """Read what keeps the link of a port down: the registers say so, not the record (P9)."""
    caps = port.capabilities
    rows: tuple[tuple[str, Register, int, int], ...] = (
        ("DPC", DPC_STATUS, caps.dpc, DpcStatus.TRIGGER),
        ("Link Disable", LINK_CONTROL, caps.express, LinkControl.LINK_DISABLE),
    )
    asked = [(name, register, base, bit) for name, register, base, bit in rows if base]
    values = await session.read(
        *((port.address, base + register.offset, register.width) for _, register, base, _ in asked)
    )
    return tuple(
        name for (name, _, _, bit), value in zip(asked, values, strict=True) if value is not None and value & bit
    )


async def _release(session: Session, name: str, *, as_json: bool) -> ExitCode:
    address, topology = await session.resolve(name)
    port = quarantined((await session.leases()).quarantines, address, topology)
    if port is None:
        told = f"{address} is in no quarantine; `holdfast quarantine list` shows what is"
        raise Failure(ExitCode.ABSENT, told)
    async with Progress(session, quiet=as_json) as progress:
        subject = subjects.coordinator(session.host, "lift")
        request = Lift(port=port, by=holder())
        accepted: Accepted = await session.ask(
            subject, request, AcceptReply, whom="coordinator", what=f"release {port}"
        )
        progress.of(accepted.lease)
        outcome = await closed(session, port, accepted.lease, progress)
    outcome.show(as_json=as_json)
    return outcome.exit_code


def quarantined(listed: tuple[Quarantine, ...], address: Address, topology: Topology) -> Address | None:
    """Return the port in quarantine that `address` is, or is behind of; None where it is in none."""
    ports = {one.port for one in listed}
    chain = topology.path(address)
    recorded = {saved.address: one.port for one in listed for saved in one.functions}
    return next((port for port in chain if port in ports), recorded.get(address))
