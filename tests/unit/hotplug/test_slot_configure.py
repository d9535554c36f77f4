"""Bus numbers, BARs and windows of a new card."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from services.hotplug._configure import (
    WINDOW_ALIGNMENT,
    Bar,
    Plan,
    Unconfigurable,
    Window,
    assign_buses,
    bars_of,
    plan,
    size_bars,
    switch_on,
    window_of,
)
from services.hotplug._work import first_request_s
from shared.pcie import NO_ANSWER, Address, Capabilities, Function, Identity, Topology, Value, timing
from shared.pcie import registers as r
from shared.protocol.fabric import Operation, Verb
from shared.recovery import Do, Logic

WHO = Identity(vendor=0x8086, device=1, class_code=0x010802, revision=0, subsystem=0)
SLOT = Address.parse("0000:00:01.0")


def function(
    text: str,
    kind: r.DeviceType = r.DeviceType.ENDPOINT,
    parent: str | None = None,
    buses: tuple[int, int] = (0, 0),
    **caps: int,
) -> Function:
    above = None if parent is None else Address.parse(parent)
    return Function(
        address=Address.parse(text),
        kind=kind,
        identity=WHO,
        capabilities=Capabilities(**caps),
        parent=above,
        secondary=buses[0],
        subordinate=buses[1],
    )


ROOT = function("0000:00:01.0", r.DeviceType.ROOT_PORT, None, (1, 6))
CARD = function("0000:01:00.0", parent="0000:00:01.0", express=0x40)
UPSTREAM = function("0000:01:00.0", r.DeviceType.UPSTREAM_PORT, "0000:00:01.0")


def drive(logic: Logic[Any], answer: Callable[[Operation], Value]) -> tuple[Any, list[Operation]]:
    """Run `logic`, answering each operation; return its result and all operations."""
    done: list[Operation] = []
    sent: Any = None
    while True:
        try:
            effect = logic.send(sent)
        except StopIteration as end:
            return end.value, done
        assert isinstance(effect, Do)
        done += effect.operations
        sent = tuple(answer(operation) for operation in effect.operations)


def test_sizes_are_read_from_what_all_ones_leave() -> None:
    assert bars_of((0xFFFF_C000, 0, 0xFFFF_FF01, 0, 0, 0)) == (Bar(0, 0x4000, wide=False),)
    assert bars_of((0xFFF0_000C, 0xFFFF_FFFF, 0, 0, 0, 0)) == (Bar(0, 0x10_0000, wide=True),)
    assert bars_of((0x0000_0004, 0xFFFF_FFFC, 0xFFFF_F000)) == (Bar(0, 1 << 34, wide=True), Bar(2, 0x1000, wide=False))


def test_bars_are_sized_with_memory_space_off_and_left_zero() -> None:
    def answer(operation: Operation) -> Value:
        first = operation.verb is Verb.READ and operation.offset == r.BAR[0].offset
        return 0xFFFF_C004 if first else NO_ANSWER if operation.offset == r.BAR[1].offset else 0

    found, done = drive(size_bars([CARD]), answer)
    assert found == {CARD.address: (Bar(0, 0x4000, wide=True),)}
    assert (done[0].verb, done[0].offset, done[0].value) == (Verb.MODIFY, r.COMMAND.offset, 0)
    assert [operation.value for operation in done if operation.verb is Verb.WRITE][-6:] == [0] * 6


def test_bars_are_aligned_to_their_size_and_stay_inside_the_window() -> None:
    topology = Topology((ROOT, CARD))
    bars = {CARD.address: (Bar(0, 0x1000, wide=False), Bar(1, 0x10_0000, wide=False), Bar(2, 0x4000, wide=False))}
    made = plan(SLOT, Window(0x9000_0000, 0x901F_FFFF), topology, bars)
    assert made.bars[CARD.address] == {1: 0x9000_0000, 2: 0x9010_0000, 0: 0x9010_4000}
    assert made.windows == {}


def test_a_card_that_needs_more_than_the_slot_has_is_refused_with_both_numbers() -> None:
    with pytest.raises(Unconfigurable, match=r"needs 0x200000 .* has 0x100000"):
        plan(
            SLOT, Window(0x9000_0000, 0x900F_FFFF), Topology((ROOT, CARD)), {CARD.address: (Bar(0, 0x20_0000, False),)}
        )


def test_a_disabled_window_has_no_room() -> None:
    assert window_of(0x9000, 0x900F) == Window(0x9000_0000, 0x900F_FFFF)
    with pytest.raises(Unconfigurable, match="has 0x0"):
        plan(SLOT, window_of(0xFFF0, 0), Topology((ROOT, CARD)), {CARD.address: (Bar(0, 0x1000, False),)})


def test_the_windows_of_a_switch_card_nest_and_do_not_overlap() -> None:
    down = [function(f"0000:02:0{n}.0", r.DeviceType.DOWNSTREAM_PORT, "0000:01:00.0", (3 + n, 3 + n)) for n in range(2)]
    ends = [function(f"0000:0{3 + n}:00.0", parent=f"0000:02:0{n}.0") for n in range(2)]
    topology = Topology((ROOT, UPSTREAM, *down, *ends))
    bars = {end.address: (Bar(0, 0x4000, wide=False),) for end in ends}
    made = plan(SLOT, Window(0x9000_0000, 0x90FF_FFFF), topology, bars)
    outer = made.windows[UPSTREAM.address]
    inner = [made.windows[port.address] for port in down]
    assert outer.base == inner[0].base
    assert inner[0].limit < inner[1].base
    assert inner[1].limit == outer.limit
    for port, end in zip(inner, ends, strict=True):
        assert port.base % WINDOW_ALIGNMENT == 0
        assert port.base <= made.bars[end.address][0] <= port.limit


def test_a_reseated_switch_gets_its_old_buses_and_a_new_one_shares_what_the_slot_has() -> None:
    old = Topology((ROOT, function("0000:01:00.0", r.DeviceType.UPSTREAM_PORT, "0000:00:01.0", (2, 4))))
    any_bridges, done = drive(assign_buses(ROOT, (UPSTREAM,), old), lambda operation: operation.value)
    assert any_bridges
    assert [operation.value for operation in done] == [1, 2, 4]
    _, done = drive(assign_buses(ROOT, (UPSTREAM,), Topology()), lambda operation: operation.value)
    assert [operation.value for operation in done] == [1, 2, 6]


def test_siblings_share_the_buses_that_are_left() -> None:
    numbered = function("0000:01:00.0", r.DeviceType.UPSTREAM_PORT, "0000:00:01.0", (2, 6))
    down = tuple(function(f"0000:02:0{n}.0", r.DeviceType.DOWNSTREAM_PORT, "0000:01:00.0") for n in range(2))
    _, done = drive(assign_buses(ROOT, (numbered, *down), Topology()), lambda operation: operation.value)
    ranges = [(done[n + 1].value, done[n + 2].value) for n in (0, 3)]
    assert ranges[0][0] == 3
    assert ranges[0][1] < ranges[1][0] <= ranges[1][1] == 6


def test_no_bus_left_is_said_so() -> None:
    narrow = function("0000:00:01.0", r.DeviceType.ROOT_PORT, None, (1, 1))
    with pytest.raises(Unconfigurable, match="no bus number is left"):
        drive(assign_buses(narrow, (UPSTREAM,), Topology()), lambda operation: operation.value)


def test_a_card_without_bridges_needs_no_numbers() -> None:
    any_bridges, done = drive(assign_buses(ROOT, (CARD,), Topology()), lambda operation: operation.value)
    assert not any_bridges
    assert not done


def test_the_command_register_is_written_last_and_reporting_before() -> None:
    made = Plan(bars={CARD.address: {0: 0x9000_0000}}, windows={})
    _, done = drive(switch_on([CARD], made, 0x0B), lambda operation: operation.value)
    assert [operation.offset for operation in done] == [
        r.BAR[0].offset,
        r.INTERRUPT_LINE.offset,
        0x40 + r.DEVICE_CONTROL.offset,
        r.COMMAND.offset,
    ]
    assert done[-1].value == r.Command.MEMORY_SPACE | r.Command.BUS_MASTER | r.Command.SERR


def test_virtual_functions_are_neither_sized_nor_switched_on() -> None:
    """Their BARs and enables are zero by rule (PCIe r6.2 9.3.4.1): those of the physical function count."""
    virtual = msgspec.structs.replace(function("0000:01:00.1", parent="0000:00:01.0"), physical=CARD.address)
    sized, _ = drive(size_bars((CARD, virtual)), lambda _: 0)
    assert set(sized) == {CARD.address}
    _, done = drive(switch_on((CARD, virtual), Plan(bars={}, windows={}), None), lambda _: 0)
    assert {operation.function for operation in done} == {CARD.address}


@pytest.mark.parametrize("firmware_first", [False, True])
def test_containment_is_set_up_but_where_the_firmware_does_it(*, firmware_first: bool) -> None:
    port = function("0000:02:00.0", r.DeviceType.DOWNSTREAM_PORT, "0000:01:00.0", (3, 3), express=0x40, dpc=0x200)
    logic = switch_on((port,), Plan(bars={}, windows={}), None, firmware_first=firmware_first)
    _, done = drive(logic, lambda _: 0)
    contained = [operation for operation in done if operation.offset == 0x200 + r.DPC_CONTROL.offset]
    assert bool(contained) is not firmware_first


def test_what_is_behind_a_conventional_bridge_gets_the_second_that_pci_gives_it() -> None:
    bridge = function("0000:01:00.0", r.DeviceType.PCIE_TO_PCI_BRIDGE, "0000:00:01.0")
    assert first_request_s((bridge,)) == timing.PCI_RESET_TO_FIRST_CONFIG
    assert first_request_s((UPSTREAM, CARD)) == timing.LINK_TO_FIRST_CONFIG
    _, done = drive(assign_buses(ROOT, (bridge,), Topology()), lambda _: 0)
    assert [operation.value for operation in done] == [1, 2, 6]
