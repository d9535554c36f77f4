"""Which links run below what both of their ends can do."""

from __future__ import annotations

import pytest

from services.console._links import Link, judge
from shared.pcie.registers import LinkCapabilities, LinkStatus

ACTIVE = int(LinkStatus.LINK_ACTIVE)


def fields(speed: int, width: int) -> int:
    return speed | width << 4


def port(speed: int, width: int) -> int:
    """Link Capabilities of a port that tells whether its link is active."""
    return fields(speed, width) | LinkCapabilities.LINK_ACTIVE_REPORTING


@pytest.mark.parametrize(
    ("status", "capabilities", "link"),
    [
        (ACTIVE | fields(4, 16), (port(4, 16), fields(4, 16)), Link("16 GT/s x16")),
        (ACTIVE | fields(3, 4), (port(5, 16), fields(3, 4)), Link("8 GT/s x4")),
        (ACTIVE | fields(3, 16), (port(3, 16), fields(5, 16)), Link("8 GT/s x16")),
        (ACTIVE | fields(1, 4), (port(4, 16), fields(3, 8)), Link("2.5 GT/s x4", "8 GT/s x8")),
        (ACTIVE | fields(3, 4), (port(3, 8), fields(3, 8)), Link("8 GT/s x4", "8 GT/s x8")),
        (ACTIVE | fields(3, 4), (port(3, 8), None), Link("8 GT/s x4")),
        (fields(3, 8), (port(3, 8), fields(3, 8)), Link("down")),
        (None, (port(3, 8), None), None),
        (fields(3, 8), (fields(3, 8), fields(3, 8)), Link("not reported")),
    ],
    ids=[
        "full",
        "a small card",
        "an old port",
        "slower and narrower",
        "narrower",
        "nobody below",
        "down",
        "no answer",
        "mute",
    ],
)
def test_a_link_is_degraded_only_below_what_both_ends_can(
    status: int | None, capabilities: tuple[int | None, int | None], link: Link | None
) -> None:
    assert judge(status, capabilities) == link
