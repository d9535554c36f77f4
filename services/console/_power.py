"""`power on|off`: ask hotplug, and wait until the slot is where it was asked to be."""

from __future__ import annotations

import asyncio
import contextlib
from enum import StrEnum
from typing import Final

from shared.pcie import Address
from shared.protocol import subjects
from shared.protocol.facts import Fact, What
from shared.protocol.requests import SlotReply, SlotReport, SlotRequest, SlotState
from shared.runtime import Incoming

from ._exit import ExitCode, Failure
from ._names import port_of
from ._output import print_json, tell
from ._session import Session
from ._story import account

_POLL_S: Final = 0.1
_SHOWN: Final = (What.SLOT_STATE, What.SLOT_NOT_READY, What.SLOT_POWER_FAULT, What.SLOT_DEFERRED)


class Power(StrEnum):
    """What to do with a slot."""

    ON = "on"
    OFF = "off"


async def power(session: Session, which: Power, name: str, *, as_json: bool) -> ExitCode:
    """Power a slot on or off and show its states."""
    address, topology = await session.resolve(name)
    port = port_of(address, topology)
    if not port.hotplug_capable:
        raise Failure(ExitCode.POLICY, f"{port.address} has no hotplug slot: its power cannot be switched")
    why: list[str] = []

    def show(incoming: Incoming) -> None:
        fact = incoming.message
        assert isinstance(fact, Fact)
        why.append(account(fact))
        if not as_json:
            tell(why[-1])

    async with contextlib.AsyncExitStack() as stack:
        for what in _SHOWN:
            heard = await session.bus.watch_facts(subjects.fact(session.host, port.address, what), show)
            stack.push_async_callback(heard.close)
        await _ask(session, port.address, f"power_{which}")
        report = await settled(session, port.address)
    if as_json:
        print_json(report)
    if report.state is not SlotState(which.value):
        reason = why[-1] if why else f"it is {report.state}"
        raise Failure(ExitCode.FAILED, f"slot {report.slot_number} ({port.address}) did not go {which}: {reason}")
    tell(f"slot {report.slot_number} ({port.address}) is {report.state}")
    return ExitCode.OK


async def _ask(session: Session, port: Address, request: str) -> SlotReport:
    subject = subjects.slot(session.host, port, request)
    what = f"{request.replace('_', ' ')} {port}"
    report: SlotReport = await session.ask(subject, SlotRequest(), SlotReply, whom="hotplug", what=what)
    return report


async def settled(session: Session, port: Address) -> SlotReport:
    """Wait until the slot's state is one that lasts."""
    try:
        async with asyncio.timeout(session.timeout_s):
            while True:
                report = await _ask(session, port, "status")
                if report.state in {SlotState.ON, SlotState.OFF}:
                    return report
                await asyncio.sleep(_POLL_S)
    except TimeoutError as error:
        raise Failure(
            ExitCode.UNREACHABLE,
            f"the slot of {port} has not settled within {session.timeout_s:g} s, and nothing has failed: "
            "`holdfast status` shows where it is",
        ) from error
