"""`lease`, `quarantine`, `reset --dry-run`: what is told of what the services answer. Pure parts, without a bus."""

from __future__ import annotations

import pytest

from services.console._exit import ExitCode, Failure
from services.console._lease import described, named, open_lease
from services.console._quarantine import quarantined
from services.console._reset import Hit, shown
from services.console._status import describe_function, masked, quarantine_of
from shared.pcie import Address, Capabilities, Function, Identity, IdentityField, Topology
from shared.pcie.registers import DeviceType, SlotCapabilities
from shared.protocol import LeaseRef
from shared.protocol.fabric import (
    Debts,
    FunctionOutcome,
    Lease,
    LeaseList,
    Quarantine,
    Rank,
    Reach,
    Result,
    RetiredLease,
    Role,
    SavedFunction,
    SavedLink,
    SavedReporting,
    SavedSlot,
)
from shared.protocol.records import Device
from shared.protocol.requests import Planned, ResetMethod

PORT = Address.parse("0000:00:01.0")
NIC = Address.parse("0000:01:00.0")
OTHER = Address.parse("0000:01:01.0")
SERIAL = Identity(0x15B3, 0x1017, 0x020000, 0, 0, 0x98039B03001F2C3A)
IDENTITY = Identity(0x8086, 0x6F04, 0x060400, 1, 0)
HOTPLUG = SlotCapabilities.HOTPLUG_CAPABLE
EXPRESS = Capabilities(express=0x40)
ROOT = Function(
    PORT, DeviceType.ROOT_PORT, IDENTITY, EXPRESS, secondary=1, subordinate=1, slot=HOTPLUG, slot_number=4,
    link_active_reporting=True,
)  # fmt: skip
TOPOLOGY = Topology(
    (
        ROOT,
        Function(NIC, DeviceType.ENDPOINT, SERIAL, EXPRESS, parent=PORT),
        Function(OTHER, DeviceType.ENDPOINT, SERIAL, EXPRESS, parent=PORT),
    )
)
LEASE = Lease(
    id="r-0000-00-01-0-abc-7", token=0, port=PORT, rank=Rank.RECOVERY, reach=Reach.RESET, role=Role.COORDINATOR,
    cause="aer_fatal", holder="coordinator-1:abc", allowed_s=5.0, last_n=12, silent_s=0.25, age_s=3.0,
    slots=(SavedSlot(port=PORT, enables=0x1008, surprise_down_masked=False),),
    functions=(SavedFunction(address=NIC, identity=SERIAL),),
    links=(SavedLink(port=PORT, speed=3, width=8),),
    debts=Debts(in_reset=(PORT,)),
)  # fmt: skip


def retired(name: str) -> RetiredLease:
    ref = LeaseRef(id=name, port=str(PORT), rank="recovery", cause="dpc", holder="coordinator-1:abc")
    return RetiredLease(lease=ref, outcomes=(FunctionOutcome(function=NIC, result=Result.RECOVERED, degraded=True),))


# --- lease show ---


def test_p7_everything_of_a_lease_is_told_but_its_token() -> None:
    told = dict(row for row in described(LEASE) if row[0])
    assert told["port"] == str(PORT)
    assert (told["rank"], told["reach"], told["cause"]) == ("recovery", "reset", "aer fatal")
    assert told["holder"] == "coordinator-1:abc, by coordinator"
    assert told["token"] == "struck out"  # noqa: S105 - that is what is told instead
    assert told["age"].startswith("3.0 s")
    assert told["silent"] == "0.2 s of 5 s allowed"
    assert told["saved slot"] == f"{PORT}  PDCE DLLSCE Surprise Down"
    assert str(NIC) in told["function"]
    assert told["link"] == f"{PORT}  8 GT/s x8"
    assert told["in reset"] == str(PORT)
    assert told["contained"] == "-"
    assert {"quarantined", "may differ", "silenced", "firmware"}.isdisjoint(told)


def test_what_few_leases_have_is_told_of_those() -> None:
    fields = {name: getattr(LEASE, name) for name in LEASE.__struct_fields__}
    quiet = SavedReporting(function=PORT, command=0x0100, bridge_control=0x0002, device_control=0x0006)
    accept = (IdentityField.REVISION, IdentityField.SERIAL)
    rare = {"quarantined": (OTHER,), "accept": accept, "quiet": (quiet,), "firmware_owned": True}
    rows = tuple(described(Lease(**fields | rare)))
    told = dict(rows)
    assert told["quarantined"] == str(OTHER)
    assert told["may differ"] == "revision"
    assert ("", "serial") in rows
    assert (
        told["silenced"]
        == f"{PORT}  SERR# of Command, SERR# of Bridge Control, Non-Fatal Error Reporting, Fatal Error Reporting"
    )
    assert "AER and DPC" in told["firmware"]


@pytest.mark.parametrize(
    ("text", "found"),
    [("abc-7", LEASE.id), (LEASE.id, LEASE.id), ("abc-6", "r-0000-00-01-0-abc-6"), ("r-0000-00-01-0-abc-7", LEASE.id)],
)
def test_a_lease_is_named_by_a_part_of_its_id_open_or_ended(text: str, found: str) -> None:
    listed = LeaseList(leases=(LEASE,), retired=(retired("r-0000-00-01-0-abc-6"), retired("r-0000-00-02-0-abc-5")))
    one = named(listed, text, "lab")
    assert (one.id if isinstance(one, Lease) else one.lease.id) == found


@pytest.mark.parametrize(("text", "code"), [("abc", ExitCode.USAGE), ("zzz", ExitCode.ABSENT), ("", ExitCode.USAGE)])
def test_a_part_of_several_or_of_none_is_refused(text: str, code: ExitCode) -> None:
    with pytest.raises(Failure) as failed:
        named(LeaseList(leases=(LEASE,), retired=(retired("r-0000-00-01-0-abc-6"),)), text, "lab")
    assert failed.value.code is code


def test_only_an_open_lease_can_be_broken_and_ended_ones_are_not_in_the_way() -> None:
    listed = LeaseList(leases=(LEASE,), retired=(retired("r-0000-00-01-0-abc-6"),))
    assert open_lease(listed, "abc", "lab") == LEASE
    with pytest.raises(Failure, match="has ended; `holdfast lease show abc-6` tells how") as failed:
        open_lease(listed, "abc-6", "lab")
    assert failed.value.code is ExitCode.ABSENT


@pytest.mark.parametrize("text", ["", "  "], ids=["empty", "blank"])
def test_a_variable_that_is_not_set_breaks_no_lease(text: str) -> None:
    with pytest.raises(Failure) as failed:
        open_lease(LeaseList(leases=(LEASE,)), text, "lab")
    assert failed.value.code is ExitCode.USAGE


# --- quarantine ---


def test_a_port_in_quarantine_is_named_by_itself_or_by_what_is_or_was_behind_it() -> None:
    gone = Address.parse("0000:01:02.0")
    one = Quarantine(port=PORT, lease="r-1", why="unstable", functions=(SavedFunction(address=gone, identity=SERIAL),))
    assert quarantined((one,), PORT, TOPOLOGY) == PORT
    assert quarantined((one,), NIC, TOPOLOGY) == PORT
    assert quarantined((one,), gone, TOPOLOGY) == PORT
    assert quarantined((one,), Address.parse("0000:7f:00.0"), TOPOLOGY) is None
    assert quarantined((), PORT, TOPOLOGY) is None
    assert quarantine_of(NIC, TOPOLOGY, (one,)) == one
    assert quarantine_of(PORT, TOPOLOGY, ()) is None


# --- reset --dry-run ---


def test_a_dry_run_names_every_function_its_driver_and_what_is_beyond_the_device() -> None:
    planned = Planned(
        function=NIC, method=ResetMethod.BUS, port=PORT, hits=(NIC, OTHER), beyond=(OTHER,), masked=(PORT,)
    )
    bound = Device(function=NIC, port=PORT, identity=SERIAL, generation=1, present=True, driver="mlx5_core")
    plan = shown(NIC, planned, "it would reach beyond", TOPOLOGY, {NIC: bound})
    assert plan.hits == (Hit(str(NIC), "mlx5_core", str(SERIAL), False), Hit(str(OTHER), None, str(SERIAL), True))
    assert (plan.method, plan.port, plan.masked) == (ResetMethod.BUS, str(PORT), (str(PORT),))
    assert plan.refused == "it would reach beyond"
    assert shown(NIC, None, "no method", TOPOLOGY, {}).hits == ()


# --- status, topology ---


def test_the_kinds_of_functions_have_names() -> None:
    vf = Function(NIC, DeviceType.ENDPOINT, SERIAL, EXPRESS, parent=PORT, physical=OTHER)
    collector = Function(PORT, DeviceType.ROOT_COMPLEX_EVENT_COLLECTOR, IDENTITY, EXPRESS, associated=(NIC, OTHER))
    bridge = Function(PORT, DeviceType.PCIE_TO_PCI_BRIDGE, IDENTITY, EXPRESS)
    conventional = Function(NIC, DeviceType.LEGACY_ENDPOINT, IDENTITY, Capabilities())
    assert f"{NIC}  virtual function of {OTHER}" in describe_function(vf)
    assert f"event collector  for {NIC} {OTHER}" in describe_function(collector)
    assert "pci bridge" in describe_function(bridge)
    assert "conventional device" in describe_function(conventional)
    assert "root port  Slot(4)" in describe_function(ROOT)


def test_p2_a_slot_is_masked_when_an_enable_that_it_can_have_is_off() -> None:
    fields = {name: getattr(ROOT, name) for name in ROOT.__struct_fields__}
    without = Function(**fields | {"link_active_reporting": False})
    assert [masked(ROOT, control) for control in (0x1008, 0x0008, 0x1000, 0)] == [False, True, True, True]
    assert [masked(without, control) for control in (0x1008, 0x0008, 0x1000, 0)] == [False, False, True, True]
    assert masked(ROOT, None) is None
    assert masked(Function(NIC, DeviceType.ENDPOINT, SERIAL, EXPRESS), 0) is None


def test_a_lease_must_be_named() -> None:
    with pytest.raises(Failure, match="name the lease, or a part of its id") as failed:
        named(LeaseList(leases=()), " ", "lab")
    assert failed.value.code is ExitCode.USAGE


def test_a_host_bridge_is_named_what_it_is() -> None:
    bridge = Function(PORT, DeviceType.ROOT_COMPLEX_ENDPOINT, Identity(0x8086, 0x6F00, 0x060000, 0, 0), EXPRESS)
    assert describe_function(bridge).startswith(f"{PORT}  host bridge  ")
