"""Every subject is one that the design lists, and every fact lands in the stream."""

from __future__ import annotations

from fnmatch import fnmatch

import pytest

from shared.pcie import Address
from shared.protocol import subjects
from shared.protocol.fabric import Role
from shared.protocol.facts import What

PORT = Address.parse("0000:3b:00.0")


@pytest.mark.parametrize("what", What)
def test_p10_every_kind_of_fact_is_kept_in_the_stream(what: What) -> None:
    subject = subjects.fact("lab", PORT, what)
    assert any(fnmatch(subject, pattern.replace(">", "*")) for pattern in subjects.FACT_SUBJECTS)


def test_a_port_is_one_token() -> None:
    assert subjects.irq("lab", PORT, "dpc") == "pcie.lab.0000-3b-00-0.irq.dpc"
    assert subjects.irq("lab", "*", "dpc") == "pcie.lab.*.irq.dpc"
    assert Address.parse("0000-3b-00-0") == PORT


def test_the_bus_itself_can_tell_who_commands() -> None:
    assert subjects.command("lab", Role.HOTPLUG, "open") == "pcie.lab.fabric.hotplug.open"


@pytest.mark.parametrize("name", ["", "a.b", "a b", "*", ">", "-x"])
def test_a_host_that_is_not_one_token_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not a host name"):
        subjects.host_name(name)


@pytest.mark.parametrize(
    ("pattern", "first", "count"),
    [
        ("pcie.lab.>", "pcie.lab.*.link.down", len(What)),
        ("pcie.>", "pcie.*.*.link.down", len(What)),
        ("pcie.lab.0000-3b-00-0.link.>", "pcie.lab.0000-3b-00-0.link.down", 2),
        ("pcie.lab.*.lease.closed", "pcie.lab.*.lease.closed", 1),
    ],
)
def test_a_pattern_of_facts_means_each_by_its_name_and_no_request(pattern: str, first: str, count: int) -> None:
    named = subjects.by_name(pattern)
    assert named[0] == first
    assert len(named) == count
    assert not [name for name in named if name.endswith(("slot.power_on", "slot.power_off", "slot.status"))]
