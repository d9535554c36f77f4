"""The bench: config access from above, injections from the side, interrupts out. No bus and no socket in here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

from shared.pcie import Address, all_ones
from shared.pcie import registers as r
from shared.protocol.requests import DriverAnswer, DriverCall, Inject

from . import _firmware
from ._build import build
from ._clock import Clock
from ._drivers import Drivers
from ._errors import log_stale
from ._firmware_first import FirmwareFirst
from ._function import SimulatedFunction
from ._inject import Injector
from ._interrupts import Interrupts
from ._routing import reachable, route
from ._specs import DriverSpec, MachineError, TopologyFile
from ._writes import Before, react, store

OnInterrupt = Callable[[Address, int], None]


class Machine:
    """One host's simulated hardware, powered on and configured by firmware. Lives in the running event loop.

    `read` and `write` are what a root complex does for the processor: never an exception, all ones where nothing
    completes. Interrupts are delivered to every listener as (port, vector), in the instant in which they are raised.
    """

    def __init__(self, bench: TopologyFile) -> None:
        self.clock = Clock(asyncio.get_running_loop(), self.settle)
        self.firmware = FirmwareFirst() if bench.firmware_first else None
        self.interrupts = Interrupts(self.clock, self._interrupted, self.firmware)
        self._listeners: list[OnInterrupt] = []
        self._roots = build(bench, self.clock)
        _firmware.boot(self._roots)
        self.drivers = Drivers((function.spec for function in self.functions()), self._fitting_driver)
        self._injector = Injector(self, frozenset(spec.address for spec in bench.function))
        for function in self.functions():
            if function.port is not None:
                function.port.boot()
            log_stale(function)
        self.settle()

    # --- What the processor does ---

    def enumerate(self) -> tuple[Address, ...]:
        """Return the addresses at which a scan finds functions now."""
        return tuple(sorted(address for address, _ in reachable(self._roots)))

    def read(self, address: Address, offset: int, length: int) -> bytes:
        """Read config space. Before a function is ready, its vendor ID reads as 0001 (RRS) and all else as ones."""
        _check_range(offset, length)
        nothing = all_ones(length).to_bytes(length, "little")
        function = route(self._roots, address)
        if function is None:
            return nothing
        if self.clock.now() < function.ready_at:
            visible = offset == r.VENDOR_ID.offset and length >= r.VENDOR_ID.width and self._shows_rrs(function)
            rrs = r.RRS_VENDOR_ID.to_bytes(r.VENDOR_ID.width, "little")
            return rrs + nothing[r.VENDOR_ID.width :] if visible else nothing
        data = function.space.read(offset, length).to_bytes(length, "little")
        if function.spec.is_express:
            return data
        here = max(r.EXTENDED_START - offset, 0)  # a conventional bus carries no requests beyond the first 256 bytes
        return data[:here] + nothing[here:]

    def write(self, address: Address, offset: int, data: bytes) -> None:
        """Write config space. Dropped where nothing completes."""
        _check_range(offset, len(data))
        function = route(self._roots, address)
        if function is None or self.clock.now() < function.ready_at:
            return
        before = Before(function)
        store(function, offset, data)
        self._look(function)  # what the write itself cleared or enabled, before hardware answers it
        react(function, before, offset, data, self.clock.now())
        if function.spec.is_bridge:
            self.settle()

    def listen(self, on_interrupt: OnInterrupt) -> Callable[[], None]:
        """Deliver interrupts to `on_interrupt` as well; the function returned ends that.

        It is called in the middle of things: it may take note, and access nothing.
        """
        self._listeners.append(on_interrupt)
        return lambda: self._listeners.remove(on_interrupt)

    # --- What a lab and the drivers do ---

    def inject(self, request: Inject) -> None:
        """Plan the injection, or do it if it has no delay. Raises MachineError where it makes no sense."""
        self._injector.plan(request)

    async def call_driver(self, call: DriverCall) -> DriverAnswer:
        """Run one callback of the function's driver. Takes as long as the driver does."""
        return await self.drivers.call(call.function, call.step)

    # --- Inside ---

    def functions(self) -> Iterator[SimulatedFunction]:
        """Yield every function that is seated, parents first, reachable or not; virtual ones while they are enabled."""
        for root in self._roots:
            yield from (function for function in root.subtree() if function.exists)

    def find(self, address: Address) -> SimulatedFunction | None:
        """Return the seated function that firmware put at `address`."""
        return next((function for function in self.functions() if function.address == address), None)

    def settle(self) -> None:
        """Let links and presence follow until nothing changes, and raise what has become due."""
        self.settle_links()
        for function in self.functions():
            self._look(function)

    def settle_links(self) -> None:
        """Let links and presence follow until nothing changes; interrupts wait."""
        while any(function.port.settle() for function in self.functions() if function.port is not None):
            pass

    def card_changed(self) -> None:
        """Forget what functions have raised that are gone now."""
        self.interrupts.forget({function.address for function in self.functions()})

    def _look(self, function: SimulatedFunction) -> None:
        if function.port is not None or function.spec.is_root:
            self.interrupts.look(function)

    def _interrupted(self, port: Address, vector: int) -> None:
        for listener in tuple(self._listeners):
            listener(port, vector)

    def _fitting_driver(self, address: Address) -> DriverSpec | None:
        function = self.find(address)
        return function.spec.driver if function is not None else None

    def _shows_rrs(self, function: SimulatedFunction) -> bool:
        """Whether the root port above lets software see RRS (§7.5.3.12)."""
        root = function
        while root.parent is not None:
            root = root.parent
        return root.spec.kind == "root_port" and bool(
            root.express.get(r.ROOT_CONTROL) & r.RootControl.RRS_SOFTWARE_VISIBILITY
        )


def _check_range(offset: int, length: int) -> None:
    if not (offset >= 0 and length > 0 and offset + length <= r.CONFIG_SPACE_SIZE):
        raise MachineError(f"{length} bytes at {offset:#x} are not in the {r.CONFIG_SPACE_SIZE} bytes of config space")
