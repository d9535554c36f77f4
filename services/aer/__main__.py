"""`python -m services.aer`: error reporting of the hosts' root ports and event collectors."""

from __future__ import annotations

from collections.abc import Iterable

from shared.pcie import Address, Topology
from shared.protocol.fabric import Role
from shared.runtime import Context, FabricClient, PortActor, PortActors, run

from ._actor import RootPortActor
from ._counters import Counters

SERVICE = "aer"


def wanted(topology: Topology) -> Iterable[Address]:
    """Return the root ports and event collectors: those that error messages arrive at."""
    return (function.address for function in topology if function.kind.receives_errors and function.capabilities.aer)


async def host(context: Context) -> None:
    """Serve one host until the service stops."""
    counters = Counters()

    def make(port: Address, ports: PortActors) -> PortActor:
        return RootPortActor(port, ports, counters)

    fabric = FabricClient(context.bus, context.host, Role.AER, context.settings.instance)
    await PortActors(context, SERVICE, fabric, wanted, make).run()


if __name__ == "__main__":
    run(SERVICE, host, owned=True)
