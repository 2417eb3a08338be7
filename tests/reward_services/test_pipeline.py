"""What a replica does with batches, without a replica: shares, deadlines, overlap, and the golden sample."""

import asyncio
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from reward_services import ReplicaFailed, Score
from reward_services.observed import Metric, Observed
from reward_services.pipeline import Call, Pipeline
from reward_services.scorers.clip import ClipScorer
from reward_services.scorers.jpeg import JpegScorer
from reward_services.scorers.scorer import Pixels, Scorer, finite_score

Draw = Callable[..., list[Any]]


def call(images: list[Any], left_s: float = 10.0) -> Call:
    return Call(images, ["a"] * len(images), time.monotonic() + left_s)


def unwatched(scorer: Scorer[Any, Any]) -> Pipeline:
    return Pipeline(scorer, Observed("mine", lambda *_, **__: None))


def test_each_call_gets_its_own_scores(draw: Draw) -> None:
    images = draw(6)
    answers = asyncio.run(
        unwatched(JpegScorer()).score([call(images[:1]), call(images[1:4]), call(images[4:])])
    )
    assert [len(answer) for answer in answers] == [1, 3, 2]
    assert [score for answer in answers for score in answer] == JpegScorer().score(images, ["a"] * 6)


def test_a_late_call_fails_and_the_others_do_not(draw: Draw) -> None:
    images = draw(4)
    late, timely = asyncio.run(unwatched(JpegScorer()).score([call(images[:2], -1.0), call(images[2:])]))
    assert [score.error.type for score in late if score.error] == ["/problems/deadline-exceeded"] * 2
    assert timely == JpegScorer().score(images[2:], ["a"] * 2)


def test_poison_of_one_caller_hurts_no_other(draw: Draw) -> None:
    images = draw(4)
    poison = [images[0][..., 0], np.zeros((4, 0, 3), np.uint8)]
    hurt, fine = asyncio.run(unwatched(JpegScorer()).score([call(poison), call(images)]))
    assert [score.ok for score in hurt] == [False, False]
    assert fine == JpegScorer().score(images, ["a"] * 4)


def test_a_call_is_split_in_order(draw: Draw) -> None:
    whole = call(draw(5))
    parts = whole.split(2)
    assert [len(part.prompts) for part in parts] == [2, 2, 1]
    assert [id(image) for part in parts for image in part.images] == [id(image) for image in whole.images]
    assert all(part.expires == whole.expires for part in parts)


def test_a_changed_model_is_not_healthy(tiny_clip: Any) -> None:
    async def run() -> None:
        scorer = ClipScorer(str(tiny_clip))
        pipeline = unwatched(scorer)
        await pipeline.check()
        scorer.images.projection.weight.mul_(-1)
        with pytest.raises(ReplicaFailed, match="at the start it scored"):
            await pipeline.check()

    asyncio.run(run())


class Busy(Scorer[NDArray[np.uint8], float]):
    """`sign` times the mean pixel; each batch, but not the golden sample, waits until it is let."""

    revision = "1"

    def __init__(self) -> None:
        self.let = threading.Semaphore(0)
        self.sign = 1.0

    def prepare(self, image: Pixels, prompt: str) -> NDArray[np.uint8]:
        return np.asarray(image)

    def run(self, items: Sequence[NDArray[np.uint8]]) -> list[float]:
        if len(items) > 1:
            self.let.acquire(timeout=9)
        return [self.sign * float(item.mean()) for item in items]

    def finish(self, raw: float) -> Score:
        return finite_score(raw)


def test_a_slow_replica_is_well_as_long_as_it_answers(draw: Draw) -> None:
    """The golden sample stands behind two batches: the end of the first is enough, that of none is not."""

    async def run() -> None:
        scorer = Busy()
        pipeline = unwatched(scorer)
        batches = [asyncio.create_task(pipeline.score([call(draw(2))])) for _ in range(2)]
        await asyncio.sleep(0.1)
        check = asyncio.create_task(pipeline.check())
        await asyncio.sleep(0.1)
        assert not check.done()
        scorer.let.release()
        await asyncio.wait_for(check, 5)
        assert [batch.done() for batch in batches] == [True, False]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pipeline.check(), 0.2)
        scorer.let.release()
        await asyncio.gather(*batches)
        await asyncio.wait_for(pipeline.check(), 5)

    asyncio.run(run())


@pytest.mark.parametrize("wrong", [-1.0, math.nan])
def test_a_busy_replica_that_answers_wrongly_is_not_well_until_it_is_right(draw: Draw, wrong: float) -> None:
    """Serve replaces what fails three times in a row: between two golden samples no batch may excuse it."""

    async def run() -> None:
        scorer, under_load = Busy(), True
        pipeline = unwatched(scorer)

        async def ask() -> None:
            while under_load:
                scorer.let.release()
                await pipeline.score([call(draw(2))])

        async def well() -> bool:
            try:
                await asyncio.wait_for(pipeline.check(), 5)
            except ReplicaFailed:
                return False
            return True

        asking = [asyncio.create_task(ask()) for _ in range(2)]
        assert await well()
        scorer.sign = wrong
        assert [await well() for _ in range(6)][2:] == [False] * 4
        scorer.sign = 1.0
        assert [await well() for _ in range(4)][2:] == [True] * 2
        under_load = False
        await asyncio.gather(*asking)

    asyncio.run(run())


def test_a_model_that_cannot_score_its_golden_sample_never_serves(tiny_clip: Any) -> None:
    scorer = ClipScorer(str(tiny_clip))
    scorer.images.projection.weight.fill_(math.nan)
    with pytest.raises(ReplicaFailed, match="golden sample cannot be scored"):
        unwatched(scorer)


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
