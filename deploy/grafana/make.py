"""Writes the dashboards of dashboards.yaml as Grafana imports them: `python -m deploy.grafana.make`.

Grafana asks at the import which Prometheus to read; deploy/prometheus/README.md says what the metrics mean.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent

_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_WIDTH, _HEIGHT = 12, 8


def written() -> dict[str, str]:
    """What the files hold, by name."""
    tables = yaml.safe_load((FOLDER / "dashboards.yaml").read_text(encoding="utf-8"))
    return {
        f"{uid}.json": json.dumps(dashboard(uid, table), indent=2) + "\n" for uid, table in tables.items()
    }


def dashboard(uid: str, table: Mapping[str, Any]) -> dict[str, Any]:
    """A dashboard of two panels in a row; one whose queries name `$reward` lets rewards be chosen."""
    queries = [query for panel in table["panels"] for query in panel["queries"].values()]
    source = {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    reward = {
        "name": "reward",
        "label": "Reward",
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": "label_values(ray_reward_model_info, reward)", "refId": "reward"},
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
    }
    return {
        "uid": uid,
        "title": table["title"],
        "tags": ["diffusion-sharpening"],
        "schemaVersion": 39,
        "time": {"from": "now-6h", "to": "now"},
        "refresh": "30s",
        "templating": {"list": [source, reward] if "$reward" in "".join(queries) else [source]},
        "panels": [_panel(place, panel) for place, panel in enumerate(table["panels"])],
    }


def _panel(place: int, panel: Mapping[str, Any]) -> dict[str, Any]:
    row, column = divmod(place, 2)
    return {
        "type": "timeseries",
        "title": panel["title"],
        "datasource": _SOURCE,
        "gridPos": {"x": column * _WIDTH, "y": row * _HEIGHT, "w": _WIDTH, "h": _HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel["unit"]}, "overrides": []},
        "options": {"tooltip": {"mode": "multi"}, "legend": {"displayMode": "list", "placement": "bottom"}},
        "targets": [
            {"refId": chr(ord("A") + number), "datasource": _SOURCE, "expr": query, "legendFormat": legend}
            for number, (legend, query) in enumerate(panel["queries"].items())
        ],
    }


if __name__ == "__main__":
    for name, content in written().items():
        (FOLDER / name).write_text(content, encoding="utf-8")
