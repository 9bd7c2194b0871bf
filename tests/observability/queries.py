"""The dashboards' queries, and the paths of the files that Prometheus and Grafana read."""

import json
from pathlib import Path

from dist_resnet.launch.ray.telemetry import WORKER_COUNTERS

ROOT = Path(__file__).parents[2]
PROMETHEUS, GRAFANA = ROOT / "docker" / "prometheus", ROOT / "docker" / "grafana"
BOARDS = sorted((GRAFANA / "dashboards").glob("*.json"))


def exported(name: str) -> str:
    """The name in Prometheus of a metric of `launch.ray.telemetry`."""
    return f"ray_dist_resnet_{name}{'_total' if name in WORKER_COUNTERS else ''}"


def queries_of(board: Path) -> list[str]:
    """A dashboard's queries, its variable set to a run named `run`."""
    content = json.loads(board.read_text())
    targets = [target for panel in content["panels"] for target in panel["targets"]]
    asked = [target["expr"] for target in [*targets, *content["annotations"]["list"]]]
    return [query.replace("$run", "run") for query in asked]
