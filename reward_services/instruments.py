"""RAY. Metrics of replicas and actors, exported by Ray: its agent on each node serves them to Prometheus."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.util.metrics import Counter, Gauge, Histogram

from reward_services.observed import Metric


class Instruments:
    """A `Record` into Ray's metrics. They are made where they are first used: it can be sent to an actor."""

    def __init__(self) -> None:
        self._notes: dict[str, Callable[..., None]] = {}

    def __call__(self, metric: Metric, value: float, /, **labels: str) -> None:
        """Note a value; Ray adds its prefix to the name, and the labels of the process."""
        if metric.name not in self._notes:
            self._notes[metric.name] = _instrument(metric)
        self._notes[metric.name](value, tags=labels)


def _instrument(metric: Metric) -> Callable[..., None]:
    named: dict[str, Any] = {
        "name": metric.name,
        "description": metric.meaning,
        "tag_keys": metric.labels,
    }
    if metric.kind == "counter":
        return Counter(**named).inc
    if metric.kind == "gauge":
        return Gauge(**named).set
    return Histogram(**named, boundaries=list(metric.buckets)).observe
