"""Facts against what a scenario expects and forbids, and against the promises that hold for any run."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest

from services.console.scenario._file import parse
from services.console.scenario._judge import expectations, pending
from services.console.scenario._scenario import is_part
from services.console.scenario.promises import (
    firmware_is_left_alone,
    p1_mask_before_reset,
    p2_closed_in_order,
    p6_one_owner,
)
from shared.pcie import Address, Capabilities, Function, Identity, Topology
from shared.pcie import registers as reg
from shared.protocol.facts import Fact, What
from tests.unit.console.scenario.test_scenario_file import FILE, HEAD

START: Final = datetime(2026, 1, 1, tzinfo=UTC)
PORT: Final = Address.parse("00:02.0")
OTHER: Final = Address.parse("00:03.0")
EXPRESS, AER, DPC = 0x70, 0x100, 0x150
TOPOLOGY: Final = Topology(
    tuple(
        Function(
            address=address,
            kind=reg.DeviceType.ROOT_PORT,
            identity=Identity(vendor=0x8086, device=1, class_code=0x060400, revision=0, subsystem=0, serial=None),
            capabilities=Capabilities(express=EXPRESS, aer=AER, dpc=DPC),
            slot=reg.SlotCapabilities.HOTPLUG_CAPABLE,
        )
        for address in (PORT, OTHER)
    )
)


def fact(what: What, at_s: float = 0.0, *, port: Address = PORT, lease: str | None = None, **more: Any) -> Fact:
    cause = more.pop("cause", None)
    at = START + timedelta(seconds=at_s)
    return Fact(what=what, host="lab", port=port, service="test", seq=1, at=at, lease=lease, cause=cause, data=more)


def failures(tables: str, *facts: Fact) -> list[str]:
    return expectations(parse(HEAD + tables, FILE), facts)


REMOVED: Final = '[[expect]]\nwhat = "device.removed"\n'


@pytest.mark.parametrize(
    ("wanted", "told", "part"),
    [
        ({"a": 1}, {"a": 1, "b": 2}, True),
        ({"a": {"b": 1}}, {"a": {"b": 1, "c": 2}}, True),
        ({"a": [1]}, {"a": (2, 1)}, True),
        ({"a": [3]}, {"a": (2, 1)}, False),
        ({"a": {"contains": "ab"}}, {"a": "cabd"}, True),
        ({"a": {"contains": "x"}}, {"a": "cabd"}, False),
        ({"a": None}, {}, False),
        ({"a": 1}, {"a": True}, False),
    ],
)
def test_data_is_compared_in_parts(wanted: dict[str, Any], told: dict[str, Any], part: bool) -> None:
    assert is_part(wanted, told) is part


def test_a_fact_may_be_missing_told_too_often_or_too_early() -> None:
    assert not failures(REMOVED, fact(What.DEVICE_REMOVED))
    assert "told 0 times" in failures(REMOVED)[0]
    assert "exactly 1, told 2 times" in failures(REMOVED + "exactly = 1\n", *[fact(What.DEVICE_REMOVED)] * 2)[0]
    ordered = f'{REMOVED}after = "closed"\n[[expect]]\nname = "closed"\nwhat = "lease.closed"\n'
    assert not failures(ordered, fact(What.LEASE_CLOSED, 1), fact(What.DEVICE_REMOVED, 2))
    assert "told before it" in failures(ordered, fact(What.DEVICE_REMOVED, 1), fact(What.LEASE_CLOSED, 2))[0]


def test_a_fact_may_be_forbidden_at_all_or_on_one_side_of_another() -> None:
    never = '[[expect]]\nname = "closed"\nwhat = "lease.closed"\n[[never]]\nwhat = "device.removed"\n'
    early, late = (fact(What.DEVICE_REMOVED, at) for at in (1, 3))
    closed = fact(What.LEASE_CLOSED, 2)
    assert failures(never, early, closed)
    assert failures(f'{never}before = "closed"\n', early, closed)
    assert not failures(f'{never}before = "closed"\n', closed, late)
    assert failures(f'{never}after = "closed"\n', closed, late)
    assert not failures(f'{never}after = "closed"\n', early, closed)


def test_what_may_still_come_is_pending() -> None:
    scenario = parse(HEAD + REMOVED + "exactly = 2\n", FILE)
    assert pending(scenario, [fact(What.DEVICE_REMOVED)])
    assert not pending(scenario, [fact(What.DEVICE_REMOVED)] * 2)


# --- Promises ---


def opened(lease: str, port: Address = PORT, **more: Any) -> Fact:
    return fact(What.LEASE_OPENED, port=port, lease=lease, rank="recovery", **more)


def masked(lease: str, enables: int = 0x1008) -> Fact:
    return fact(What.LEASE_MASKED, lease=lease, slots=[{"port": str(PORT), "saved_enables": enables, "reached": True}])


def wrote(lease: str, offset: int, value: int, port: Address = PORT) -> Fact:
    operation = {"verb": "write", "function": str(port), "offset": offset, "value": value, "width": 2, "mask": 0}
    return fact(What.LEASE_EXECUTED, port=port, lease=lease, n=1, operations=[operation], masked=None)


def unmasked(lease: str, enables: int, at_s: float = 0.0, latched: int = 0) -> Fact:
    return fact(What.LEASE_UNMASKED, at_s, lease=lease, verdict="restore", latched=latched, enables=enables)


RESET: Final = (reg.BRIDGE_CONTROL.offset, int(reg.BridgeControl.SECONDARY_BUS_RESET))
RELEASE: Final = (DPC + reg.DPC_STATUS.offset, int(reg.DpcStatus.TRIGGER))


@pytest.mark.parametrize("bit", [RESET, RELEASE])
def test_p1_is_broken_by_a_reset_bit_without_lease_mask_or_domain(bit: tuple[int, int]) -> None:
    assert not p1_mask_before_reset([opened("a"), masked("a"), wrote("a", *bit)], TOPOLOGY)
    assert "not masked" in p1_mask_before_reset([opened("a"), wrote("a", *bit)], TOPOLOGY)[0]
    assert "without a live lease" in p1_mask_before_reset([wrote("a", *bit)], TOPOLOGY)[0]
    assert "outside" in p1_mask_before_reset([opened("a"), masked("a"), wrote("a", *bit, OTHER)], TOPOLOGY)[0]


def test_p2_is_broken_by_other_enables_a_latch_or_an_early_unmask() -> None:
    closed = fact(What.LEASE_CLOSED, 9, lease="a", outcomes={})
    assert not p2_closed_in_order([masked("a"), unmasked("a", 0x1008, 1), closed], TOPOLOGY)
    assert "found were" in p2_closed_in_order([masked("a"), unmasked("a", 0, 1), closed], TOPOLOGY)[0]
    assert "had masked" in p2_closed_in_order([masked("a"), closed], TOPOLOGY)[0]
    assert "over a latch" in p2_closed_in_order([unmasked("a", 0x1008, latched=8)], TOPOLOGY)[0]
    resume = fact(What.RECOVERY_STEP, 2, lease="a", step="resume")
    assert "before its drivers resumed" in p2_closed_in_order([unmasked("a", 0, 1), resume], TOPOLOGY)[0]
    entered = fact(What.QUARANTINE_ENTERED, 1, lease="a", why="", held_by="dpc")
    assert not p2_closed_in_order([masked("a"), entered, closed], TOPOLOGY)


def test_p6_is_broken_by_two_recoveries_that_meet() -> None:
    assert "P6" in p6_one_owner([opened("a"), opened("b")], TOPOLOGY)[0]
    assert not p6_one_owner([opened("a"), opened("b", OTHER)], TOPOLOGY)
    assert not p6_one_owner([opened("a"), opened("b"), fact(What.LEASE_ABSORBED, lease="a", heir="b")], TOPOLOGY)
    assert not p6_one_owner([opened("a"), fact(What.LEASE_CLOSED, lease="a"), opened("b")], TOPOLOGY)


def test_the_firmware_is_left_alone_outside_of_its_events() -> None:
    ours = Topology(TOPOLOGY.functions, firmware_first=True)
    status = AER + reg.UNCORRECTABLE_STATUS.offset
    assert (
        "is the firmware's" in firmware_is_left_alone([opened("a", cause="aer_fatal"), wrote("a", status, 1)], ours)[0]
    )
    assert not firmware_is_left_alone([opened("a", cause="edr"), wrote("a", status, 1)], ours)
    assert not firmware_is_left_alone([opened("a", cause="dpc"), wrote("a", *RESET)], ours)
    assert not firmware_is_left_alone([wrote("a", status, 1)], TOPOLOGY)
    acknowledged = fact(What.LEASE_ACKNOWLEDGED, verb="write", function=str(PORT), offset=status, value=1)
    assert firmware_is_left_alone([acknowledged], ours)
