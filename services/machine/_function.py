"""One simulated function: its config space, seen through its capabilities, and its place in the tree."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from shared.pcie import Address, Capabilities, ConfigSpace
from shared.pcie import registers as r

from ._specs import FunctionSpec

if TYPE_CHECKING:
    from ._port import Port


class Block:
    """The registers of one capability (or of the header), as hardware sees them."""

    __slots__ = ("_base", "_space")

    def __init__(self, space: ConfigSpace, base: int = 0) -> None:
        self._space = space
        self._base = base

    def get(self, register: r.Register) -> int:
        """Return the register's value."""
        return self._space.read(self._base + register.offset, register.width)

    def put(self, register: r.Register, value: int) -> None:
        """Set the whole register."""
        self._space.set(self._base + register.offset, register.width, value)

    def latch(self, register: r.Register, bits: int) -> None:
        """Set bits."""
        self.put(register, self.get(register) | bits)

    def drop(self, register: r.Register, bits: int) -> None:
        """Clear bits."""
        self.put(register, self.get(register) & ~bits)

    def drive(self, register: r.Register, bits: int, on: bool) -> None:
        """Set or clear bits."""
        if on:
            self.latch(register, bits)
        else:
            self.drop(register, bits)

    def written(self, register: r.Register, offset: int, data: bytes) -> int | None:
        """Return what a write of `data` at `offset` gives to the register; None if it touches no byte of it."""
        start = self._base + register.offset - offset
        if start + register.width <= 0 or start >= len(data):
            return None
        covered = (data[i] if 0 <= i < len(data) else 0 for i in range(start, start + register.width))
        return int.from_bytes(bytes(covered), "little")


class SimulatedFunction:
    """A function on the bench. `port` is set for root ports and downstream ports; `card` below them is theirs.

    Of a capability that the function does not have, registers stand in a space of their own that nobody can see.
    """

    def __init__(
        self, spec: FunctionSpec, space: ConfigSpace, caps: Capabilities, parent: SimulatedFunction | None
    ) -> None:
        self.spec = spec
        self.space = space
        self.caps = caps
        self.parent = parent
        self.children: list[SimulatedFunction] = []
        self.port: Port | None = None
        self.ready_at = 0.0  # loop time from which on it answers
        self.header = Block(space)
        self.collector: SimulatedFunction | None = None  # integrated endpoints: who receives its error messages
        self.physical: SimulatedFunction | None = None  # virtual functions: whose it is ...
        self.virtual_number = 0  # ... and its number among them, from 0
        self.express = Block(space, caps.express) if caps.express else Block(ConfigSpace())
        self.power = Block(space, caps.power_management)
        self.msi = Block(space, caps.msi)
        self.aer = Block(space, caps.aer) if caps.aer else None
        self.dpc = Block(space, caps.dpc) if caps.dpc else None
        self.sriov = Block(space, caps.sriov) if caps.sriov else None

    @property
    def address(self) -> Address:
        """Where firmware put it: its name on the bench, whatever its bridges' bus numbers say now."""
        return self.spec.address

    @property
    def requester_id(self) -> int:
        """What its messages carry as their source (§2.2.6.2); on a conventional bus the bridge to it speaks."""
        speaker = self if self.spec.is_express or self.parent is None else self.parent
        return speaker.address.requester_id

    @property
    def exists(self) -> bool:
        """Whether the function is there: a virtual one is while its physical function has it enabled (§9.3.3.3.1)."""
        if self.physical is None:
            return True
        sriov = self.physical.sriov
        assert sriov is not None
        enabled = sriov.get(r.SRIOV_CONTROL) & r.SriovControl.VF_ENABLE
        return bool(enabled) and self.virtual_number < sriov.get(r.NUM_VFS)

    @property
    def reports_by(self) -> SimulatedFunction:
        """The function whose enables say which errors this one may report: a virtual one has none of its own."""
        return self if self.physical is None else self.physical

    def virtual_functions(self) -> Iterator[SimulatedFunction]:
        """Yield the function's virtual functions, enabled or not."""
        siblings = self.parent.children if self.parent is not None else ()
        return (sibling for sibling in siblings if sibling.physical is self)

    def subtree(self) -> Iterator[SimulatedFunction]:
        """Yield the function and all below, parents first."""
        yield self
        for child in self.children:
            yield from child.subtree()

    def same_component(self) -> Iterator[SimulatedFunction]:
        """Yield the function and those below that no further link separates from it: a card, a switch."""
        yield self
        if self.port is None:
            for child in self.children:
                yield from child.same_component()

    def port_above(self) -> Port | None:
        """Return the port at the other end of the link that leads to this function's component."""
        above = self.parent
        while above is not None and above.port is None:
            above = above.parent
        return above.port if above is not None else None
