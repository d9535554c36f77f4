"""What a process tells Prometheus: counters made of its facts, and gauges that are read when it is asked.

Nothing else is counted and nothing is kept up to date, so no figure can say something else than the facts do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Final

import prometheus_client as prometheus
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from shared.protocol.facts import Fact, What
from shared.protocol.routes import speakers

from . import gauges
from ._counters import COUNTERS, ERRORS, FACTS, RECOVERY_DURATION, ErrorCounts
from .gauges import Reading, Source

_ALWAYS: Final = ("service", "host")
_TOTAL: Final = "_total"

# When a series began helps nobody here, and would double their number.
prometheus.disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """The metrics of one process. `sources` are read as long as it lives."""

    def __init__(self, service: str, *sources: Source) -> None:
        self._service = service
        self._sources = list(sources)
        self._registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=self._registry)
        self._registry.register(_Gauges(service, self._read))
        self._facts = self._counter(FACTS.name, FACTS.about, *FACTS.label_names)
        self._counters = {one: self._counter(one.name, one.about, *one.label_names) for one in COUNTERS}
        self._errors = self._counter(ERRORS.name, ERRORS.about, *ERRORS.label_names)
        self._durations = prometheus.Histogram(
            RECOVERY_DURATION.name,
            RECOVERY_DURATION.about,
            (*_ALWAYS, *RECOVERY_DURATION.label_names),
            buckets=RECOVERY_DURATION.buckets,
            registry=self._registry,
        )

    def render(self) -> tuple[bytes, str]:
        """Return everything in Prometheus' text format, and its content type. Does not block."""
        return prometheus.generate_latest(self._registry), prometheus.CONTENT_TYPE_LATEST

    @contextlib.contextmanager
    def reading(self, source: Source) -> Iterator[None]:
        """Read these gauges as well, as long as the context lasts."""
        self._sources.append(source)
        try:
            yield
        finally:
            self._sources.remove(source)

    def tenure(self, host: str) -> Callable[[Fact], None]:
        """Return what counts the facts of one tenure. What the service may state begins at 0, not with its first fact.

        Otherwise Prometheus would never see the first one happen: it knows growth, and not what a series begins with.
        """
        spoken = frozenset(what for what in What if self._service in speakers(what))
        for what in spoken:
            self._facts.labels(self._service, host, what)
        for counter in COUNTERS:
            if counter.whats & spoken:
                for labels in counter.series():
                    self._counters[counter].labels(self._service, host, *labels)
        if RECOVERY_DURATION.what in spoken:
            for labels in RECOVERY_DURATION.series():
                self._durations.labels(self._service, host, *labels)
        errors = ErrorCounts()

        def count(fact: Fact) -> None:
            self._count(fact, errors)

        return count

    def _count(self, fact: Fact, errors: ErrorCounts) -> None:
        always = (self._service, fact.host)
        self._facts.labels(*always, *FACTS.label_values(fact)).inc()
        for row in COUNTERS:
            if row.counts(fact):
                self._counters[row].labels(*always, *row.label_values(fact)).inc()
        for labels, more in errors.new(fact):
            self._errors.labels(*always, *labels).inc(more)
        took = RECOVERY_DURATION.seconds(fact)
        if took is not None:
            self._durations.labels(*always, *RECOVERY_DURATION.label_values(fact)).observe(took)

    def _counter(self, name: str, about: str, *labels: str) -> prometheus.Counter:
        return prometheus.Counter(name, about, (*_ALWAYS, *labels), registry=self._registry)

    def _read(self) -> Iterator[Reading]:
        for source in self._sources:
            yield from source()


class _Gauges(Collector):
    """Reads all gauges for one scrape."""

    def __init__(self, service: str, read: Callable[[], Iterable[Reading]]) -> None:
        self._service = service
        self._read = read

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """Yield every metric, also those that nobody has a reading of: that they exist does not depend on the hour."""
        families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
        for gauge in gauges.ALL:
            kind = CounterMetricFamily if gauge.name.endswith(_TOTAL) else GaugeMetricFamily
            families[gauge.name] = kind(gauge.name, gauge.about, labels=("service", *gauge.labels))
        for reading in self._read():
            families[reading.gauge.name].add_metric((self._service, *reading.labels), reading.value)
        yield from families.values()
