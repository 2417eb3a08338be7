"""When scores come: by hand, and as the real coordinator has them from replicas that sleep."""

import asyncio
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reward_services import RewardInfo, Score
from tests.small_run import configured, work_of
from trainer.backlog import Previews, Replicas, answered_s
from trainer.coordinator import Coordinator
from trainer.pace import Pace
from trainer.work import sampled


@pytest.mark.parametrize(
    ("batch_images", "calls_at_once", "tail_s"),
    [
        (128, 4, 3.2),  # a micro-batch is one call to one replica
        (32, 4, 0.8),  # each replica has a part
        (64, 4, 1.6),  # two have
        (128, 1, 4 * 3.2 - 3.0),  # all calls one after the other, from 1 s to 13.8 s
    ],
)
def test_the_last_scores_come_by_calls(batch_images: int, calls_at_once: int, tail_s: float) -> None:
    """Four micro-batches of 128 previews, one a second, to four replicas of 40 images a second."""
    previews = [Previews(float(second), 128) for second in (1, 2, 3, 4)]
    answered = answered_s(
        previews, {"slow": Replicas(4, 40.0)}, batch_images=batch_images, calls_at_once=calls_at_once
    )
    assert answered["slow"] == pytest.approx(4 + tail_s)


def test_a_call_is_under_way_until_the_slowest_reward_has_answered() -> None:
    """10 previews in calls of 5, one at a time: the fast reward waits for the slow one's first 5 s."""
    replicas = {"fast": Replicas(1, 10.0), "slow": Replicas(1, 1.0)}
    answered = answered_s([Previews(0.0, 10)], replicas, batch_images=5, calls_at_once=1)
    assert answered == pytest.approx({"fast": 5.5, "slow": 10.0})


def test_what_waits_goes_together() -> None:
    """1 + 3 + 3 previews, one call at a time: the 1 goes alone, then 6 that came meanwhile."""
    previews = [Previews(0.0, 1), Previews(0.1, 3), Previews(0.2, 3)]
    answered = answered_s(previews, {"one": Replicas(1, 1.0)}, batch_images=8, calls_at_once=1)
    assert answered["one"] == pytest.approx(1 + 6)


class AtOnce(ThreadPoolExecutor):
    """Does in the caller's thread what threads are given."""

    def submit(self, work: Callable[..., Any], /, *arguments: Any, **options: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(work(*arguments, **options))
        return done


class Jumping(asyncio.SelectorEventLoop):
    """Where nothing is to be done its clock jumps to the next timer: however slow a machine, times are exact.

    A loop's queues, and the turn in which it waits, have no public name: mypy is told to look away there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.set_default_executor(AtOnce())
        self._now = 0.0

    def time(self) -> float:
        return self._now

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            self._now = max(self._now, self._scheduled[0].when())  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


def now() -> float:
    return asyncio.get_running_loop().time()


class Sleeping:
    """`Rewards` by replicas that sleep, each as long as its images take."""

    def __init__(self, replicas: dict[str, Replicas]) -> None:
        self._replicas = replicas
        self._free = {name: asyncio.Semaphore(of_reward.count) for name, of_reward in replicas.items()}
        self.answered_at: dict[str, float] = {}

    async def describe(self, rewards: Any = None) -> list[RewardInfo]:
        return [
            RewardInfo(
                id=name,
                revision="1",
                range=(None, None),
                higher_is_better=True,
                deterministic=True,
                modality=("image",),
                max_items=512,
                ready=True,
            )
            for name in self._replicas
        ]

    async def score(
        self, images: Sequence[Any], prompts: Sequence[str], *, rewards: Sequence[str], deadline_s: float
    ) -> dict[str, list[Score]]:
        async def answer(name: str) -> None:
            async with self._free[name]:
                await asyncio.sleep(len(images) / self._replicas[name].images_per_second)
            self.answered_at[name] = now()

        await asyncio.gather(*map(answer, rewards))
        return {name: [Score.of(1.0)] * len(images) for name in rewards}


async def asked(
    stage: Sequence[Previews], replicas: dict[str, Replicas], pace: Pace, ranks: int
) -> tuple[dict[str, float], float]:
    """When each reward answered last, and how many calls the coordinator counted."""
    rewards = Sleeping(replicas)
    coordinator = Coordinator(rewards, names=list(replicas), pace=pace)
    await coordinator.score([], [])  # as at the start of a run: what is served is known
    numbers, began = itertools.count(), now()

    async def ask(images: int) -> None:
        drawn = [next(numbers).to_bytes(12) for _ in range(images)]  # no two are the same
        pictures = [np.frombuffer(picture, np.uint8).reshape(2, 2, 3) for picture in drawn]
        await coordinator.score(pictures, ["a red circle"] * images)

    async with asyncio.TaskGroup() as waiting:
        for previews in stage:
            await asyncio.sleep(began + previews.came_s - now())
            for _ in range(ranks):
                waiting.create_task(ask(previews.images // ranks))
    ends = {name: at - began for name, at in rewards.answered_at.items()}
    return ends, coordinator.stats()["reward_calls"]


@pytest.mark.parametrize(("batch_images", "calls_at_once"), [(12, 4), (5, 4), (3, 4), (5, 1)], ids=str)
def test_the_coordinator_takes_as_long(
    pipelines: dict[str, Path], tmp_path: Path, batch_images: int, calls_at_once: int
) -> None:
    """Two ranks' three micro-batches of 6 pictures each, one every 0.2 s."""
    options = ["ranks.workers=2", "branching.prompts_per_update=12", "rewards.weights={slow: 1, fast: 1}"]
    options.append(f"rewards.batch_images={batch_images}")
    config = configured(tmp_path, pipelines["epsilon"], *options)
    (stage,) = sampled(config, 0.2 / 36)
    assert [previews.images for previews in stage] == [12, 12, 12]
    assert stage[0].came_s == pytest.approx(0.2)
    replicas = {"slow": Replicas(3, 25.0), "fast": Replicas(1, 120.0)}
    expected = answered_s(stage, replicas, batch_images=batch_images, calls_at_once=calls_at_once)
    pace = Pace(batch_images=batch_images, batches_at_once=calls_at_once)
    with asyncio.Runner(loop_factory=Jumping) as runner:
        ends, calls = runner.run(asked(stage, replicas, pace, ranks=2))
    assert ends == pytest.approx(expected, abs=0.03)  # the coordinator waits for other ranks for 5 ms
    if calls_at_once > 1:  # else what waits goes together
        assert calls == work_of(config).reward_calls
