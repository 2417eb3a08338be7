"""What the HTTP endpoint counts of itself, in Prometheus' text format at /metrics.

Every replica of the endpoint counts for itself. Labels are few: routes, statuses, rewards, kinds of problem
and lanes, never a prompt or a caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from reward_services.http.lanes import Lanes
from reward_services.observed import outcome
from reward_services.schema import Lane, ScoredItem

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_ELSEWHERE = "other"


class Metrics:
    """The counters of one endpoint."""

    def __init__(self, lanes: Lanes) -> None:
        self._registry = CollectorRegistry()
        self._requests = Histogram(
            "reward_http_request_seconds",
            "Time from a request's headers to the end of its answer",
            ["route", "status"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._items = Counter(
            "reward_http_items",
            "Items answered, by outcome: ok, or the type of the problem",
            ["reward", "outcome"],
            registry=self._registry,
        )
        waiting = Gauge(
            "reward_http_images_waiting", "Images of callers who wait", ["lane"], registry=self._registry
        )
        for lane in get_args(Lane):
            waiting.labels(lane).set_function(partial(lanes.images_waiting, lane))
        under_way = Gauge("reward_http_images_under_way", "Images being scored", registry=self._registry)
        under_way.set_function(lambda: lanes.images_under_way)

    def answered(self, route: str | None, status: int, seconds: float) -> None:
        """Note a request; `route` is the route's pattern, None where there was none for it."""
        self._requests.labels(route or _ELSEWHERE, status).observe(seconds)

    def scored(self, items: Sequence[ScoredItem]) -> None:
        """Note what came of the items of a request."""
        for reward, score in ((name, score) for item in items for name, score in item.scores.items()):
            self._items.labels(reward, outcome(score)).inc()

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self._registry)
