"""What a look reads as evidence: of the port itself, and of every bridge above it, as far as it answers."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from services.hotplug._reading import Place, Reading, places, seen
from shared.pcie import NO_ANSWER, Address, Value
from shared.pcie import registers as r
from tests.port_bench import DOWN_0, SWITCH_ROOT, TOPOLOGY, UPSTREAM

_FATAL = {r.UNCORRECTABLE_STATUS: r.Uncorrectable.MALFORMED_TLP, r.UNCORRECTABLE_SEVERITY: 0xFFFF_FFFF}


def reading(held: Mapping[Place, Value]) -> Reading:
    """Read the first slot below the switch: zero wherever nothing else is said."""
    port, above = TOPOLOGY.get(DOWN_0), TOPOLOGY.ancestors(DOWN_0)
    values = [held.get((one.address, register), 0) for one, register, _ in places(port, above)]
    return seen(port, above, values)


@pytest.mark.parametrize("at", [DOWN_0, SWITCH_ROOT])
@pytest.mark.parametrize(
    ("register", "bit"),
    [
        (r.DPC_STATUS, r.DpcStatus.TRIGGER),
        (r.LINK_CONTROL, r.LinkControl.LINK_DISABLE),
        (r.BRIDGE_CONTROL, r.BridgeControl.SECONDARY_BUS_RESET),
    ],
)
def test_p3_what_holds_the_link_down_is_seen_here_and_above(at: Address, register: r.Register, bit: int) -> None:
    assert str(at) in reading({(at, register): int(bit)}).contained[0]


@pytest.mark.parametrize("at", [DOWN_0, UPSTREAM, SWITCH_ROOT])
def test_p3_a_fatal_error_is_pending_here_and_above(at: Address) -> None:
    held: dict[Place, Value] = {(at, register): int(value) for register, value in _FATAL.items()}
    assert str(at) in reading(held).fatal[0]
    assert not reading({**held, (at, r.UNCORRECTABLE_MASK): int(r.Uncorrectable.MALFORMED_TLP)}).fatal
    assert not reading({**held, (at, r.UNCORRECTABLE_SEVERITY): 0}).fatal


def test_p3_an_err_fatal_that_nobody_has_read_is_pending_although_its_sender_is_silent() -> None:
    assert reading({(SWITCH_ROOT, r.ROOT_ERROR_STATUS): int(r.RootErrorStatus.FATAL_RECEIVED)}).fatal


def test_scenario_18_surprise_down_alone_defers_nothing() -> None:
    held: dict[Place, Value] = {
        (DOWN_0, r.UNCORRECTABLE_STATUS): int(r.Uncorrectable.SURPRISE_DOWN),
        (DOWN_0, r.UNCORRECTABLE_SEVERITY): int(r.Uncorrectable.SURPRISE_DOWN),
    }
    assert not reading(held).fatal


@pytest.mark.parametrize(
    ("at", "register"), [(DOWN_0, r.SLOT_STATUS), (UPSTREAM, r.BRIDGE_CONTROL), (SWITCH_ROOT, r.BRIDGE_CONTROL)]
)
def test_p9_a_port_that_cannot_be_read_here_or_above_is_silent_and_shows_no_evidence(
    at: Address, register: r.Register
) -> None:
    assert not reading({}).silent
    assert reading({(at, register): NO_ANSWER}).silent
    blind = {(one.address, register): NO_ANSWER for one in TOPOLOGY for register in (r.DPC_STATUS, r.LINK_CONTROL)}
    assert not reading(dict(blind)).contained
