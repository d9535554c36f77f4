"""The tree: which port or bridge a lease is taken on, what it covers, and what is one device."""

from __future__ import annotations

import msgspec
import pytest

from shared.pcie import Address, Capabilities, Function, Identity, Topology, same_device
from shared.pcie import registers as r

A = Address.parse
KINDS = r.DeviceType
ROOT, BRIDGE, PCI_0, PCI_1 = A("00:01.0"), A("01:00.0"), A("02:00.0"), A("02:03.0")
UPPER, UPSTREAM, DOWNSTREAM, CARD = A("00:02.0"), A("03:00.0"), A("04:00.0"), A("05:00.0")
INTEGRATED, COLLECTOR = A("00:0c.0"), A("00:0b.0")
SECOND, FORGOTTEN = A("00:0c.1"), A("00:0d.0")  # on the same device; on one that no collector is told of


def function(address: Address, kind: KINDS, parent: Address | None = None, **caps: int) -> Function:
    return Function(
        address=address,
        kind=kind,
        identity=Identity(vendor=1, device=2, class_code=3, revision=4, subsystem=5),
        capabilities=Capabilities(**caps),
        parent=parent,
    )


TREE = Topology(
    (
        function(ROOT, KINDS.ROOT_PORT),
        function(UPPER, KINDS.ROOT_PORT),
        function(COLLECTOR, KINDS.ROOT_COMPLEX_EVENT_COLLECTOR),
        function(INTEGRATED, KINDS.ROOT_COMPLEX_ENDPOINT),
        function(BRIDGE, KINDS.PCIE_TO_PCI_BRIDGE, ROOT),
        function(PCI_0, KINDS.LEGACY_ENDPOINT, BRIDGE),
        function(PCI_1, KINDS.LEGACY_ENDPOINT, BRIDGE),
        function(UPSTREAM, KINDS.UPSTREAM_PORT, UPPER),
        function(DOWNSTREAM, KINDS.DOWNSTREAM_PORT, UPSTREAM),
        function(CARD, KINDS.ENDPOINT, DOWNSTREAM),
    )
)


@pytest.mark.parametrize(
    ("asked", "port"),
    [
        (ROOT, ROOT),
        (BRIDGE, ROOT),
        (PCI_0, BRIDGE),
        (PCI_1, BRIDGE),
        (UPSTREAM, UPPER),
        (DOWNSTREAM, DOWNSTREAM),
        (CARD, DOWNSTREAM),
        (INTEGRATED, None),
        (COLLECTOR, None),
        (A("0f:00.0"), None),
    ],
    ids=str,
)
def test_what_a_lease_is_taken_on(asked: Address, port: Address | None) -> None:
    """DESIGN 4, Domains."""
    found = TREE.lease_port(asked)
    assert (None if found is None else found.address) == port


@pytest.mark.parametrize(
    ("sender", "receiver"),
    [
        (ROOT, ROOT),
        (PCI_1, ROOT),
        (CARD, UPPER),
        (COLLECTOR, COLLECTOR),
        (INTEGRATED, COLLECTOR),
        (SECOND, COLLECTOR),
        (FORGOTTEN, None),
        (A("0f:00.0"), None),
    ],
    ids=str,
)
def test_who_latches_an_error_message_whatever_function_of_its_device_sent_it(
    sender: Address, receiver: Address | None
) -> None:
    collector = msgspec.structs.replace(TREE.get(COLLECTOR), associated=(INTEGRATED,))
    integrated = (function(address, KINDS.ROOT_COMPLEX_ENDPOINT) for address in (SECOND, FORGOTTEN))
    tree = Topology((*(one for one in TREE if one.address != COLLECTOR), collector, *integrated))
    found = tree.receiver(sender)
    assert (None if found is None else found.address) == receiver


def test_the_port_above_a_conventional_device_is_the_one_whose_link_leads_there() -> None:
    port = TREE.port_above(PCI_0)
    assert port is not None
    assert port.address == ROOT


def test_a_lease_on_a_conventional_bridge_covers_its_whole_secondary_bus_and_no_slot() -> None:
    assert [one.address for one in TREE.domain(BRIDGE)] == [BRIDGE, PCI_0, PCI_1]
    assert TREE.slots(BRIDGE) == ()


def virtual(address: str, physical: Function) -> Function:
    one = function(A(address), KINDS.ENDPOINT, physical.parent)
    return msgspec.structs.replace(one, physical=physical.address)


PLAIN = function(CARD, KINDS.ENDPOINT, DOWNSTREAM)
SIBLING = function(A("05:00.1"), KINDS.ENDPOINT, DOWNSTREAM)
ARI = function(CARD, KINDS.ENDPOINT, DOWNSTREAM, ari=0x150)
ARI_8 = function(A("05:01.0"), KINDS.ENDPOINT, DOWNSTREAM, ari=0x150)
PHYSICAL = function(CARD, KINDS.ENDPOINT, DOWNSTREAM, sriov=0x160)
INTEGRATED_PHYSICAL = function(INTEGRATED, KINDS.ROOT_COMPLEX_ENDPOINT, sriov=0x160)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        pytest.param(PLAIN, SIBLING, True, id="functions-of-one-number"),
        pytest.param(TREE.get(PCI_0), TREE.get(PCI_1), False, id="two-on-a-conventional-bus"),
        pytest.param(ARI, ARI_8, True, id="ari"),
        pytest.param(PHYSICAL, virtual("05:02.0", PHYSICAL), True, id="virtual"),
        pytest.param(virtual("05:01.7", PHYSICAL), virtual("06:02.0", PHYSICAL), True, id="virtual-on-a-further-bus"),
        pytest.param(ARI, TREE.get(DOWNSTREAM), False, id="the-port-above"),
        pytest.param(INTEGRATED_PHYSICAL, TREE.get(COLLECTOR), False, id="on-a-root-bus"),
        pytest.param(INTEGRATED_PHYSICAL, virtual("00:0d.1", INTEGRATED_PHYSICAL), True, id="virtual-on-a-root-bus"),
        pytest.param(
            virtual("00:0d.1", INTEGRATED_PHYSICAL), virtual("00:0e.1", INTEGRATED_PHYSICAL), True, id="its-siblings"
        ),
        pytest.param(virtual("00:0d.1", INTEGRATED_PHYSICAL), TREE.get(ROOT), False, id="and-no-stranger"),
    ],
)
def test_what_is_one_device(one: Function, other: Function, same: bool) -> None:
    assert same_device(one, other) is same
    assert same_device(other, one) is same


def test_p9_no_register_that_tells_of_presence_can_be_mistaken_for_nobody_or_not_yet() -> None:
    """Class and revision of a network card of revision 1 would read as RRS in their lower half."""
    assert PHYSICAL.presence is r.VENDOR_ID
    presence = virtual("05:02.0", PHYSICAL).presence
    assert presence is r.COMMAND
