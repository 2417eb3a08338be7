"""Load: what is in flight, and a minute of throughput, failures and latency, by a clock of the test's own."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from reward_services import ImageInvalid, Overloaded, Score, ScoredItem
from reward_services.http.app import create_app
from reward_services.http.load import Load
from reward_services.schema import Latency, LoadReport, RewardLoad
from reward_services.scorers.jpeg import JpegScorer

NOTHING = RewardLoad(id="clip", in_flight_images=0, images_per_s=0, failed_images=0, latency_ms=None)


class Clock:
    """Seconds, as the test sets them."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def items(*scores: Score) -> list[ScoredItem]:
    return [
        ScoredItem(id=str(index), index=index, scores={"clip": score}) for index, score in enumerate(scores)
    ]


def test_what_is_in_flight_is_counted_by_image_and_reward() -> None:
    load = Load()
    with load.under_way(["clip", "jpeg"], 3), load.under_way(["clip"], 4):
        assert [load.of(name).in_flight_images for name in ("clip", "jpeg", "other")] == [7, 3, 0]
    assert [load.of(name).in_flight_images for name in ("clip", "jpeg", "other")] == [0, 0, 0]


def test_scores_and_failures_of_the_window() -> None:
    """30 scores and 1 failure in a window of 60 s: 0.5 images a second, 1 failed; then they are forgotten."""
    clock = Clock()
    load = Load(clock=clock)
    with load.under_way(["clip"], 31) as answered:
        clock.now += 2
        answered(items(*[Score.of(1.0)] * 30, Score.failed(ImageInvalid("torn"))))
    clock.now += 59.9
    assert load.of("clip") == RewardLoad(
        id="clip",
        in_flight_images=0,
        images_per_s=0.5,
        failed_images=1,
        latency_ms=Latency(p50=2000, p95=2000),
    )
    clock.now += 0.1
    assert load.of("clip") == NOTHING


def test_percentiles_are_of_the_answered_requests() -> None:
    """1 to 101 ms, shuffled: the median is the 51st, p95 the 96th. What was refused at once has no part."""
    clock = Clock()
    load = Load(clock=clock)
    for milliseconds in sorted(range(1, 102), key=lambda number: number * 37 % 101):
        with load.under_way(["clip"], 1) as answered:
            clock.now += milliseconds / 1000
            answered(items(Score.of(0.0)))
    with pytest.raises(Overloaded), load.under_way(["clip"], 5):
        raise Overloaded("full")
    found = load.of("clip")
    assert found.latency_ms == Latency(p50=51, p95=96)
    assert (found.failed_images, found.in_flight_images) == (5, 0)


def test_the_endpoint_tells_of_every_reward(
    rewards_here: Callable[..., Any], json_item: Callable[..., Any], draw: Callable[..., Any]
) -> None:
    async def run() -> LoadReport:
        app = create_app(rewards_here({"jpeg": JpegScorer(), "idle": JpegScorer()}))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            good, torn = [json_item(picture) for picture in draw(2)]
            torn["image"]["data"] = "AAAA"
            await client.post("/v1/scores", json={"rewards": ["jpeg"], "items": [good, torn, good]})
            await client.post("/v1/scores", json={"rewards": ["unknown"], "items": [good]})
            return LoadReport.model_validate_json((await client.get("/v1/load")).content)

    report = asyncio.run(run())
    busy, idle = report.data
    assert (report.window_s, busy.id, idle) == (60.0, "jpeg", NOTHING.model_copy(update={"id": "idle"}))
    assert (busy.images_per_s, busy.failed_images, busy.in_flight_images) == (0.033, 1, 0)
    assert busy.latency_ms is not None
    assert busy.latency_ms.p50 > 0
