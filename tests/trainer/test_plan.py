"""What a run needs is said before: what rewards must do follows from the time of sampling."""

import asyncio
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from reward_services import AsyncRewardClient, Score, told_s
from reward_services.http.app import create_app
from reward_services.merging import MergedRewards
from reward_services.scorers.jpeg import JpegScorer
from tests.rewards_here import RewardsHere
from tests.small_run import CPU, configured
from trainer.config import TrainConfig
from trainer.coordinator import Coordinator
from trainer.pace import Pace
from trainer.plan import as_table, measured_seconds, plan


@pytest.fixture
def config(pipelines: dict[str, Path], tmp_path: Path) -> TrainConfig:
    return configured(tmp_path, pipelines["epsilon"])


def test_replicas_are_as_many_as_keep_up_with_sampling(config: TrainConfig) -> None:
    """4 prompts x 3 branches x 3 steps x 2 for guidance = 72 evaluations of 0.1 s for 12 images: 1.667 a s.

    Two replicas of 1 image/s do it. Each of the 2 micro-batches is one call to one of them: the last one's 6
    images take 6 s; in two calls of 3 they take 3 s after the 2.4 s that the first one's have left.
    """
    planned = plan(config, seconds_per_evaluation=0.1, images_per_second={"jpeg": 1.0})
    assert planned.sampling_s == pytest.approx(7.2)
    need = planned.rewards["jpeg"]
    assert need.images_per_second == pytest.approx(12 / 7.2)
    assert need.replicas == 2
    assert need.tail_s == pytest.approx(6.0)
    text = as_table(config, planned)
    assert "1.7 images/s: 2 replicas, then 6.0 s for the last scores" in text
    assert text.endswith("A call goes to one replica: rewards.batch_images=3 gives each of 2 a part")
    assert "while learning" in text
    assert "reward calls                                 2   or more, as ranks drift apart" in text


def test_calls_that_give_each_replica_a_part_end_sooner(pipelines: dict[str, Path], tmp_path: Path) -> None:
    config = configured(tmp_path, pipelines["epsilon"], "rewards.batch_images=3")
    planned = plan(config, seconds_per_evaluation=0.1, images_per_second={"jpeg": 1.0})
    assert planned.rewards["jpeg"].tail_s == pytest.approx(3.0)
    assert "rewards.batch_images" not in as_table(config, planned)


def test_calls_at_once_bound_the_replicas_that_work(pipelines: dict[str, Path], tmp_path: Path) -> None:
    """Two calls of 3 one after the other, of both micro-batches: 3.6 + 4 * 3 - 7.2 s."""
    options = ["rewards.batch_images=3", "rewards.calls_at_once=1"]
    config = configured(tmp_path, pipelines["epsilon"], *options)
    planned = plan(config, seconds_per_evaluation=0.1, images_per_second={"jpeg": 1.0})
    assert planned.rewards["jpeg"].tail_s == pytest.approx(8.4)
    assert "rewards.calls_at_once=1 keeps no more busy: set it to 2" in as_table(config, planned)


@pytest.mark.parametrize(
    ("deployed", "served"),
    [("num_replicas: 1", 1), ("autoscaling: {max_replicas: 3}", 3), ("num_replicas: none", None)],
)
def test_replicas_that_are_served_are_said(
    pipelines: dict[str, Path], tmp_path: Path, deployed: str, served: int | None
) -> None:
    """Services that cannot be read leave it unknown."""
    services = tmp_path / "rewards.yaml"
    services.write_text(f"rewards: {{jpeg: {{scorer: jpeg, {deployed}}}}}", encoding="utf-8")
    config = configured(tmp_path, pipelines["epsilon"], "rewards.url=null", f"rewards.services={services}")
    planned = plan(config, seconds_per_evaluation=0.1, images_per_second={"jpeg": 1.0})
    assert planned.rewards["jpeg"].served == served
    assert ("2 replicas (1 served), then" in as_table(config, planned)) == (served == 1)


def test_a_call_that_takes_too_long_is_named(config: TrainConfig) -> None:
    """Of 6 images, two micro-batches of 2 prompts x 3 branches an update, at 0.1 a second."""
    planned = plan(config, seconds_per_evaluation=0.1, images_per_second={"jpeg": 0.1})
    assert planned.rewards["jpeg"].call_s == pytest.approx(60)
    said = "A call takes jpeg 60.0 s, beyond the 28.0 s that a replica has of rewards.attempt_s=30: set that"
    assert said in as_table(config, planned)
    for deadline_s, halved in ((124.0, False), (100.0, True)):
        times = {"attempt_s": 62.0, "deadline_s": deadline_s}
        longer = config.model_copy(update={"rewards": config.rewards.model_copy(update=times)})
        table = as_table(longer, plan(longer, seconds_per_evaluation=0.1, images_per_second={"jpeg": 0.1}))
        assert said not in table
        half = "jpeg 60.0 s, beyond the 48.0 s that a replica has of half of rewards.deadline_s=100"
        assert (half in table) == halved
        assert ("A call takes" in table) == halved


@pytest.mark.parametrize(("by", "left_s"), [("url", 28.0), ("services", 29.0)])
def test_a_replica_has_less_time_than_the_call(
    pipelines: dict[str, Path], tmp_path: Path, by: str, left_s: float
) -> None:
    """Each level that waits tells the one below of half a second less; over HTTP there are two more."""
    options = []
    if by == "services":
        services = tmp_path / "rewards.yaml"
        services.write_text("rewards: {jpeg: {scorer: jpeg}, large: {scorer: jpeg}}", encoding="utf-8")
        options = ["rewards.url=null", f"rewards.services={services}"]
    config = configured(tmp_path, pipelines["epsilon"], *options)
    for call_s, late in ((left_s - 0.1, False), (left_s + 0.1, True)):
        rates = {"jpeg": 6 / call_s}
        table = as_table(config, plan(config, seconds_per_evaluation=0.1, images_per_second=rates))
        assert (f"beyond the {left_s} s that a replica has of rewards.attempt_s=30" in table) == late


def test_the_handles_are_told_what_the_plan_says() -> None:
    """A coordinator before the HTTP API before merged calls: handles tell the replica once more less."""

    class Told(RewardsHere):
        async def score(self, *args: Any, deadline_s: float, **kwargs: Any) -> dict[str, list[Score]]:
            told.append(told_s(deadline_s))
            return await super().score(*args, deadline_s=deadline_s, **kwargs)

    async def run() -> None:
        rewards = MergedRewards(Told({"jpeg": JpegScorer()}), calls_at_once=1)
        client = AsyncRewardClient("http://test", transport=httpx.ASGITransport(create_app(rewards)))
        coordinator = Coordinator(client, names=["jpeg"], pace=Pace(attempt_s=30, deadline_s=60))
        await coordinator.score([np.zeros((8, 8, 3), np.uint8)], [""])

    told: list[float] = []
    asyncio.run(run())
    assert 27.0 < told[0] < 28.0


def test_a_judge_is_planned_for_by_evaluations_alone(config: TrainConfig) -> None:
    """8 pictures of 3 guided steps of 0.1 s are drawn in 4.8 s, three at a time: see test_evaluating."""
    planned = plan(config, seconds_per_evaluation=0.1, images_per_second={"large": 0.2})
    assert planned.rewards["jpeg"].replicas is None
    table = as_table(config, planned)
    assert "drawing                                  4.8 s" in table
    assert (
        "large                                    0.2 images/s of 1 replica, then 37.0 s for the last"
        in table
    )
    assert "A call takes large 40.0 s, beyond the 28.0 s that a replica has of rewards.attempt_s=30" in table
    assert plan(config).evaluation is None


@pytest.mark.parametrize("seconds", [None, 0.1])
def test_given_pictures_need_no_scores(
    pipelines: dict[str, Path], tmp_path: Path, seconds: float | None
) -> None:
    options = ["method=standard", "loss.states=null", "data.source=pictures"]
    config = configured(tmp_path, pipelines["epsilon"], *options)
    planned = plan(config, seconds_per_evaluation=seconds, images_per_second={"jpeg": 1.0})
    assert planned.rewards == {}
    said = as_table(config, planned).split("Pictures are given: rewards score held-out pictures only")[1]
    assert said.startswith("\nEach evaluation\n") if seconds else not said


def test_the_gpu_that_is_here_is_enough_or_not(config: TrainConfig) -> None:
    planned = plan(config)
    here = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None
    assert planned.device_bytes == here
    for margin, fits in ((1.11, True), (1.09, False)):
        beside = replace(planned, device_bytes=int(margin * planned.memory.peak))
        assert beside.fits == beside.as_json()["fits"] == fits
        assert ("is not enough" in as_table(config, beside)) == (not fits)
    elsewhere = replace(planned, device_bytes=None)
    assert elsewhere.fits is None
    assert "GPU" not in as_table(config, elsewhere)


def test_ranks_share_the_sampling(config: TrainConfig) -> None:
    shared = config.model_copy(update={"ranks": config.ranks.model_copy(update={"workers": 2})})
    planned = plan(shared, seconds_per_evaluation=0.1)
    assert planned.sampling_s == pytest.approx(3.6)
    assert planned.work.micro_batches == 1
    assert planned.rewards["jpeg"].replicas is None


def test_sampling_takes_as_long_as_the_largest_share(pipelines: dict[str, Path], tmp_path: Path) -> None:
    """Of 5 prompts one rank has 3: 3 prompts x 3 branches x 3 steps x 2 for guidance, of 0.1 s."""
    options = ["branching.prompts_per_update=5", "ranks.workers=2"]
    config = configured(tmp_path, pipelines["epsilon"], *options)
    assert plan(config, seconds_per_evaluation=0.1).sampling_s == pytest.approx(5.4)


def test_without_a_time_nothing_is_said_of_rewards(config: TrainConfig) -> None:
    planned = plan(config)
    assert planned.sampling_s is None
    assert planned.rewards == {}
    assert as_table(config, planned).endswith(
        "Add --seconds-per-evaluation S, or --measure, for what rewards must do"
    )


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"clip": 1.0}, "names 'clip'; the run's rewards are jpeg, large"),
        ({"jpeg": 0.0}, "must be a number above 0"),
        ({"jpeg": math.inf}, "must be a number above 0"),
    ],
)
def test_a_wrong_rate_is_refused(config: TrainConfig, rates: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(config, seconds_per_evaluation=0.1, images_per_second=rates)


@pytest.mark.parametrize("seconds", [0.0, math.nan, math.inf])
def test_an_evaluation_takes_time(config: TrainConfig, seconds: float) -> None:
    with pytest.raises(ValueError, match="--seconds-per-evaluation must be a number above 0"):
        plan(config, seconds_per_evaluation=seconds)


def test_an_evaluation_is_timed_in_a_micro_batch(config: TrainConfig) -> None:
    torch.manual_seed(0)
    assert 0 < measured_seconds(config, CPU) < 1


def test_a_plan_says_for_how_many_ranks_it_is(pipelines: dict[str, Path], tmp_path: Path) -> None:
    for least, said in (("null", "(2 in all)\n"), ("1", "(2 in all), with 1 left\n")):
        options = ["ranks.workers=2", f"ranks.min_workers={least}"]
        config = configured(tmp_path, pipelines["epsilon"], *options)
        assert f"Memory of each rank's device {said}" in as_table(config, plan(config))
