"""The plan's counts are those of a real run; what rewards must do follows from the time of sampling."""

from pathlib import Path

import pytest
import torch

from tests.small_run import CPU, configured, started
from trainer.config import TrainConfig
from trainer.loop import advance
from trainer.metrics import MetricsLog
from trainer.plan import as_table, measured_seconds, plan, work_of


@pytest.fixture
def config(pipelines: dict[str, Path], tmp_path: Path) -> TrainConfig:
    return configured(tmp_path, pipelines["epsilon"])


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["branching.start=1", "branching.previews=[1, -1]", "sampling.guidance=1.0"],
        [
            "sampling.steps=6",
            "branching.start=1",
            "branching.previews=[2, -1]",
            "branching.stop={after: 2, keep: 2}",
        ],
        [
            "method=sft_sharpening",
            "loss.baseline=true",
            "branching.previews=[0, -1]",
            "branching.stop={after: 0, keep: 2}",
        ],
        ["method=sft_sharpening", "optimizer.steps_per_update=1"],
        ["sampling.steps=6", "branching.start=1", "branching.end=4", "branching.previews=[1, 2, -1]"],
        ["method=sft_sharpening", "loss.kl_weight=0.1", "loss.baseline=true"],
        ["method=sft_sharpening", "selection.temperature=1e6", "loss.states_per_branch=9"],
        ["loss.replayed_steps=[1, 2]", "branching.prompts_per_micro_batch=3"],
        ["method=diffusion_dpo", "loss.states=null"],
        ["method=d3po", "loss.states=null"],
        ["method=ddpo", "loss.states=null", "optimizer.steps_per_update=2"],
        ["method=grpo", "loss.states=null", "loss.kl_weight=0.1"],
        ["method=diffusion_nft", "loss.states=null"],
    ],
    ids=" ".join,
)
def test_evaluations_and_images_are_those_of_a_real_update(
    pipelines: dict[str, Path], tmp_path: Path, overrides: list[str]
) -> None:
    config = configured(tmp_path, pipelines["epsilon"], "prompts.held_out=null", *overrides)
    run = started(config)
    with MetricsLog(tmp_path / "log") as log:
        advance(run, log)
    work = work_of(config)
    assert work.evaluations_sampling + work.evaluations_learning == run.costs.unet_evaluations
    assert work.evaluations_learning == run.learner.unet_evaluations
    assert work.images_scored == run.costs.images_scored
    assert work.micro_batches == run.scoring.stats()["reward_calls"]


def test_flux_takes_one_evaluation_at_any_guidance(families: dict[str, Path], tmp_path: Path) -> None:
    for name, each in (("flux-dev", 1), ("sd3", 2)):
        config = configured(tmp_path / name, families[name], "model.image_size=16", "sampling.guidance=4")
        assert work_of(config).evaluations_sampling == 4 * 3 * 3 * each


def test_replicas_are_as_many_as_keep_up_with_sampling(config: TrainConfig) -> None:
    """4 prompts x 3 branches x 3 steps x 2 for guidance = 72 evaluations of 0.1 s for 12 images: 1.667 a s.

    Two replicas of 1 image/s do it; of the 2 micro-batches the last one's 6 images then take 3 s.
    """
    planned = plan(config, seconds_per_evaluation=0.1, images_per_second={"jpeg": 1.0})
    assert planned.sampling_s == pytest.approx(7.2)
    need = planned.rewards["jpeg"]
    assert need.images_per_second == pytest.approx(12 / 7.2)
    assert need.replicas == 2
    assert need.tail_s == pytest.approx(3.0)
    text = as_table(config, planned)
    assert "1.7 images/s: 2 replicas, then 3.0 s for the last micro-batch" in text
    assert "while learning" in text


def test_ranks_share_the_sampling(config: TrainConfig) -> None:
    shared = config.model_copy(update={"ranks": config.ranks.model_copy(update={"workers": 2})})
    planned = plan(shared, seconds_per_evaluation=0.1)
    assert planned.sampling_s == pytest.approx(3.6)
    assert planned.work.micro_batches == 1
    assert planned.rewards["jpeg"].replicas is None


def test_without_a_time_nothing_is_said_of_rewards(config: TrainConfig) -> None:
    planned = plan(config)
    assert planned.sampling_s is None
    assert planned.rewards == {}
    assert as_table(config, planned).endswith(
        "Add --seconds-per-evaluation S, or --measure, for what rewards must do"
    )


@pytest.mark.parametrize(
    ("rates", "message"),
    [({"clip": 1.0}, "names 'clip'; the run's rewards are jpeg"), ({"jpeg": 0.0}, "must be above 0")],
)
def test_a_wrong_rate_is_refused(config: TrainConfig, rates: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(config, seconds_per_evaluation=0.1, images_per_second=rates)


def test_an_evaluation_is_timed_in_a_micro_batch(config: TrainConfig) -> None:
    torch.manual_seed(0)
    assert 0 < measured_seconds(config, CPU) < 1
