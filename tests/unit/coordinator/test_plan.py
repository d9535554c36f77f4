from __future__ import annotations

import msgspec

from services.coordinator._plan import PLANS, Chosen, Unable, choose
from shared.pcie import Address, Capabilities, Function, Identity, Topology
from shared.pcie.registers import DeviceType, SlotCapabilities
from shared.protocol import Reason
from shared.protocol.fabric import Reach
from shared.protocol.requests import Cause, Channel, ResetMethod

PORT, CARD, SECOND, STRANGER = (Address.parse(text) for text in ("00:01.0", "01:00.0", "01:00.1", "01:01.0"))
IDENTITY = Identity(vendor=0x8086, device=1, class_code=0, revision=0, subsystem=0)


def function(address: Address, *, flr: bool = False) -> Function:
    return Function(address, DeviceType.ENDPOINT, IDENTITY, Capabilities(express=0x40), parent=PORT, flr=flr)


def topology(*below: Function, hotplug: bool = True) -> Topology:
    slot = SlotCapabilities.HOTPLUG_CAPABLE if hotplug else None
    port = Function(PORT, DeviceType.ROOT_PORT, IDENTITY, Capabilities(), secondary=1, subordinate=1, slot=slot)
    return Topology(functions=(port, *below))


def test_every_cause_of_a_recovery_has_a_plan() -> None:
    assert set(PLANS) == {Cause.DPC, Cause.AER_FATAL, Cause.AER_NONFATAL}
    assert PLANS[Cause.AER_NONFATAL].reach is Reach.CALLBACKS
    assert PLANS[Cause.AER_NONFATAL].channel is Channel.NORMAL
    assert PLANS[Cause.DPC].reach is PLANS[Cause.AER_FATAL].reach is Reach.RESET


def test_flr_comes_before_slot_and_bus_as_in_the_kernel() -> None:
    card = function(CARD, flr=True)
    chosen = choose(card, topology(card, function(SECOND)), None)
    assert chosen == Chosen(ResetMethod.FLR, (card,))
    assert chosen.reach is Reach.NOTHING


def test_without_flr_the_slot_is_reset_and_without_a_slot_the_bus() -> None:
    card = function(CARD)
    assert isinstance(slot := choose(card, topology(card), None), Chosen)
    assert slot.method is ResetMethod.SLOT
    assert slot.reach is Reach.RESET
    assert isinstance(bus := choose(card, topology(card, hotplug=False), None), Chosen)
    assert bus.method is ResetMethod.BUS


def test_a_bus_reset_hits_every_function_of_the_device() -> None:
    card, second = function(CARD), function(SECOND)
    chosen = choose(card, topology(card, second), ResetMethod.BUS)
    assert isinstance(chosen, Chosen)
    assert chosen.hits == (card, second)


def test_a_reset_that_would_reach_beyond_the_device_is_refused_and_says_whom() -> None:
    card = function(CARD)
    refused = choose(card, topology(card, function(STRANGER)), None)
    assert isinstance(refused, Unable)
    assert refused.reason is Reason.POLICY
    assert str(STRANGER) in refused.message


def test_a_named_method_is_taken_or_refused_never_replaced() -> None:
    card = function(CARD)
    refused = choose(card, topology(card), ResetMethod.FLR)
    assert isinstance(refused, Unable)
    assert refused.reason is Reason.UNSUPPORTED


def test_bridges_are_not_reset_for_users() -> None:
    refused = choose(topology().get(PORT), topology(), None)
    assert isinstance(refused, Unable)
    assert refused.reason is Reason.UNSUPPORTED


def test_what_has_no_port_above_has_flr_only() -> None:
    alone = msgspec.structs.replace(function(CARD), parent=None, kind=DeviceType.ROOT_COMPLEX_ENDPOINT)
    assert isinstance(choose(alone, Topology(functions=(alone,)), None), Unable)
    able = msgspec.structs.replace(alone, flr=True)
    assert isinstance(choose(able, Topology(functions=(able,)), None), Chosen)
