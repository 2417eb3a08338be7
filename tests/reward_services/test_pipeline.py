"""What a replica does with batches, without a replica: shares, deadlines, overlap, and the golden sample."""

import asyncio
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from reward_services import ReplicaFailed
from reward_services.observed import Metric, Observed
from reward_services.pipeline import Call, Pipeline
from reward_services.scorers.clip import ClipScorer
from reward_services.scorers.jpeg import JpegScorer

Draw = Callable[..., list[Any]]


def call(images: list[Any], left_s: float = 10.0) -> Call:
    return Call(images, ["a"] * len(images), time.monotonic() + left_s)


def test_each_call_gets_its_own_scores(draw: Draw) -> None:
    images = draw(6)
    answers = asyncio.run(
        Pipeline(JpegScorer()).score([call(images[:1]), call(images[1:4]), call(images[4:])])
    )
    assert [len(answer) for answer in answers] == [1, 3, 2]
    assert [score for answer in answers for score in answer] == JpegScorer().score(images, ["a"] * 6)


def test_a_late_call_fails_and_the_others_do_not(draw: Draw) -> None:
    images = draw(4)
    late, timely = asyncio.run(Pipeline(JpegScorer()).score([call(images[:2], -1.0), call(images[2:])]))
    assert [score.error.type for score in late if score.error] == ["/problems/deadline-exceeded"] * 2
    assert timely == JpegScorer().score(images[2:], ["a"] * 2)


def test_poison_of_one_caller_hurts_no_other(draw: Draw) -> None:
    images = draw(4)
    poison = [images[0][..., 0], np.zeros((4, 0, 3), np.uint8)]
    hurt, fine = asyncio.run(Pipeline(JpegScorer()).score([call(poison), call(images)]))
    assert [score.ok for score in hurt] == [False, False]
    assert fine == JpegScorer().score(images, ["a"] * 4)


def test_a_call_is_split_in_order(draw: Draw) -> None:
    whole = call(draw(5))
    parts = whole.split(2)
    assert [len(part.prompts) for part in parts] == [2, 2, 1]
    assert [id(image) for part in parts for image in part.images] == [id(image) for image in whole.images]
    assert all(part.expires == whole.expires for part in parts)


def test_a_changed_model_is_not_healthy(tiny_clip: Any) -> None:
    scorer = ClipScorer(str(tiny_clip))
    pipeline = Pipeline(scorer)
    asyncio.run(pipeline.check())
    scorer.images.projection.weight.mul_(-1)
    with pytest.raises(ReplicaFailed, match="at the start it scored"):
        asyncio.run(pipeline.check())


def test_a_model_that_cannot_score_its_golden_sample_never_serves(tiny_clip: Any) -> None:
    scorer = ClipScorer(str(tiny_clip))
    scorer.images.projection.weight.fill_(math.nan)
    with pytest.raises(ReplicaFailed, match="golden sample cannot be scored"):
        Pipeline(scorer)


def test_phases_sizes_and_outcomes_are_measured(tiny_clip: Any, draw: Draw) -> None:
    notes: list[tuple[str, float, dict[str, str]]] = []

    def record(metric: Metric, value: float, /, **labels: str) -> None:
        notes.append((metric.name, value, labels))

    async def run() -> None:
        pipeline = Pipeline(ClipScorer(str(tiny_clip)), Observed("mine", record))
        await asyncio.gather(pipeline.score([call(draw(2)), call(draw(1), -1.0)]), pipeline.check())
        with pytest.raises(AttributeError):
            await pipeline.score([Call([None], ["a"], math.inf)])  # type: ignore[list-item]

    asyncio.run(run())
    seconds = [(labels["phase"], value) for name, value, labels in notes if name == "reward_request_seconds"]
    phases = [phase for phase, _ in seconds]
    assert phases == ["queue", "queue", "prepare", "run", "total", "total", "queue", "prepare"]
    took = dict(seconds[:6])
    assert 0 < took["prepare"] + took["run"] <= took["total"]
    assert [value for name, value, _ in notes if name == "reward_batch_items"] == [2, 1]
    assert [(labels["outcome"], value) for name, value, labels in notes if name == "reward_items"] == [
        *(("ok", 2), ("deadline-exceeded", 1), ("replica-failed", 1))
    ]
    assert ("reward_golden_delta", 0.0, {"reward": "mine"}) in notes
