"""What a run tells Prometheus of its scoring: the coordinator's counters and queue, and the ranks' waits."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from reward_services import Rewards, Score
from reward_services.observed import Metric, Record
from trainer.coordinator import Coordinator, Image
from trainer.pace import Pace

COUNTERS = {
    "images": Metric("coord_items", "counter", "Images that ranks asked to have scored", ()),
    "reward_calls": Metric("coord_reward_calls", "counter", "Batches sent to a reward", ()),
    "cache_hits": Metric("coord_cache_hits", "counter", "Scores known already", ()),
    "cache_misses": Metric("coord_cache_misses", "counter", "Scores asked of a reward", ()),
    "retries": Metric("coord_retries", "counter", "Batches tried again", ()),
    "failures": Metric("coord_failures", "counter", "Scores given up", ()),
}
GAUGES = {
    "queue_depth": Metric("coord_queue_items", "gauge", "Images that no reward was asked for yet", ()),
    "oldest_wait_s": Metric("coord_oldest_wait_seconds", "gauge", "Longest wait without a score", ()),
}
DEADLINE = Metric("coord_deadline_seconds", "gauge", "The wait after which a score is given up", ())
STALL = Metric(
    "trainer_reward_stall_seconds", "counter", "Seconds that ranks did nothing but wait for scores", ()
)
METRICS = (*COUNTERS.values(), *GAUGES.values(), DEADLINE, STALL)

_PERIOD_S = 1.0


class ObservedCoordinator(Coordinator):
    """A coordinator that notes its `stats` every second, from its first request on."""

    def __init__(
        self, rewards: Rewards, *, names: Sequence[str], record: Record, pace: Pace | None = None
    ) -> None:
        super().__init__(rewards, names=names, pace=pace)
        self._record, self._deadline_s = record, (pace or Pace()).deadline_s
        self._noted: Mapping[str, float] = dict.fromkeys(COUNTERS, 0.0)
        self._noting: asyncio.Task[None] | None = None

    async def score(
        self, images: Sequence[Image], prompts: Sequence[str], rewards: Sequence[str] | None = None
    ) -> dict[str, list[Score]]:
        """As `Coordinator.score`."""
        if self._noting is None:
            self._noting = asyncio.get_running_loop().create_task(self._note_regularly())
        return await super().score(images, prompts, rewards)

    def note(self) -> None:
        """Note what was counted since the last time, and how long the queue is now."""
        stats = self.stats()
        for name, metric in COUNTERS.items():
            if stats[name] > self._noted[name]:
                self._record(metric, stats[name] - self._noted[name])
        for name, metric in GAUGES.items():
            self._record(metric, stats[name])
        self._record(DEADLINE, self._deadline_s)
        self._noted = stats

    async def _note_regularly(self) -> None:
        while True:
            self.note()
            await asyncio.sleep(_PERIOD_S)
