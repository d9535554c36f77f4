"""Questions that nobody awaits any more, as they pile up on a host that was slow or frozen for a while."""

from __future__ import annotations

import pytest

from services.fabric._actor import Asked
from shared.protocol import Message
from shared.protocol.fabric import Acknowledge, AskTopology, Beat, Close, Dump, Leases, Read, Role
from shared.recovery import read, write

from .fabric_asking import opened
from .fabric_bench import CARD, ROOT, FakeRequest, Rig


async def abandoned(rig: Rig, message: Message, role: Role | None) -> Message | None:
    request = FakeRequest(message)
    request.abandoned = True
    await rig.fabric.receive(Asked(request, role))
    return request.answered


@pytest.mark.parametrize(
    "question", [Read(operations=(read(CARD, 0, 2),)), Dump(function=CARD), Leases(), AskTopology()], ids=repr
)
async def test_a_question_of_nobody_costs_no_read(rig: Rig, question: Message, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(rig.bench), "read", None)
    assert await abandoned(rig, question, None) is None


async def test_p10_an_acknowledgement_that_comes_too_late_clears_nothing(rig: Rig) -> None:
    rig.bench.writes.clear()
    late = Acknowledge(operations=(write(CARD, 0x110, 4, 1),))
    assert await abandoned(rig, late, Role.AER) is None
    assert rig.bench.writes == []


async def test_p2_a_command_is_done_also_when_it_comes_late(rig: Rig) -> None:
    lease = await opened(rig, ROOT)
    assert await abandoned(rig, Beat(token=lease.token), Role.COORDINATOR) is not None
    assert await abandoned(rig, Close(token=lease.token), Role.COORDINATOR) is not None
    assert not rig.ledger.book.leases
