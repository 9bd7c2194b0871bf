"""Alert rules and dashboards. Oracles: Prometheus' own promtool, and the names that the code exports."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from observability.queries import BOARDS, GRAFANA, PROMETHEUS, ROOT, exported, queries_of

from dist_resnet.launch.ray import telemetry

PAGE = (ROOT / "docs" / "observability.md").read_text()
RULES = yaml.safe_load((PROMETHEUS / "alerts.yaml").read_text())["groups"][0]["rules"]
OURS = {
    exported(name)
    for names in (telemetry.WORKER_GAUGES, telemetry.WORKER_COUNTERS, telemetry.RUN_GAUGES)
    for name in names
}


def _promtool(*words: str) -> str:
    if not shutil.which("promtool"):
        pytest.skip("promtool is not installed (apt-get install prometheus)")
    done = subprocess.run(["promtool", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_query_and_alert_uses_exported_metrics():
    for query in [rule["expr"] for rule in RULES] + [query for board in BOARDS for query in queries_of(board)]:
        asked = set(re.findall(r"\bray_dist_resnet_\w+", query))
        assert asked <= OURS, query
        assert asked or re.search(r"\bray_node_\w+|\bALERTS\b", query), query


def test_every_metric_is_in_an_alert_or_a_panel_and_every_metric_and_alert_on_the_page():
    asked = " ".join([rule["expr"] for rule in RULES] + [query for board in BOARDS for query in queries_of(board)])
    for name in OURS:
        assert re.search(rf"\b{name}\b", asked), name
        assert f"`{name.removeprefix('ray_dist_resnet_')}`" in PAGE, name
    for rule in RULES:
        assert f"`{rule['alert']}`" in PAGE


def test_every_alert_says_how_bad_it_is_and_what_to_do():
    for rule in RULES:
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert "$labels.run" in rule["annotations"]["summary"]
        assert len(rule["annotations"]["description"]) > 40


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.stem)
def test_a_dashboard_asks_the_provisioned_source_and_no_panel_overlaps_another(board):
    (source,) = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yaml").read_text())[
        "datasources"
    ]
    content = json.loads(board.read_text())
    panels = content["panels"]
    assert {panel["datasource"]["uid"] for panel in panels} == {source["uid"]}
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        assert panel["title"]
        assert panel["description"]
        taken |= cells


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.stem)
def test_promtool_parses_every_query_of_a_dashboard(board, tmp_path):
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries_of(board))]
    path = tmp_path / "queries.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    assert f"{len(rules)} rules found" in _promtool("check", "rules", str(path))


def test_promtool_accepts_the_configuration_and_its_rules():
    assert f"{len(RULES)} rules found" in _promtool("check", "config", str(PROMETHEUS / "prometheus.yml"))


def test_every_alert_fires_when_it_should_and_not_before():
    path = Path(__file__).parent / "alerts_test.yaml"
    _promtool("test", "rules", str(path))
    tested = path.read_text()
    for rule in RULES:
        assert f'alertname="{rule["alert"]}", alertstate="firing", run=' in tested
