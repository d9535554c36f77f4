"""Resets that a user asks for: what they would hit, and their begin, under a lease of their own or inside a hold."""

from __future__ import annotations

import msgspec

from shared.pcie import Address, answered
from shared.pcie.registers import RRS_VENDOR_ID, VENDOR_ID
from shared.protocol import Message, Reason, Refused
from shared.protocol.fabric import Rank, Verb, quarantine_over
from shared.protocol.facts import What
from shared.protocol.requests import Accepted, Cause, Reset, ResetMethod
from shared.recovery import Do, port_reads, port_view, read
from shared.runtime import FabricClient, LeaseHandle

from ._function_resets import abilities
from ._holds import HoldWork
from ._journal import Journal, blank
from ._plan import Chosen, Unable, choose
from ._port import Port
from ._resetting import FUNCTION, INSIDE, METHOD, ResetWork


async def begin_reset(port: Port, asked: Reset) -> Message:
    """Choose the method and begin; or only say what would be done (`dry_run`), or why nothing can be."""
    works = port.works
    await works.look_around()
    topology = works.topology
    function = topology.find(asked.function)
    if function is None:
        return _gone(asked.function)
    able = await _abilities(works.fabric, port, asked.function)
    chosen = choose(function, topology, asked.method, able, domain=asked.domain)
    if isinstance(chosen, Unable):
        return Refused(reason=chosen.reason, message=chosen.message)
    if await _absent(port, asked.function):
        return _gone(asked.function)
    if asked.dry_run:
        quarantined = await _quarantined(port)
        return chosen.planned(asked.function, port.address, topology) if quarantined is None else quarantined
    if asked.lease is not None:
        return _begin_inside(port, asked, asked.lease, chosen)
    lease_id = works.new_id("u", port.address)
    reply = await works.fabric.open(port.command(lease_id, Rank.USER, Cause.USER_RESET, reach=chosen.reach))
    if isinstance(reply, Refused):
        return reply
    await works.absorbed(reply.absorbed, lease_id, port.address)
    journal = Journal(works.context, blank(reply.lease, **_details(asked, chosen)))
    work = ResetWork(works.context, works.fabric, topology, LeaseHandle(reply.lease), journal, chosen)
    port.launch(work)
    work.say(What.RECOVERY_STARTED, functions=(asked.function,), method=chosen.method, reach=chosen.reach)
    return Accepted(lease=lease_id)


def _begin_inside(port: Port, asked: Reset, lease: str, chosen: Chosen) -> Message:
    """Reset inside an open hold, whose holder asks for it: he must not wait for himself."""
    works = port.works
    hold = works.find(lease)
    domain = [function.address for function in works.topology.domain(port.address)]
    if not isinstance(hold, HoldWork) or not hold.open or hold.port != port.address or asked.function not in domain:
        return Refused(reason=Reason.UNKNOWN_LEASE, message=f"{lease} is not an open hold that covers {asked.function}")
    record = blank(hold.handle.lease, **_details(asked, chosen), **{INSIDE: hold.id})
    record = msgspec.structs.replace(
        record, lease=works.new_id("u", port.address), cause=Cause.USER_RESET, rank=Rank.USER
    )
    journal = Journal(works.context, record)
    work = ResetWork(works.context, works.fabric, works.topology, hold.handle, journal, chosen)
    works.launch(work, work.run_inside(hold), port.ended)
    work.say(What.RECOVERY_STARTED, functions=(asked.function,), method=chosen.method, inside=hold.id)
    return Accepted(lease=work.id)


async def _abilities(fabric: FabricClient, port: Port, address: Address) -> frozenset[ResetMethod]:
    """Ask the function's registers which resets it has of its own."""
    logic = abilities(port.works.topology.get(address))
    try:
        effect = next(logic)
        assert isinstance(effect, Do)
        assert all(operation.verb is Verb.READ for operation in effect.operations)
        logic.send(await fabric.read(effect.operations))
    except StopIteration as done:
        able: frozenset[ResetMethod] = done.value
        return able
    raise AssertionError("abilities asks once")


def _gone(function: Address) -> Refused:
    return Refused(reason=Reason.ABSENT, message=f"{function} is gone: nothing answers there")


async def _absent(port: Port, function: Address) -> bool:
    """Tell whether the device is known to be gone (P8): no answer, and its port does not hold the link down."""
    above = port.works.topology.port_above(function)
    reads = () if above is None else port_reads(above)
    held = await port.works.fabric.read((*reads, read(function, VENDOR_ID.offset, VENDOR_ID.width)))
    if answered(held[-1]) and held[-1] != RRS_VENDOR_ID:
        return False
    view = None if above is None else port_view(above, held[:-1])
    return view is not None and view.looks_gone


async def _quarantined(port: Port) -> Refused | None:
    """Return the refusal that a lease would meet, without asking for one."""
    listed = (await port.works.fabric.leases()).quarantines
    found = quarantine_over(port.works.topology.path(port.address), listed)
    if found is None:
        return None
    return Refused(reason=Reason.QUARANTINED, message=f"{found.port} is in quarantine ({found.why}): {found.release}")


def _details(asked: Reset, chosen: Chosen) -> dict[str, str]:
    return {FUNCTION: str(asked.function), METHOD: chosen.method.value}
