"""deploy/observability: the rules fire when they should, and nothing asks for a metric or a label that nobody has."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from prometheus_client.parser import text_string_to_metric_families

from shared.protocol.routes import SERVICES
from shared.runtime import Metrics, gauges
from shared.runtime._counters import COUNTERS, ERRORS, FACTS, RECOVERY_DURATION

ROOT: Final = Path(__file__).parents[3]
HERE: Final = ROOT / "deploy/observability"
DASHBOARD: Final = HERE / "grafana/dashboards/holdfast.json"
ALERTS: Final = HERE / "alerts.yml"

# Labels that Prometheus adds, or that only its own series have.
_OF_PROMETHEUS: Final = frozenset({"job", "instance", "le", "alertname", "alertstate"})
_VARIABLES: Final = {"$__rate_interval": "1m", "$__range": "1h", "$host": ".*"}
_COLUMNS: Final = 24  # of Grafana's grid


def known_metrics() -> frozenset[str]:
    """Return every name of a sample that a service may show."""
    found = {"up"}
    for service in SERVICES:
        body, _ = Metrics(service).render()
        for family in text_string_to_metric_families(body.decode()):
            suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
            found |= {family.name + suffix for suffix in suffixes}
    return frozenset(found)


def known_labels() -> frozenset[str]:
    made_of_facts = (*COUNTERS, FACTS, RECOVERY_DURATION, ERRORS)
    ours = {name for measure in made_of_facts for name in measure.label_names}
    ours |= {label for gauge in gauges.ALL for label in gauge.labels}
    return frozenset({*ours, *_OF_PROMETHEUS, "service", "host"})


def dashboard() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return document


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def asked_by_the_dashboard() -> Iterator[str]:
    for panel in panels():
        yield from (target["expr"] for target in panel["targets"])
    yield from (annotation["expr"] for annotation in dashboard()["annotations"]["list"])


def filled_in(expression: str) -> str:
    for name, value in _VARIABLES.items():
        expression = expression.replace(name, value)
    assert "$" not in expression, f"a variable that is not there: {expression}"
    return expression


def asked_by_the_alerts() -> Iterator[str]:
    """Return the expressions, without a YAML parser: a rule's lines between `expr:` and the next key."""
    text = ALERTS.read_text()
    yield from re.findall(r"expr: (?:\|\n)?((?:.|\n)*?)\n        (?:for|labels):", text)


def shown_by_the_alerts() -> frozenset[str]:
    return frozenset(re.findall(r"\$labels\.(\w+)", ALERTS.read_text()))


EXPRESSIONS: Final = (*asked_by_the_dashboard(), *asked_by_the_alerts())


def promtool(*arguments: str | Path) -> None:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed (it comes with Prometheus)")
    done = subprocess.run(
        [program, *map(str, arguments)], check=False, capture_output=True, text=True, timeout=60, cwd=HERE
    )
    assert done.returncode == 0, done.stdout + done.stderr


# --- Prometheus ---


def test_the_alert_rules_are_rules() -> None:
    promtool("check", "rules", "--lint-fatal", ALERTS)


def test_each_alert_fires_when_it_should_and_keeps_silent_when_it_should() -> None:
    promtool("test", "rules", HERE / "alerts_test.yml")


def test_every_alert_has_a_story_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    """Fired ones are named with what they say; `exp_alerts: []` stands for silence."""
    stories = (HERE / "alerts_test.yml").read_text()
    for name in re.findall(r"alert: (\w+)", ALERTS.read_text()):
        told = re.findall(rf"alertname: {name}\b(?:.*\n)*?.*exp_alerts:(.*)", stories)
        assert any("[]" not in alerts for alerts in told), f"{name} never fires"
        assert any("[]" in alerts for alerts in told), f"{name} always fires"


def test_prometheus_takes_its_configuration() -> None:
    promtool("check", "config", HERE / "prometheus.yml")


@pytest.mark.parametrize("name", ["targets.yml", "targets.cluster.yml"])
def test_every_service_is_a_target(name: str) -> None:
    targets = (HERE / name).read_text()
    assert set(re.findall(r"labels: {service: (\w+)}", targets)) == {service.value for service in SERVICES}


# --- Names ---


def test_expressions_were_found() -> None:
    assert len(EXPRESSIONS) > 30
    assert len(list(asked_by_the_alerts())) == ALERTS.read_text().count("- alert:")


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_asks_only_for_metrics_and_labels_that_exist(expression: str) -> None:
    without_texts = re.sub(r'"[^"]*"', '""', expression)
    asked = set(re.findall(r"\b(?:holdfast|process)_\w+|\bup\b", without_texts))
    assert asked or "ALERTS" in without_texts, "it asks for nothing"
    assert asked <= known_metrics()
    grouped = re.findall(r"\b(?:by|on|ignoring|without)\s*\(([^)]*)\)", without_texts)
    matched = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", without_texts)
    labels = {label.strip() for group in grouped for label in group.split(",")} | set(matched)
    assert labels <= known_labels()


def test_an_alert_shows_only_labels_that_exist() -> None:
    assert shown_by_the_alerts() <= known_labels()


def test_prometheus_can_read_every_expression_of_the_dashboard(tmp_path: Path) -> None:
    rules = [
        {"record": f"dashboard:{number}", "expr": filled_in(expression)}
        for number, expression in enumerate(asked_by_the_dashboard())
    ]
    file = tmp_path / "dashboard.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))  # JSON is YAML
    promtool("check", "rules", file)


# --- Grafana ---


def test_the_dashboard_finds_its_data_source_by_a_variable() -> None:
    """So it works under whatever name Prometheus has in somebody's Grafana."""
    variables = {variable["name"]: variable for variable in dashboard()["templating"]["list"]}
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    wanted = {"type": "prometheus", "uid": "${datasource}"}
    assert variables["host"]["datasource"] == wanted
    for panel in panels():
        assert panel["datasource"] == wanted
        assert all(target["datasource"] == wanted for target in panel["targets"])
    provisioned = (HERE / "grafana/provisioning/datasources/prometheus.yaml").read_text()
    assert "type: prometheus\n" in provisioned


def test_the_dashboard_is_of_the_schema_that_grafana_reads() -> None:
    """Grafana's classic model, which it reads from files; a newer Grafana brings an older schema up to date by itself.

    41 is that of Grafana 12.0, so the oldest one that the compose files may be given.
    """
    document = dashboard()
    assert document["schemaVersion"] == 41
    assert 0 < len(document["uid"]) <= 40
    assert document["title"]
    ids = [panel["id"] for panel in document["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in panels():
        assert panel["type"] in {"stat", "timeseries", "state-timeline"}
        assert panel["title"]
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references)


def test_no_panel_lies_on_another_or_beside_the_grid() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= _COLUMNS
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


def test_every_metric_that_says_how_it_stands_is_on_the_dashboard() -> None:
    shown = " ".join(asked_by_the_dashboard())
    ours = {name for name in known_metrics() if name.startswith("holdfast_") and not name.endswith(("_sum", "_count"))}
    assert {name for name in ours if name not in shown} == set()
