"""Must show 4: /metrics of real processes, read by a real parser, says what the facts of the same run say."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

from services.console._fleet import SERVICES
from shared.pcie import Address
from shared.protocol import Refused, subjects
from shared.protocol.fabric import Open, OpenReply, Rank, Role
from shared.protocol.facts import Fact, What
from shared.protocol.requests import Accepted, AcceptReply, Lift
from tests.http_client import get
from tests.integration.conftest import TOPOLOGIES
from tests.integration.fleet import Bench, start
from tests.integration.promises import keeps

pytestmark = pytest.mark.asyncio(loop_scope="module")

ALLOWED_S: Final = 3.0
PORT: Final = "0000:00:01.0"
DRIVE: Final = "0000:01:00.0"
AER_PORT: Final = "0000:00:03.0"
AER_DRIVE: Final = "0000:03:00.0"
PULLED: Final = "0000:00:09.0"
STORMY: Final = "0000:00:02.0"
RECOVERIES: Final = 4  # more than these of one port are a storm

Labels = tuple[str, ...]
Samples = list[tuple[Mapping[str, str], float]]


class Scraper:
    """Knows from the logs where each service serves its metrics, and reads them."""

    def __init__(self) -> None:
        self._urls: dict[str, str] = {}

    def hear(self, name: str, line: str) -> None:
        """Take a log line of a service."""
        if '"health served"' in line:
            self._urls[name] = json.loads(line)["url"]

    async def text(self, name: str) -> str:
        """Return what /metrics answers."""
        status, _, text = await get(f"{self._urls[name]}/metrics")
        assert status == 200
        return text

    async def samples(self, *names: str) -> dict[str, Samples]:
        """Return the samples of these services, by metric."""
        found: dict[str, Samples] = {}
        for name in names:
            for family in text_string_to_metric_families(await self.text(name)):
                for sample in family.samples:
                    found.setdefault(sample.name, []).append((sample.labels, sample.value))
        return found

    async def value(self, name: str, metric: str, **labels: str) -> float | None:
        """Return the sum of one metric of one service; None where there is no such series."""
        samples = (await self.samples(name)).get(metric, [])
        found = [value for having, value in samples if labels.items() <= having.items()]
        return sum(found) if found else None


@pytest.fixture(scope="module")
def scraper() -> Scraper:
    return Scraper()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory, scraper: Scraper) -> AsyncIterator[Bench]:
    """One fleet for all tests here, in this order: figures are counted from its start."""
    text = (TOPOLOGIES / "bench.toml").read_text()
    quick = {
        "HOLDFAST_OWNER_S": "2",
        "HOLDFAST_ALLOWED_S": str(ALLOWED_S),
        "HOLDFAST_STORM_RECOVERIES": str(RECOVERIES),
        "HOLDFAST_STORM_S": "3600",
    }
    directory = tmp_path_factory.mktemp("metrics")
    async with start(text, directory, environment=quick, on_line=scraper.hear) as running:
        yield running


# --- What the facts say, counted without any of the code that makes the metrics ---


def by_kind(facts: list[Fact]) -> Counter[Labels]:
    return Counter((fact.service, fact.what.value) for fact in facts)


def leases_closed(facts: list[Fact]) -> Counter[Labels]:
    closed = [fact for fact in facts if fact.what is What.LEASE_CLOSED]
    return Counter((str(fact.cause), outcome(fact.data["outcomes"])) for fact in closed)


def outcome(outcomes: dict[str, list[str]]) -> str:
    return only({said[0] for said in outcomes.values()})


def only(said: set[str]) -> str:
    """Only what happens in these stories: all came back, nothing was concerned, or a port holds its device down."""
    (result,) = ({"quarantined"} & said) or said or {"none"}
    return result


def recoveries(facts: list[Fact]) -> Counter[Labels]:
    closed = [fact for fact in facts if fact.what is What.RECOVERY_CLOSED]
    return Counter((str(fact.cause), verdict(fact.data)) for fact in closed)


def verdict(data: dict[str, Any]) -> str:
    return only(set(data["verdicts"].values()))


def degraded(facts: list[Fact]) -> Counter[Labels]:
    return Counter((str(fact.cause),) for fact in facts if fact.data.get("degraded"))


def refusals(facts: list[Fact]) -> Counter[Labels]:
    return Counter((fact.data["reason"],) for fact in facts if fact.what is What.LEASE_REFUSED)


def ignored(facts: list[Fact]) -> Counter[Labels]:
    return Counter((fact.service, fact.data["reason"]) for fact in facts if fact.what.endswith(".ignored"))


def errors(facts: list[Fact]) -> Counter[Labels]:
    """The last totals of each function, and single errors where no totals are told."""
    found: Counter[Labels] = Counter()
    for fact in facts:
        kind, _, severity = fact.what.partition(".")
        if kind != "error" or severity == "ignored":
            continue
        key = (fact.service, fact.data["function"], severity)
        if "counts" in fact.data:
            found.update({(*key, name): total - found[*key, name] for name, total in fact.data["counts"].items()})
        else:
            found.update((*key, name) for name in fact.data.get("names", ()))
    return found


FIGURES: Final = {
    "holdfast_facts_total": (("service", "what"), by_kind),
    "holdfast_leases_closed_total": (("cause", "outcome"), leases_closed),
    "holdfast_recoveries_total": (("cause", "outcome"), recoveries),
    "holdfast_recoveries_degraded_total": (("cause",), degraded),
    "holdfast_fence_refusals_total": (("reason",), refusals),
    "holdfast_events_ignored_total": (("service", "reason"), ignored),
    "holdfast_errors_total": (("service", "function", "severity", "error"), errors),
}


async def disagreements(bench: Bench, scraper: Scraper) -> str:
    """Compare every figure with the facts; return what differs."""
    scraped = await scraper.samples(*SERVICES)
    told = []
    for metric, (labels, count) in FIGURES.items():
        figures: Counter[Labels] = Counter()
        for having, value in scraped.get(metric, []):
            assert having["host"] == bench.host
            figures[tuple(having[label] for label in labels)] += int(value)
        facts = +count(bench.facts())
        if +figures != facts:
            told.append(f"{metric}: scraped {dict(+figures - facts)} more, {dict(facts - figures)} less than the facts")
    took = [fact.data["took_s"] for fact in bench.facts(What.RECOVERY_CLOSED) if "took_s" in fact.data]
    name = "holdfast_recovery_duration_seconds"
    count_, sum_ = (sum(value for _, value in scraped[f"{name}_{what}"]) for what in ("count", "sum"))
    if count_ != len(took) or sum_ != pytest.approx(sum(took)):
        told.append(f"{name}: {count_}, {sum_} s, and the facts say {took}")
    return "\n".join(told)


async def agrees(bench: Bench, scraper: Scraper) -> None:
    """Wait until the fleet is calm and every figure agrees with the facts."""
    last = ""

    async def look() -> bool | None:
        nonlocal last
        last = await disagreements(bench, scraper)
        return not last or None

    try:
        await bench.eventually(look, "figures that agree with the facts")
    except AssertionError as late:
        raise AssertionError(last) from late


async def be_refused(bench: Bench, times: int) -> None:
    """Ask as hotplug, which may not, for a recovery's lease."""
    asked = Open(id="forged", port=Address.parse(PORT), rank=Rank.RECOVERY, cause="dpc", holder="forger")
    for _ in range(times):
        reply = await bench.request(subjects.command(bench.host, Role.HOTPLUG, "open"), asked, OpenReply)
        assert isinstance(reply, Refused)


async def flood(bench: Bench) -> None:
    """Inject one error after another, until not every one is told."""

    async def held_back() -> bool | None:
        await bench.inject("error", AER_DRIVE, names=["BadTLP"])
        return any(fact.data["held_back"] for fact in bench.facts(What.ERROR_CORRECTABLE)) or None

    await bench.eventually(held_back, "errors held back")


async def test_p10_every_figure_agrees_with_the_facts_of_the_same_run(bench: Bench, scraper: Scraper) -> None:
    since = bench.mark()
    async with keeps(bench, PORT, resets=True):
        await bench.inject("dpc", PORT, reason="uncorrectable")
        started = await bench.wait_fact(What.RECOVERY_STARTED, PORT, since=since)
        await bench.closed(PORT, started.lease)
    async with keeps(bench, AER_PORT, resets=True):
        await bench.inject("error", AER_DRIVE, names=["MalfTLP"])
        started = await bench.wait_fact(What.RECOVERY_STARTED, AER_PORT, since=since)
        await bench.closed(AER_PORT, started.lease)
    await flood(bench)
    await be_refused(bench, 3)
    await bench.inject("remove", PULLED)
    await bench.wait_fact(What.ERROR_IGNORED, PULLED, since=since)
    await agrees(bench, scraper)

    # And they are the figures that the story makes one expect, so that nothing agrees with nothing.
    assert await scraper.value("coordinator", "holdfast_recoveries_total", cause="dpc", outcome="kept") == 1
    assert await scraper.value("coordinator", "holdfast_recoveries_total", cause="aer_fatal", outcome="kept") == 1
    assert await scraper.value("fabric", "holdfast_fence_refusals_total", reason="role") == 3
    assert await scraper.value("aer", "holdfast_events_ignored_total", reason="gone")
    told = len(bench.facts(What.ERROR_CORRECTABLE))
    counted = await scraper.value("aer", "holdfast_errors_total", function=AER_DRIVE, error="BadTLP")
    assert counted is not None
    assert counted > told
    fatal = await scraper.value("aer", "holdfast_errors_total", function=AER_DRIVE, severity="fatal", error="MalfTLP")
    assert fatal == 1


async def test_p10_a_port_in_quarantine_is_shown_until_it_is_released_and_counted_as_its_facts_say(
    bench: Bench, scraper: Scraper
) -> None:
    for _ in range(RECOVERIES + 1):
        since = bench.mark()
        await bench.inject("dpc", STORMY, reason="uncorrectable")
        started = await bench.wait_fact(What.RECOVERY_STARTED, STORMY, since=since)
        await bench.closed(STORMY, started.lease)
    await agrees(bench, scraper)
    assert await scraper.value("fabric", "holdfast_quarantined", host="lab", port=STORMY) == 1
    assert await scraper.value("fabric", "holdfast_facts_total", what="quarantine.entered") == 1
    assert await scraper.value("fabric", "holdfast_leases_closed_total", cause="dpc", outcome="quarantined") == 1
    assert await scraper.value("coordinator", "holdfast_recoveries_total", cause="dpc", outcome="quarantined") == 1

    await bench.inject("degraded_link", STORMY, speed=1, width=1)
    lift = Lift(port=Address.parse(STORMY))
    accepted = await bench.request(subjects.coordinator(bench.host, "lift"), lift, AcceptReply)
    assert isinstance(accepted, Accepted), accepted
    await bench.closed(STORMY, accepted.lease)
    await agrees(bench, scraper)
    assert await scraper.value("fabric", "holdfast_quarantined") is None
    assert await scraper.value("coordinator", "holdfast_recoveries_total", cause="lift", outcome="kept") == 1
    assert await scraper.value("coordinator", "holdfast_recoveries_degraded_total", cause="lift") == 1


async def test_the_gauges_show_a_mask_while_it_lasts_and_nothing_after_it(bench: Bench, scraper: Scraper) -> None:
    await bench.hang(DRIVE, "error_detected")
    since = bench.mark()
    await bench.inject("dpc", PORT, reason="uncorrectable")
    masked = await bench.wait_fact(What.LEASE_MASKED, PORT, since=since)
    (lease,) = [one for one in (await bench.leases()).leases if one.id == masked.lease]
    scraped = await scraper.samples("fabric")
    [(labels, age)] = scraped["holdfast_mask_age_seconds"]
    assert labels == {"service": "fabric", "host": "lab", "port": PORT, "lease": masked.lease, "cause": "dpc"}
    assert 0 <= lease.age_s <= age
    # Hotplug may have a lease of its own besides, to look at a slot; that masks nothing.
    assert [
        (labels["port"], allowed)
        for labels, allowed in scraped["holdfast_lease_allowed_seconds"]
        if labels["lease"] == lease.id
    ] == [(PORT, lease.allowed_s)]
    assert (PORT, lease.id) in {
        (labels["port"], labels["lease"]) for labels, _ in scraped["holdfast_lease_silent_seconds"]
    }
    assert await scraper.value("fabric", "holdfast_leases_open", rank="recovery") == 1
    await bench.answer(DRIVE)
    await bench.closed(PORT, masked.lease)

    async def gone() -> bool | None:
        return await scraper.value("fabric", "holdfast_mask_age_seconds") is None or None

    await bench.eventually(gone, "no mask")
    assert await scraper.value("fabric", "holdfast_leases_open", rank="recovery") == 0


async def test_a_lease_whose_holder_died_is_seen_to_fall_silent_and_counts_as_expired_when_it_is_taken_over(
    bench: Bench, scraper: Scraper
) -> None:
    await bench.hang(DRIVE, "error_detected")
    since = bench.mark()
    await bench.inject("dpc", PORT, reason="uncorrectable")
    started = await bench.wait_fact(What.RECOVERY_STARTED, PORT, since=since)
    bench.kill("coordinator")

    async def outlived() -> bool | None:
        """What the alert HoldfastMaskOutlivesLease begins with, when it is not yet time to raise it."""
        silent = await scraper.value("fabric", "holdfast_lease_silent_seconds", lease=str(started.lease))
        allowed = await scraper.value("fabric", "holdfast_lease_allowed_seconds", lease=str(started.lease))
        return (silent is not None and allowed is not None and silent > allowed) or None

    await bench.eventually(outlived, "the lease is silent for longer than it is allowed")
    await bench.restart("coordinator")
    await bench.answer(DRIVE)
    await bench.closed(PORT, started.lease)
    adopted = await bench.wait_fact(What.LEASE_ADOPTED, PORT, since=since)
    assert adopted.data["expired"]
    assert adopted.data["silent_s"] > ALLOWED_S
    every = [fact for fact in bench.facts(What.LEASE_ADOPTED) if fact.cause == "dpc"]
    assert await scraper.value("fabric", "holdfast_leases_adopted_total", cause="dpc") == len(every)
    expired = sum(fact.data["expired"] for fact in every)
    assert await scraper.value("fabric", "holdfast_leases_expired_total", cause="dpc") == expired


async def test_prometheus_itself_finds_nothing_to_say_against_what_every_service_tells(
    bench: Bench, scraper: Scraper
) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (it comes with Prometheus)")
    await be_refused(bench, 1)
    for name in SERVICES:
        checking = await asyncio.create_subprocess_exec(
            promtool,
            "check",
            "metrics",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await checking.communicate((await scraper.text(name)).encode())
        assert (checking.returncode, said) == (0, b""), name


async def test_one_instance_owns_the_host_and_the_other_stands_by_until_it_takes_over(
    bench: Bench, scraper: Scraper
) -> None:
    await bench.fleet.spawn("coordinator", "second")

    async def standing(name: str, owner: int, standby: int) -> None:
        async def look() -> bool | None:
            seen = [await scraper.value(name, f"holdfast_{role}", host="lab") for role in ("owner", "standby")]
            return seen == [owner, standby] or None

        await bench.eventually(look, f"{name} owner {owner}, standby {standby}")

    async def listening() -> bool | None:
        return "second" in scraper._urls or None

    await bench.eventually(listening, "the second coordinator serves its metrics")
    await standing("coordinator", 1, 0)
    await standing("second", 0, 1)
    bench.kill("coordinator")
    await standing("second", 1, 0)
    assert await scraper.value("fabric", "holdfast_owner") is None


async def test_a_bus_that_is_away_is_told_and_so_is_its_return(bench: Bench, scraper: Scraper) -> None:
    assert await scraper.value("fabric", "holdfast_bus_connected") == 1
    bench.kill("nats")

    async def connected(value: int) -> bool | None:
        return await scraper.value("fabric", "holdfast_bus_connected") == value or None

    await bench.eventually(lambda: connected(0), "the fabric is off the bus")
    await bench.restart("nats")
    await bench.eventually(lambda: connected(1), "the fabric is back")
    assert (await scraper.value("fabric", "holdfast_bus_reconnects_total") or 0) >= 1
