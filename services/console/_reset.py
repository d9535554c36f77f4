"""`reset`: ask for it, show its steps, say what became of every function; or only say what it would hit."""

from __future__ import annotations

import os
from typing import Final

import msgspec

from shared.pcie import Address, Topology
from shared.protocol import Reason, Refused, subjects
from shared.protocol.records import Device
from shared.protocol.requests import Accepted, Planned, Reset, ResetMethod, ResetReply

from ._exit import ExitCode, Failure, refusal
from ._names import device_of, literal
from ._outcome import Progress, closed
from ._output import print_json, print_table, tell
from ._session import Session

LEASE_VARIABLE: Final = "HOLDFAST_LEASE"  # set by `hold` for its command: what the command asks for runs in its lease


class Hit(msgspec.Struct, frozen=True):
    """One function that a reset would hit. `beyond`: it is on another device than the one named."""

    function: str
    driver: str | None
    device: str
    beyond: bool


class Plan(msgspec.Struct, frozen=True):
    """What a reset would do, as `--dry-run --json` prints it. `refused` says why it would not be done as asked."""

    function: str
    method: ResetMethod | None = None
    port: str | None = None
    hits: tuple[Hit, ...] = ()
    masked: tuple[str, ...] = ()
    refused: str | None = None


async def reset(
    session: Session, name: str, *, method: ResetMethod | None, domain: bool, dry_run: bool, as_json: bool
) -> ExitCode:
    """Reset one function and wait for the verdicts, or say what that would hit."""
    named, topology = await session.resolve(name)
    function = device_of(named, topology) if literal(name) is None else named  # a slot stands for its device
    request = Reset(function=function, method=method, lease=os.environ.get(LEASE_VARIABLE), domain=domain)
    if dry_run:
        return await _plan(session, msgspec.structs.replace(request, dry_run=True), topology, as_json=as_json)
    above = topology.lease_port(function)
    port = function if above is None else above.address
    async with Progress(session, quiet=as_json) as progress:
        subject = subjects.coordinator(session.host, "reset")
        accepted: Accepted = await session.ask(
            subject, request, ResetReply, whom="coordinator", what=f"reset {function}"
        )
        if accepted.joined and not as_json:
            tell(f"{function} is being recovered already, under lease {accepted.lease}")
        progress.of(accepted.lease)
        outcome = await closed(session, port, accepted.lease, progress)
    outcome.show(as_json=as_json)
    return outcome.exit_code


# --- Only what it would hit ---


async def _plan(session: Session, request: Reset, topology: Topology, *, as_json: bool) -> ExitCode:
    """Show what would be hit, and what is refused. Raises Failure with the code of the refusal, if there is one."""
    answer, refused = await _planned(session, request)
    devices = {device.function: device for device in await session.devices()}
    failure = None if refused is None else refusal(refused, f"reset {request.function}")
    plan = shown(request.function, answer, None if failure is None else str(failure), topology, devices)
    if as_json:
        print_json(plan)
    elif plan.method is not None:
        _print(plan, "yes" if request.domain else "yes: it needs --domain")
    if failure is not None:
        raise Failure(failure.code, f"{failure}; nothing was changed")
    return ExitCode.OK


async def _planned(session: Session, request: Reset) -> tuple[Planned | None, Refused | None]:
    """Ask for the plan. Where it is refused because it reaches too far, ask also how far it would reach."""
    subject, what = subjects.coordinator(session.host, "reset"), f"reset {request.function}"
    answer = await session.request(subject, request, ResetReply, whom="coordinator", what=what)
    if isinstance(answer, Planned):
        return answer, None
    if not isinstance(answer, Refused):
        raise Failure(ExitCode.INTERNAL, f"{what}: the coordinator took a dry run for a reset: see `holdfast leases`")
    if answer.reason is not Reason.POLICY or request.domain:
        return None, answer
    whole = msgspec.structs.replace(request, domain=True)
    wider = await session.request(subject, whole, ResetReply, whom="coordinator", what=what)
    return (wider if isinstance(wider, Planned) else None), answer


def shown(
    function: Address,
    planned: Planned | None,
    refused: str | None,
    topology: Topology,
    devices: dict[Address, Device],
) -> Plan:
    """Put functions, drivers and identities together. Pure."""
    if planned is None:
        return Plan(str(function), refused=refused)

    def hit(address: Address) -> Hit:
        device, found = devices.get(address), topology.find(address)
        identity = "-" if found is None else str(found.identity)
        return Hit(str(address), None if device is None else device.driver, identity, address in planned.beyond)

    return Plan(
        function=str(function),
        method=planned.method,
        port=str(planned.port),
        hits=tuple(map(hit, planned.hits)),
        masked=tuple(map(str, planned.masked)),
        refused=refused,
    )


def _print(plan: Plan, beyond: str) -> None:
    """Show a plan; `beyond` is what is said of a function on another device than the one named."""
    assert plan.method is not None
    where = "" if plan.port == plan.function else f" at {plan.port}"
    tell(f"reset of {plan.function} by {plan.method.value.replace('_', ' ').upper()}{where}; nothing is changed")
    rows = [(hit.function, hit.driver or "-", hit.device, beyond if hit.beyond else "-") for hit in plan.hits]
    print_table(("FUNCTION", "DRIVER", "DEVICE", "BEYOND THE DEVICE"), rows, empty="no function would be hit")
    tell(f"masked: {', '.join(plan.masked) or 'nothing'}")
