"""Giving a new card its bus numbers, windows and addresses, and switching it on.

A card comes up with nothing configured. Bridges of a switch card get bus numbers out of the slot's own range first,
since nothing behind them can be read before; then every memory BAR is sized by writing ones (PCIe r6.2 §7.5.1.2.1) and
placed inside the memory window of the slot. Only 32-bit addresses of the non-prefetchable window are used, which every
memory BAR can take; I/O BARs stay unassigned, and I/O space disabled.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from shared.pcie import Address, Function, Topology, answered
from shared.pcie import registers as r
from shared.protocol.fabric import Operation
from shared.recovery import Do, Logic, ask, modify, read, write

WINDOW_ALIGNMENT: Final = 0x10_0000  # §7.5.1.3.8: windows of bridges count in megabytes
_BAR_IO: Final = 0x1
_BAR_TYPE: Final = 0x6
_BAR_64: Final = 0x4
_BAR_FLAGS: Final = 0xF
_DWORD: Final = 0xFFFF_FFFF
_BRIDGE_BARS: Final = 2  # a type 1 header has two
_REPORTING: Final = (
    r.DeviceControl.CORRECTABLE_REPORTING
    | r.DeviceControl.NONFATAL_REPORTING
    | r.DeviceControl.FATAL_REPORTING
    | r.DeviceControl.UNSUPPORTED_REQUEST_REPORTING
)
_ON: Final = r.Command.MEMORY_SPACE | r.Command.BUS_MASTER | r.Command.SERR
_CONTAINMENT: Final = r.DpcControl.TRIGGER_ON_FATAL | r.DpcControl.INTERRUPT_ENABLE


class Unconfigurable(Exception):  # noqa: N818 - named for what is true
    """The slot has not enough bus numbers or memory for the card; the text says which."""


class Bar(msgspec.Struct, frozen=True):
    """One memory BAR as sizing found it. Naturally aligned: its size is its alignment."""

    index: int
    size: int
    wide: bool  # 64 bits: the next BAR holds the upper half


class Window(msgspec.Struct, frozen=True):
    """A range of memory addresses, `limit` included. Empty if the limit is below the base."""

    base: int
    limit: int


class Plan(msgspec.Struct, frozen=True):
    """Where everything goes: addresses of BARs by function and index, windows of bridges."""

    bars: dict[Address, dict[int, int]]
    windows: dict[Address, Window]


def window_of(base: int, limit: int) -> Window:
    """Return the window that Memory Base and Memory Limit describe (§7.5.1.3.8)."""
    return Window((base & 0xFFF0) << 16, (limit & 0xFFF0) << 16 | 0xF_FFFF)


def plan(slot: Address, window: Window, topology: Topology, bars: Mapping[Address, tuple[Bar, ...]]) -> Plan:
    """Place every BAR behind the slot. Raises Unconfigurable where the window is too small."""
    made = Plan(bars={}, windows={})
    end = _place(slot, window.base, topology, bars, made)
    if end > window.limit + 1:
        raise Unconfigurable(f"the card needs {end - window.base:#x} bytes of memory, the slot has {_room(window):#x}")
    return made


def _room(window: Window) -> int:
    return max(0, window.limit + 1 - window.base)


def _place(bridge: Address, start: int, topology: Topology, bars: Mapping[Address, tuple[Bar, ...]], made: Plan) -> int:
    """Place what is on the bridge's bus from `start` on, large before small; return where it ends."""
    children = topology.children(bridge)
    placed = [(bar, child.address) for child in children for bar in bars.get(child.address, ())]
    at = start
    for bar, address in sorted(placed, key=lambda pair: (-pair[0].size, pair[1], pair[0].index)):
        at = _aligned(at, bar.size)
        made.bars.setdefault(address, {})[bar.index] = at
        at += bar.size
    for child in children:
        if child.kind.is_bridge:
            base = _aligned(at, WINDOW_ALIGNMENT)
            end = _aligned(_place(child.address, base, topology, bars, made), WINDOW_ALIGNMENT)
            made.windows[child.address] = Window(base, end - 1)
            at = end if end > base else at
    return at


def _aligned(value: int, alignment: int) -> int:
    return -(-value // alignment) * alignment


def assign_buses(slot: Function, fresh: tuple[Function, ...], known: Topology) -> Logic[bool]:
    """Assign buses to bridges that have none yet; return whether there were any (then: enumerate again).

    Bridges that stood at the same addresses before get the numbers that they had, so that a card which was only
    reseated finds its functions at their old addresses. Otherwise siblings share what their bus has left.
    """
    bridges = [bridge for bridge in fresh if bridge.kind.is_bridge and not bridge.secondary]
    for parent in dict.fromkeys(bridge.parent for bridge in bridges):
        above = next((bridge for bridge in fresh if bridge.address == parent), slot)
        siblings = [bridge for bridge in bridges if bridge.parent == parent]
        numbered = [bridge for bridge in fresh if bridge.parent == parent and bridge.secondary]
        for bridge, (secondary, subordinate) in _ranges(above, siblings, numbered, known).items():
            yield Do(
                (
                    write(bridge, r.PRIMARY_BUS.offset, 1, above.secondary),
                    write(bridge, r.SECONDARY_BUS.offset, 1, secondary),
                    write(bridge, r.SUBORDINATE_BUS.offset, 1, subordinate),
                )
            )
    return bool(bridges)


def _ranges(
    above: Function, siblings: list[Function], numbered: list[Function], known: Topology
) -> dict[Address, tuple[int, int]]:
    """Return secondary and subordinate bus of each of the siblings, all on the bus below `above`."""
    before = {bridge.address: known.find(bridge.address) for bridge in siblings}
    old = {address: (was.secondary, was.subordinate) for address, was in before.items() if was is not None}
    fits = all(above.secondary < secondary <= last <= above.subordinate for secondary, last in old.values())
    if not numbered and fits and len(old) == len(siblings):
        return old
    first = max((bridge.subordinate for bridge in numbered), default=above.secondary) + 1
    room = above.subordinate - first + 1
    if room < len(siblings):
        buses = f"{above.secondary:02x}-{above.subordinate:02x}"
        raise Unconfigurable(f"no bus number is left below {above.address} (buses {buses})")
    share = room // len(siblings)
    starts = [first + n * share for n in range(len(siblings))]
    ends = [start + share - 1 for start in starts[:-1]] + [above.subordinate]
    return {bridge.address: span for bridge, span in zip(siblings, zip(starts, ends, strict=True), strict=True)}


def size_bars(functions: Iterable[Function]) -> Logic[dict[Address, tuple[Bar, ...]]]:
    """Size every memory BAR, with memory space off while its address is all ones."""
    found: dict[Address, tuple[Bar, ...]] = {}
    for function in _physical(functions):
        registers = r.BAR[:_BRIDGE_BARS] if function.kind.is_bridge else r.BAR
        off = modify(function.address, r.COMMAND.offset, 2, mask=_ON, value=0)
        probes = [write(function.address, bar.offset, 4, _DWORD) for bar in registers]
        answers = [read(function.address, bar.offset, 4) for bar in registers]
        zeros = [write(function.address, bar.offset, 4, 0) for bar in registers]
        answer = yield from ask((off, *probes, *answers, *zeros))
        masks = answer[1 + len(probes) : 1 + len(probes) + len(answers)]
        found[function.address] = bars_of(tuple(mask if answered(mask) else _DWORD for mask in masks))
    return found


def bars_of(masks: tuple[int, ...]) -> tuple[Bar, ...]:
    """Read the sizes from what the BARs returned after all ones were written."""
    found = []
    index = 0
    while index < len(masks):
        mask = masks[index]
        wide = not mask & _BAR_IO and mask & _BAR_TYPE == _BAR_64
        if mask and not mask & _BAR_IO:
            upper = masks[index + 1] if wide and index + 1 < len(masks) else _DWORD
            size = ((~(upper << 32 | mask & ~_BAR_FLAGS)) & (1 << 64) - 1) + 1
            found.append(Bar(index, size, wide))
        index += 2 if wide else 1
    return tuple(found)


def switch_on(
    functions: Iterable[Function], made: Plan, line: int | None, *, firmware_first: bool = False
) -> Logic[None]:
    """Write the plan, error reporting, containment and the interrupt line; the command register last, top-down.

    `firmware_first`: containment is the firmware's to set up.
    """
    for function in _physical(functions):
        yield Do(tuple(_writes(function, made, line, contain=not firmware_first)))


def _physical(functions: Iterable[Function]) -> Iterable[Function]:
    """Leave out virtual functions: their BARs and what would switch them on are zero by rule (§9.3.4.1)."""
    return (function for function in functions if function.physical is None)


def _writes(function: Function, made: Plan, line: int | None, *, contain: bool) -> list[Operation]:
    address, caps = function.address, function.capabilities
    writes = [write(address, r.BAR[index].offset, 4, value) for index, value in made.bars.get(address, {}).items()]
    window = made.windows.get(address)
    if window is not None:
        writes.append(write(address, r.MEMORY_BASE.offset, 2, window.base >> 16 & 0xFFF0))
        writes.append(write(address, r.MEMORY_LIMIT.offset, 2, window.limit >> 16 & 0xFFF0))
    if line is not None:
        writes.append(write(address, r.INTERRUPT_LINE.offset, 1, line))
    if function.kind.is_bridge:
        # Without it no ERR_FATAL and ERR_NONFATAL of what is below the bridge gets through (pci_configure_serr).
        forward = int(r.BridgeControl.SERR)
        writes.append(modify(address, r.BRIDGE_CONTROL.offset, 2, mask=forward, value=forward))
    if caps.express:
        offset = caps.express + r.DEVICE_CONTROL.offset
        writes.append(modify(address, offset, 2, mask=_REPORTING, value=_REPORTING))
    if caps.dpc and contain:
        writes.append(modify(address, caps.dpc + r.DPC_CONTROL.offset, 2, mask=_CONTAINMENT, value=_CONTAINMENT))
    writes.append(modify(address, r.COMMAND.offset, 2, mask=_ON, value=_ON))
    return writes
