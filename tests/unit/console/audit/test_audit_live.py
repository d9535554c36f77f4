"""Who answers for what an audit finds on a live host: whoever held something at either end, or in between."""

from __future__ import annotations

from typing import Any

import pytest

from services.console.audit._checks import judge
from services.console.audit._live import explanations, sort
from shared.pcie import Address, Capabilities, Function, Identity, Topology
from shared.pcie import registers as reg
from shared.pcie.registers import DeviceType
from shared.protocol import LeaseRef
from shared.protocol.fabric import Lease, LeaseList, Quarantine, Rank, Reach, RetiredLease, Role
from tests.unit.console.audit.audit_images import DRIVE, EXPRESS, PORT, port

OTHER = Address.parse("0000:00:02.0")
IDENTITY = Identity(0x8086, 0x6F04, 0x060400, 1, 0)
TOPOLOGY = Topology(
    (
        Function(PORT, DeviceType.ROOT_PORT, IDENTITY, Capabilities(), secondary=1, subordinate=1),
        Function(OTHER, DeviceType.ROOT_PORT, IDENTITY, Capabilities(), secondary=2, subordinate=2),
        Function(DRIVE, DeviceType.ENDPOINT, IDENTITY, Capabilities(), parent=PORT),
    )
)
MASKED = list(judge(port({(reg.SLOT_CONTROL, EXPRESS): 0x0030}), live=True))


def lease(at: Address = PORT, name: str = "r-1") -> Lease:
    return Lease(
        id=name, token=0, port=at, rank=Rank.RECOVERY, reach=Reach.RESET, role=Role.COORDINATOR, cause="dpc",
        holder="coordinator-1", allowed_s=5.0,
    )  # fmt: skip


def ended(at: Address = PORT, name: str = "r-1") -> RetiredLease:
    return RetiredLease(lease=LeaseRef(id=name, port=str(at), rank="recovery", cause="dpc", holder="coordinator-1"))


def listed(**fields: Any) -> LeaseList:
    return LeaseList(**{"leases": (), **fields})


NOBODY = listed()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(listed(leases=(lease(),)), NOBODY, id="a lease that ended"),
        pytest.param(NOBODY, listed(leases=(lease(),)), id="a lease that began"),
        pytest.param(NOBODY, listed(retired=(ended(),)), id="a lease that began and ended"),
        pytest.param(
            listed(quarantines=(Quarantine(port=PORT, lease="r-1", why="unstable"),)), NOBODY, id="quarantine"
        ),
        pytest.param(NOBODY, listed(edr=(PORT,)), id="an EDR event"),
    ],
)
def test_p10_who_held_something_meanwhile_answers_for_the_port_and_all_below(
    before: LeaseList, after: LeaseList
) -> None:
    answers = explanations(before, after, TOPOLOGY)
    assert answers.keys() == {PORT, DRIVE}
    look = sort(MASKED, answers, 3)
    assert look.findings == ()
    (explained,) = look.explained
    assert explained.finding.check == "masked"
    assert str(PORT) in explained.by


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(NOBODY, NOBODY, id="nobody"),
        pytest.param(listed(leases=(lease(OTHER),)), NOBODY, id="a lease on another port"),
        pytest.param(listed(leases=(lease(DRIVE),)), NOBODY, id="a lease on something below"),
        pytest.param(listed(retired=(ended(),)), listed(retired=(ended(),)), id="a lease that had ended before"),
    ],
)
def test_what_nobody_held_is_found(before: LeaseList, after: LeaseList) -> None:
    look = sort(MASKED, explanations(before, after, TOPOLOGY), 3)
    assert [finding.check for finding in look.findings] == ["masked"]
    assert look.explained == ()


def test_a_lease_on_a_port_that_is_gone_answers_for_nothing() -> None:
    assert explanations(listed(leases=(lease(Address.parse("0000:77:00.0")),)), NOBODY, TOPOLOGY) == {}
