from __future__ import annotations

from typing import cast

import structlog

from shared.pcie import Address
from shared.protocol.facts import Fact, What
from shared.runtime import Bus, Facts

PORT = Address.parse("0000:3b:00.0")


class Recorder:
    def __init__(self) -> None:
        self.facts: list[Fact] = []

    def record(self, fact: Fact) -> None:
        self.facts.append(fact)


def test_p10_a_fact_says_who_where_which_lease_and_why_and_is_counted() -> None:
    bus = Recorder()
    facts = Facts(cast("Bus", bus), "dpc", "lab")
    facts.say(What.CONTAINMENT_ENTERED, PORT, lease="l1", cause="dpc", reason="uncorrectable")
    facts.say(What.CONTAINMENT_IGNORED, PORT)
    first, second = bus.facts
    assert (first.service, first.host, first.port, first.lease, first.cause) == ("dpc", "lab", PORT, "l1", "dpc")
    assert first.data == {"reason": "uncorrectable"}
    assert (first.seq, second.seq) == (1, 2)
    assert second.lease is None


def test_data_travels_as_plain_values() -> None:
    bus = Recorder()
    Facts(cast("Bus", bus), "dpc", "lab").say(What.RECOVERY_STEP, PORT, functions=(PORT,), what_else=What.LINK_UP)
    assert bus.facts[0].data == {"functions": ("0000:3b:00.0",), "what_else": "link.up"}


def test_p10_each_fact_is_one_log_line_with_the_fixed_keys() -> None:
    with structlog.testing.capture_logs() as lines:
        facts = Facts(cast("Bus", Recorder()), "dpc", "lab")
        facts.say(What.RECOVERY_STEP, PORT, lease="l1", step="release", token=7, event="not the log's")
    (line,) = lines
    assert line == {
        "event": "recovery.step",
        "log_level": "info",
        "service": "dpc",
        "host": "lab",
        "port": "0000:3b:00.0",
        "lease": "l1",
        "step": "release",
        "token": 7,
        "data_event": "not the log's",
    }
