"""What /metrics says: figures made of facts, gauges read at the scrape, in a text that Prometheus' own parser reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import pytest
from prometheus_client.parser import text_string_to_metric_families

from shared.pcie import Address
from shared.protocol import Reason
from shared.protocol.fabric import Result
from shared.protocol.facts import Fact, Ignored, What
from shared.protocol.records import Verdict
from shared.protocol.requests import Cause
from shared.runtime import Bus, BusStatistics, Facts, Metrics, Reading, gauges
from shared.runtime._counters import COUNTERS, FACTS, OTHER, RECOVERY_DURATION
from shared.runtime._health import Health, Seat
from shared.runtime._process_gauges import process_gauges

PORT = Address.parse("0000:3b:00.0")
DRIVE = "0000:3c:00.0"

Labels = Mapping[str, str]


class Recorder:
    """A bus that keeps facts, and has figures of its own."""

    def __init__(self) -> None:
        self.facts: list[Fact] = []
        self.figures = BusStatistics(reconnects=3, malformed=2, slow=1, facts_pending=4, connected=True)

    def record(self, fact: Fact) -> None:
        self.facts.append(fact)

    def statistics(self) -> BusStatistics:
        return self.figures


def facts(metrics: Metrics, service: str, host: str = "lab") -> Facts:
    return Facts(cast("Bus", Recorder()), service, host, metrics)


def scrape(metrics: Metrics) -> dict[str, list[tuple[Labels, float]]]:
    """Return every sample by name, as Prometheus would read it."""
    body, content_type = metrics.render()
    assert content_type.startswith("text/plain; version=")
    samples: dict[str, list[tuple[Labels, float]]] = {}
    for family in text_string_to_metric_families(body.decode()):
        for sample in family.samples:
            samples.setdefault(sample.name, []).append((sample.labels, sample.value))
    return samples


def value(metrics: Metrics, name: str, **labels: str) -> float:
    """Return the sum of the samples that have these labels; they must exist."""
    found = [figure for having, figure in scrape(metrics).get(name, ()) if labels.items() <= having.items()]
    assert found, f"no sample {name} {labels}"
    return sum(found)


# --- Counters ---


def test_every_fact_is_counted_by_kind_host_and_service() -> None:
    metrics = Metrics("hotplug")
    facts(metrics, "hotplug", "a").say(What.LINK_DOWN, PORT)
    facts(metrics, "hotplug", "b").say(What.LINK_DOWN, PORT)
    facts(metrics, "hotplug", "b").say(What.LINK_DOWN, PORT)
    assert value(metrics, "holdfast_facts_total", host="a", what="link.down", service="hotplug") == 1
    assert value(metrics, "holdfast_facts_total", host="b", what="link.down") == 2


def test_what_a_service_may_state_begins_at_zero_so_that_its_first_is_seen_to_happen() -> None:
    metrics = Metrics("fabric")
    facts(metrics, "fabric")
    assert value(metrics, "holdfast_fence_refusals_total", host="lab", reason="fenced") == 0
    assert value(metrics, "holdfast_facts_total", host="lab", what="lease.opened") == 0
    kinds = {labels["what"].partition(".")[0] for labels, _ in scrape(metrics)["holdfast_facts_total"]}
    assert kinds == {"lease", "quarantine"}
    assert "holdfast_recoveries_total" not in scrape(metrics)


CLOSED = What.LEASE_CLOSED
RECOVERED = What.RECOVERY_CLOSED
IGNORED = "holdfast_events_ignored_total"
ROWS: list[tuple[What, dict[str, Any], str, dict[str, str]]] = [
    (CLOSED, {"cause": "dpc", "outcomes": {DRIVE: ["recovered"]}}, "leases_closed", {"outcome": "recovered"}),
    (CLOSED, {"cause": "slot", "outcomes": {}}, "leases_closed", {"cause": "slot", "outcome": "none"}),
    (
        CLOSED,
        {"cause": "dpc", "outcomes": {"a": ["recovered"], "b": ["replaced", "serial"], "c": ["failed"]}},
        "leases_closed",
        {"outcome": "failed"},
    ),
    (What.LEASE_ADOPTED, {"cause": "dpc", "expired": True}, "leases_adopted", {"cause": "dpc"}),
    (What.LEASE_ADOPTED, {"cause": "dpc", "expired": True}, "leases_expired", {"cause": "dpc"}),
    (What.LEASE_REFUSED, {"reason": Reason.FENCED}, "fence_refusals", {"reason": "fenced"}),
    (RECOVERED, {"cause": "dpc", "verdicts": {"a": "kept", "b": "rebound"}}, "recoveries", {"outcome": "rebound"}),
    (RECOVERED, {"cause": "dpc", "verdicts": {"a": "kept"}, "absorbed_by": None}, "recoveries", {"outcome": "kept"}),
    (RECOVERED, {"cause": "dpc", "verdicts": {}, "absorbed_by": "r-2"}, "recoveries", {"outcome": "absorbed"}),
    (RECOVERED, {"cause": "dpc", "verdicts": {}, "why": "nothing is left"}, "recoveries", {"outcome": "none"}),
    (RECOVERED, {"cause": "hold", "verdicts": {"a": "removed"}}, "recoveries", {"cause": "hold", "outcome": "removed"}),
    (
        RECOVERED,
        {"cause": "dpc", "verdicts": {"a": "kept"}, "degraded": ["a"]},
        "recoveries_degraded",
        {"cause": "dpc"},
    ),
    *((CLOSED, {"cause": "dpc", "outcomes": {"a": [one]}}, "leases_closed", {"outcome": one.value}) for one in Result),
    *((RECOVERED, {"cause": "lift", "verdicts": {"a": one}}, "recoveries", {"outcome": one.value}) for one in Verdict),
    (What.SLOT_IGNORED, {"reason": Ignored.SAME_DEVICE}, "events_ignored", {"reason": "same_device"}),
    (What.ERROR_IGNORED, {"reason": Ignored.TRACELESS}, "events_ignored", {"reason": "traceless"}),
    (What.CONTAINMENT_IGNORED, {"reason": Ignored.REFUSED}, "events_ignored", {"reason": "refused"}),
]


@pytest.mark.parametrize(("what", "data", "counter", "labels"), ROWS)
def test_p10_a_fact_raises_its_counter_by_one_under_its_labels(
    what: What, data: dict[str, Any], counter: str, labels: dict[str, str]
) -> None:
    metrics = Metrics("any")
    facts(metrics, "any").say(what, PORT, **data)
    assert value(metrics, f"holdfast_{counter}_total", host="lab", **labels) == 1
    assert value(metrics, f"holdfast_{counter}_total") == 1, "and no other series of it"


def test_a_lease_that_is_adopted_in_good_time_has_not_expired() -> None:
    metrics = Metrics("fabric")
    facts(metrics, "fabric").say(What.LEASE_ADOPTED, PORT, cause="dpc", silent_s=0.1, expired=False)
    assert value(metrics, "holdfast_leases_adopted_total", cause="dpc") == 1
    assert value(metrics, "holdfast_leases_expired_total", cause="dpc") == 0


@pytest.mark.parametrize("degraded", [{}, {"degraded": []}])
def test_a_recovery_after_which_all_links_are_as_before_is_not_degraded(degraded: dict[str, Any]) -> None:
    metrics = Metrics("coordinator")
    facts(metrics, "coordinator").say(RECOVERED, PORT, cause="dpc", verdicts={"a": "kept"}, **degraded)
    assert value(metrics, "holdfast_recoveries_degraded_total", cause="dpc") == 0


def test_a_recovery_s_duration_is_what_its_fact_says_and_one_without_is_left_out() -> None:
    metrics = Metrics("coordinator")
    stating = facts(metrics, "coordinator")
    stating.say(What.RECOVERY_CLOSED, PORT, cause="dpc", verdicts={}, took_s=0.7)
    stating.say(What.RECOVERY_CLOSED, PORT, cause="dpc", verdicts={}, took_s=4)
    stating.say(What.RECOVERY_CLOSED, PORT, cause="dpc", verdicts={}, absorbed_by="r-2")
    name = "holdfast_recovery_duration_seconds"
    assert value(metrics, f"{name}_count", cause="dpc") == 2
    assert value(metrics, f"{name}_sum", cause="dpc") == pytest.approx(4.7)
    assert value(metrics, f"{name}_bucket", cause="dpc", le="0.5") == 0
    assert value(metrics, f"{name}_bucket", cause="dpc", le="1.0") == 1
    assert value(metrics, f"{name}_bucket", cause="dpc", le="5.0") == 2
    assert value(metrics, f"{name}_count", cause="aer_fatal") == 0


def test_no_fact_whatever_it_says_adds_a_series_beyond_the_bound() -> None:
    metrics = Metrics("any")
    stating = facts(metrics, "any")
    for number in range(50):
        wild = f"free text {number}"
        for what in What:
            stating.say(what, PORT, lease=wild, cause=wild, reason=wild, verdicts={"a": wild}, outcomes={"a": [wild]})
    for name, samples in scrape(metrics).items():
        assert name.startswith("process_") or len(samples) <= len(What), name
    assert value(metrics, IGNORED, reason=OTHER) == 150
    assert value(metrics, "holdfast_recoveries_total", cause=OTHER, outcome=OTHER) == 50


def test_every_label_is_one_of_a_list() -> None:
    for row in (*COUNTERS, FACTS, RECOVERY_DURATION):
        for label in row.labels:
            assert len(set(label.values)) == len(label.values)
            assert 0 < len(label.values) <= len(What)
            assert OTHER not in label.values


# --- Errors ---


def error(stating: Facts, name: str, total: int | None, severity: str = "correctable", function: str = DRIVE) -> None:
    data: dict[str, Any] = {} if total is None else {"counts": {name: total}}
    stating.say(What(f"error.{severity}"), PORT, function=function, names=[name], **data)


def test_errors_are_counted_exactly_though_not_every_one_is_told() -> None:
    metrics = Metrics("aer")
    stating = facts(metrics, "aer")
    for total in (1, 2, 40):  # 37 were held back
        error(stating, "BadTLP", total)
    labels = {"host": "lab", "function": DRIVE, "severity": "correctable", "error": "BadTLP"}
    assert value(metrics, "holdfast_errors_total", **labels) == 40


def test_errors_of_a_new_tenure_are_added_to_those_of_the_last_though_their_totals_begin_again() -> None:
    metrics = Metrics("aer")
    error(facts(metrics, "aer"), "BadTLP", 3)
    error(facts(metrics, "aer"), "BadTLP", 5)
    assert value(metrics, "holdfast_errors_total", error="BadTLP") == 8


def test_a_host_s_new_tenure_leaves_the_errors_of_another_alone() -> None:
    metrics = Metrics("aer")
    one, other = facts(metrics, "aer", "a"), facts(metrics, "aer", "b")
    error(one, "BadTLP", 3)
    error(other, "BadTLP", 2)
    facts(metrics, "aer", "b")
    error(one, "BadTLP", 4)
    assert value(metrics, "holdfast_errors_total", host="a") == 4
    assert value(metrics, "holdfast_errors_total", host="b") == 2


def test_errors_without_totals_count_one_of_each_name() -> None:
    """So dpc tells those of the port that contained itself."""
    metrics = Metrics("dpc")
    stating = facts(metrics, "dpc")
    error(stating, "MalfTLP", None, "fatal")
    error(stating, "MalfTLP", None, "fatal")
    assert value(metrics, "holdfast_errors_total", severity="fatal", error="MalfTLP") == 2


# --- Gauges ---


def test_gauges_are_read_when_they_are_asked_for_and_only_while_somebody_has_them() -> None:
    metrics = Metrics("fabric")
    depth = 1

    def read() -> list[Reading]:
        return [gauges.MAILBOX_DEPTH.reads(depth, "lab", "fabric")]

    with metrics.reading(read):
        assert value(metrics, "holdfast_mailbox_depth", host="lab", actor="fabric", service="fabric") == 1
        depth = 7
        assert value(metrics, "holdfast_mailbox_depth") == 7
    assert "holdfast_mailbox_depth" not in scrape(metrics)


def test_a_gauge_without_a_reading_is_declared_all_the_same() -> None:
    body, _ = Metrics("coordinator").render()
    declared = {family.name for family in text_string_to_metric_families(body.decode())}
    assert {gauge.name.removesuffix("_total") for gauge in gauges.ALL} <= declared
    assert {counter.name for counter in COUNTERS} <= declared


def test_a_gauge_does_not_take_labels_that_are_not_its_own() -> None:
    with pytest.raises(AssertionError, match="holdfast_owner"):
        gauges.OWNER.reads(1)


class FakeOwnership:
    def __init__(self, *, held: bool, seen_owner: str | None) -> None:
        self.held = held
        self.seen_owner = seen_owner
        self.owner = "me"


def with_seat(*, held: bool, seen: str | None, connected: bool = True) -> Metrics:
    health = Health("coordinator", "me")
    bus = Recorder()
    bus.figures = BusStatistics(reconnects=3, malformed=2, slow=1, facts_pending=4, connected=connected)
    health.bus = cast("Bus", bus)
    seat = Seat(owned=True)
    seat.ownership = cast("Any", FakeOwnership(held=held, seen_owner=seen))
    health.seats = {"lab": seat}
    return Metrics("coordinator", lambda: process_gauges(health))


@pytest.mark.parametrize(
    ("held", "seen", "connected", "owner", "standby"),
    [
        (True, None, True, 1, 0),
        (False, "other", True, 0, 1),
        (False, None, True, 0, 0),  # nobody knows who has it
        (False, "other", False, 0, 0),  # who is off the bus takes nothing over
    ],
)
def test_an_instance_owns_or_stands_by_or_neither(
    *, held: bool, seen: str | None, connected: bool, owner: int, standby: int
) -> None:
    metrics = with_seat(held=held, seen=seen, connected=connected)
    assert value(metrics, "holdfast_owner", host="lab") == owner
    assert value(metrics, "holdfast_standby", host="lab") == standby
    assert value(metrics, "holdfast_bus_connected") == connected


def test_the_bus_s_own_figures_are_told() -> None:
    metrics = with_seat(held=True, seen=None)
    names = ("bus_reconnects_total", "bus_malformed_total", "bus_slow_total", "facts_pending")
    assert [value(metrics, f"holdfast_{name}", service="coordinator") for name in names] == [3, 2, 1, 4]


def test_before_the_first_connection_the_bus_is_told_to_be_away() -> None:
    health = Health("fabric", "me")
    health.seats = {"lab": Seat(owned=False)}
    metrics = Metrics("fabric", lambda: process_gauges(health))
    assert value(metrics, "holdfast_bus_connected") == 0
    assert "holdfast_owner" not in scrape(metrics), "the fabric is owned by nobody"


def test_the_process_is_told_as_every_prometheus_client_tells_it() -> None:
    assert value(Metrics("aer"), "process_resident_memory_bytes") > 0


def test_series_are_few() -> None:
    """One scrape of the service that has most of them, for one host."""
    metrics = Metrics("coordinator")
    facts(metrics, "coordinator")
    assert sum(map(len, scrape(metrics).values())) < 40 * len(Cause)
