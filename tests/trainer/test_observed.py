"""The coordinator's metrics, with a list where Ray's would be."""

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np

from reward_services import RewardInfo, RewardNotReady, Score
from reward_services.observed import Metric
from trainer.observed import ObservedCoordinator
from trainer.pace import Pace


class Slow:
    """A reward that fails once, and then answers when it is let."""

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()
        self.calls = 0

    async def describe(self, rewards: Any = None) -> list[RewardInfo]:
        return [
            RewardInfo(
                id="slow",
                revision="r",
                range=(None, None),
                higher_is_better=True,
                deterministic=True,
                modality=("image",),
                max_items=64,
                ready=True,
            )
        ]

    async def score(
        self, images: Sequence[Any], prompts: Sequence[str], *, rewards: Sequence[str], deadline_s: float
    ) -> dict[str, list[Score]]:
        self.calls += 1
        if self.calls == 1:
            raise RewardNotReady("not yet")
        await self.may_answer.wait()
        return {"slow": [Score.of(1.0)] * len(images)}


def test_what_a_coordinator_counts_is_noted_once() -> None:
    noted: dict[str, list[float]] = {}

    def record(metric: Metric, value: float, /, **labels: str) -> None:
        assert not labels
        noted.setdefault(metric.name, []).append(value)

    async def run() -> None:
        rewards = Slow()
        coordinator = ObservedCoordinator(
            rewards, names=["slow"], record=record, pace=Pace(batch_images=2, batches_at_once=1, window_ms=1)
        )
        images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
        waiting = asyncio.create_task(coordinator.score(list(images), [""] * 5))
        while rewards.calls < 2:
            await asyncio.sleep(0.01)
        coordinator.note()
        assert noted["coord_queue_items"][-1] == 3
        assert 0.05 < noted["coord_oldest_wait_seconds"][-1] < 30
        assert noted["coord_deadline_seconds"][-1] == 180
        rewards.may_answer.set()
        await waiting
        await coordinator.score(list(images), [""] * 5)
        coordinator.note()
        coordinator.note()

    asyncio.run(run())
    totals = {name: sum(values) for name, values in noted.items()}
    assert (totals["coord_items"], totals["coord_retries"], totals["coord_reward_calls"]) == (10, 1, 4)
    assert (totals["coord_cache_hits"], totals["coord_cache_misses"]) == (5, 5)
    assert "coord_failures" not in noted
    assert (noted["coord_queue_items"][-1], noted["coord_oldest_wait_seconds"][-1]) == (0, 0)
