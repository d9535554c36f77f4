"""One port, as the requests about it see it: how leases are asked for there, and works begun."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from shared.pcie import Address
from shared.protocol import Reason, Refused
from shared.protocol.fabric import Open, Rank, Reach
from shared.protocol.requests import Cause

from ._opening import named
from ._work import Work
from ._works import Works


class Port(msgspec.Struct, frozen=True):
    """A lease port; `ended` is told when a work there is over."""

    address: Address
    works: Works
    ended: Callable[[], object]

    def launch(self, work: Work) -> None:
        """Begin a work under a lease of its own."""
        self.works.launch(work, work.run(), self.ended)

    def command(self, lease_id: str, rank: Rank, cause: Cause, *, reach: Reach, holder: str = "") -> Open:
        """Return the command that asks for a lease here; for further fields it is copied."""
        settings = self.works.context.settings
        return Open(
            id=lease_id,
            port=named(self.address, self.works.topology),
            rank=rank,
            cause=cause,
            holder=holder or settings.instance,
            reach=reach,
            allowed_s=settings.allowed_s,
        )


def no_hold(lease: str) -> Refused:
    """Refuse what only an open hold can be asked."""
    return Refused(reason=Reason.UNKNOWN_LEASE, message=f"{lease} is not a hold of this coordinator, or has ended")
