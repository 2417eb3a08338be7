"""Metrics: what the endpoint answered and scored, as Prometheus' own parser reads it back."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from reward_services import ImageInvalid, Score, ScoredItem
from reward_services.http.app import create_app
from reward_services.http.lanes import Lanes
from reward_services.http.metrics import Metrics
from reward_services.scorers.jpeg import JpegScorer

Samples = dict[tuple[str, tuple[str, ...]], float]


def samples(text: str) -> Samples:
    """Values by name and the values of the labels, in the order of the labels' names; buckets left out."""
    return {
        (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith(("_bucket", "_created"))
    }


def test_items_are_counted_by_outcome() -> None:
    metrics = Metrics(Lanes())
    scores = [Score.of(0.0), Score.of(1.0), Score.failed(ImageInvalid("torn"))]
    metrics.scored([ScoredItem(id="a", index=0, scores={"clip": score}) for score in scores])
    read = samples(metrics.text().decode())
    assert read["reward_http_items_total", ("ok", "clip")] == 2
    assert read["reward_http_items_total", ("image-invalid", "clip")] == 1


def test_whoever_waits_is_seen() -> None:
    async def run() -> Samples:
        lanes = Lanes(at_once=4)
        metrics = Metrics(lanes)
        async with lanes.admitted("others", 4):
            waiting = asyncio.create_task(enter(lanes))
            await asyncio.sleep(0)
            seen = samples(metrics.text().decode())
        await waiting
        return seen

    async def enter(lanes: Lanes) -> None:
        async with lanes.admitted("train", 3):
            pass

    seen = asyncio.run(run())
    assert seen["reward_http_images_under_way", ()] == 4
    assert [seen["reward_http_images_waiting", (lane,)] for lane in ("train", "eval", "others")] == [3, 0, 0]


def test_the_endpoint_serves_them_with_routes_not_paths(
    rewards_here: Callable[..., Any], json_item: Callable[..., Any], draw: Callable[..., Any]
) -> None:
    async def run() -> httpx.Response:
        app = create_app(rewards_here({"jpeg": JpegScorer()}))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            for path in ("/v1/rewards/jpeg", "/v1/rewards/nope", "/unheard/of"):
                await client.get(path)
            items = [json_item(picture) for picture in draw(2)]
            await client.post("/v1/scores", json={"rewards": ["jpeg"], "items": items})
            return await client.get("/metrics")

    response = asyncio.run(run())
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    read = samples(response.text)
    assert {labels for name, labels in read if name == "reward_http_request_seconds_count"} == {
        ("/v1/rewards/{reward_id}", "200"),
        ("/v1/rewards/{reward_id}", "404"),
        ("other", "404"),
        ("/v1/scores", "200"),
    }
    assert read["reward_http_items_total", ("ok", "jpeg")] == 2
