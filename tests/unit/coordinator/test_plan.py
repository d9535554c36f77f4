"""Which method resets a function, whom it hits, and why not: the kernel's order, and P1's mask by reach."""

from __future__ import annotations

import msgspec
import pytest

from services.coordinator._plan import ERRORS, PLANS, Chosen, Unable, choose
from shared.pcie import Address, Capabilities, Function, Identity, Topology
from shared.pcie.registers import DeviceType, SlotCapabilities
from shared.protocol import Reason
from shared.protocol.fabric import Reach
from shared.protocol.requests import Cause, Channel, ResetMethod

PORT, CARD, SECOND, STRANGER = (Address.parse(text) for text in ("00:01.0", "01:00.0", "01:00.1", "01:01.0"))
IDENTITY = Identity(vendor=0x8086, device=1, class_code=0, revision=0, subsystem=0)
FLR, AF_FLR, PM = ResetMethod.FLR, ResetMethod.AF_FLR, ResetMethod.PM


def function(address: Address, **fields: object) -> Function:
    made = Function(address, DeviceType.ENDPOINT, IDENTITY, Capabilities(express=0x40), parent=PORT)
    return msgspec.structs.replace(made, **fields)


def topology(*below: Function, hotplug: bool = True) -> Topology:
    slot = SlotCapabilities.HOTPLUG_CAPABLE if hotplug else None
    port = Function(PORT, DeviceType.ROOT_PORT, IDENTITY, Capabilities(), secondary=1, subordinate=1, slot=slot)
    return Topology(functions=(port, *below))


def chosen(
    card: Function, around: Topology, asked: ResetMethod | None = None, *able: ResetMethod, domain: bool = False
) -> Chosen:
    found = choose(card, around, asked, frozenset(able), domain=domain)
    assert isinstance(found, Chosen), found
    return found


def refused(
    card: Function, around: Topology, asked: ResetMethod | None = None, *able: ResetMethod, domain: bool = False
) -> Unable:
    found = choose(card, around, asked, frozenset(able), domain=domain)
    assert isinstance(found, Unable), found
    return found


def test_every_cause_of_a_recovery_has_a_plan() -> None:
    assert set(ERRORS) == {Cause.DPC, Cause.EDR, Cause.AER_FATAL, Cause.AER_NONFATAL}
    assert set(PLANS) == {*ERRORS, Cause.LIFT}
    assert PLANS[Cause.AER_NONFATAL].reach is Reach.CALLBACKS
    assert PLANS[Cause.AER_NONFATAL].channel is Channel.NORMAL
    assert PLANS[Cause.DPC].reach is PLANS[Cause.AER_FATAL].reach is PLANS[Cause.EDR].reach is Reach.RESET


@pytest.mark.parametrize(
    ("able", "method"),
    [
        ([FLR, AF_FLR, PM], FLR),
        ([AF_FLR, PM], AF_FLR),
        ([PM], PM),
        ([], ResetMethod.SLOT),
    ],
    ids=["flr", "af_flr", "pm", "slot"],
)
def test_the_first_method_that_works_is_taken_in_the_kernels_order(
    able: list[ResetMethod], method: ResetMethod
) -> None:
    card = function(CARD)
    assert chosen(card, topology(card), None, *able).method is method


@pytest.mark.parametrize("method", [FLR, AF_FLR, PM])
def test_p1_what_is_reset_within_the_function_masks_nothing(method: ResetMethod) -> None:
    card = function(CARD)
    one = chosen(card, topology(card, function(SECOND)), method, method)
    assert (one.reach, one.at, one.hits) == (Reach.NOTHING, CARD, (card,))
    assert one.planned(CARD, PORT, topology(card)).masked == ()


def test_without_flr_the_slot_is_reset_and_without_a_slot_the_bus() -> None:
    card = function(CARD)
    slot = chosen(card, topology(card))
    assert (slot.method, slot.reach, slot.at) == (ResetMethod.SLOT, Reach.RESET, PORT)
    assert slot.planned(CARD, PORT, topology(card)).masked == (PORT,)
    bus = chosen(card, topology(card, hotplug=False))
    assert bus.method is ResetMethod.BUS
    assert bus.planned(CARD, PORT, topology(card, hotplug=False)).masked == ()


def test_a_bus_reset_hits_every_function_of_the_device() -> None:
    card, second = function(CARD), function(SECOND)
    one = chosen(card, topology(card, second), ResetMethod.BUS)
    assert (one.hits, one.beyond) == ((card, second), ())


def test_a_reset_that_would_reach_beyond_the_device_is_refused_and_says_whom() -> None:
    card = function(CARD)
    unable = refused(card, topology(card, function(STRANGER)))
    assert unable.reason is Reason.POLICY
    assert str(STRANGER) in unable.message


def test_with_the_whole_domain_asked_for_it_is_done_and_says_whom_it_hits_beyond() -> None:
    card, stranger = function(CARD), function(STRANGER)
    one = chosen(card, topology(card, stranger), None, domain=True)
    assert (one.hits, one.beyond) == ((card, stranger), (stranger,))
    assert one.planned(CARD, PORT, topology(card, stranger)).beyond == (STRANGER,)


def test_a_reset_of_a_physical_function_hits_its_virtual_ones() -> None:
    card = function(CARD, flr=True, capabilities=Capabilities(express=0x40, sriov=0x200))
    virtual = function(STRANGER, physical=CARD)
    assert chosen(card, topology(card, virtual), FLR, FLR).hits == (card, virtual)
    assert chosen(virtual, topology(card, virtual), FLR, FLR).hits == (virtual,)
    assert chosen(card, topology(card, virtual), ResetMethod.BUS).beyond == ()


def test_behind_a_conventional_bridge_its_whole_bus_is_reset_if_that_is_asked_for() -> None:
    bridge = function(CARD, kind=DeviceType.PCIE_TO_PCI_BRIDGE, secondary=2, subordinate=2)
    cards = [
        function(Address.parse(text), parent=CARD, kind=DeviceType.LEGACY_ENDPOINT, capabilities=Capabilities())
        for text in ("02:00.0", "02:04.0")
    ]
    around = topology(bridge, *cards)
    assert refused(cards[0], around).reason is Reason.POLICY
    one = chosen(cards[0], around, None, domain=True)
    assert (one.method, one.at, one.hits) == (ResetMethod.BUS, CARD, tuple(cards))


def test_a_named_method_is_taken_or_refused_never_replaced() -> None:
    card = function(CARD)
    for method in (ResetMethod.DEVICE_SPECIFIC, FLR, AF_FLR, PM):
        assert refused(card, topology(card), method).reason is Reason.UNSUPPORTED


def test_bridges_are_not_reset_for_users_and_the_refusal_says_what_to_name() -> None:
    unable = refused(topology().get(PORT), topology(), None, FLR, domain=True)
    assert unable.reason is Reason.UNSUPPORTED
    assert "behind it" in unable.message


def test_the_host_bridge_is_never_reset() -> None:
    host = function(
        CARD,
        parent=None,
        kind=DeviceType.ROOT_COMPLEX_ENDPOINT,
        identity=msgspec.structs.replace(IDENTITY, class_code=0x060000),
    )
    assert "host bridge" in refused(host, Topology(functions=(host,)), None, FLR).message


def test_what_has_no_port_above_has_flr_only() -> None:
    alone = function(CARD, parent=None, kind=DeviceType.ROOT_COMPLEX_ENDPOINT)
    around = Topology(functions=(alone,))
    assert refused(alone, around, None, PM).reason is Reason.UNSUPPORTED
    assert chosen(alone, around, None, FLR, PM).method is FLR
