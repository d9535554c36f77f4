"""`python -m services.dpc`: containment on the hosts' ports."""

from __future__ import annotations

from collections.abc import Iterable

from shared.pcie import Address, Topology
from shared.protocol.fabric import Role
from shared.runtime import Context, FabricClient, PortActor, PortActors, run

from ._actor import ContainmentActor

SERVICE = "dpc"


def wanted(topology: Topology) -> Iterable[Address]:
    """Return the ports that can contain."""
    return (function.address for function in topology if function.is_port and function.capabilities.dpc)


def make(port: Address, ports: PortActors) -> PortActor:
    """Return the actor of one port."""
    return ContainmentActor(port, ports)


async def host(context: Context) -> None:
    """Serve one host until the service stops."""
    # It only asks questions, which any role may; the role decides nothing but the subject of commands.
    fabric = FabricClient(context.bus, context.host, Role.AER, context.settings.instance)
    await PortActors(context, SERVICE, fabric, wanted, make).run()


if __name__ == "__main__":
    run(SERVICE, host, owned=True)
