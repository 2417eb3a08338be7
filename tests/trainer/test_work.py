"""The work of an update is that of a real one: evaluations, previews, micro-batches, reward calls."""

from pathlib import Path

import pytest

from tests.small_run import configured, started, work_of
from trainer.loop import advance
from trainer.metrics import MetricsLog


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
        ["method=d3po", "sampling.steps=6", "branching.end=4", "loss.states_per_branch=9"],
        ["method=ddpo", "loss.states=null", "optimizer.steps_per_update=2"],
        ["method=grpo", "loss.states=null", "loss.kl_weight=0.1"],
        ["method=ddpo", "loss.states=null", "optimizer.steps_per_update=1"],
        ["method=diffusion_nft", "loss.states=null"],
        ["method=diffusion_nft", "loss.kl_weight=0.1", "optimizer.steps_per_update=3"],
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
    assert work.evaluations_sampling + work.evaluations_learning == run.spent().unet_evaluations
    assert work.evaluations_learning == run.learner.unet_evaluations
    assert work.images_scored == run.spent().images_scored
    assert work.micro_batches == work.reward_calls == run.scoring.stats()["reward_calls"]


def test_flux_takes_one_evaluation_at_any_guidance(families: dict[str, Path], tmp_path: Path) -> None:
    for name, each in (("flux-dev", 1), ("sd3", 2)):
        config = configured(tmp_path / name, families[name], "model.image_size=16", "sampling.guidance=4")
        assert work_of(config).evaluations_sampling == 4 * 3 * 3 * each


def test_every_reward_is_called_for_every_batch(pipelines: dict[str, Path], tmp_path: Path) -> None:
    """Micro-batches of 6, 6 and 3 pictures in batches of at most 4: 2 + 2 + 1 calls to each reward."""
    options = ["branching.prompts_per_update=5", "rewards.weights={jpeg: 1.0, clip: 1.0}"]
    config = configured(tmp_path, pipelines["epsilon"], "rewards.batch_images=4", *options)
    assert work_of(config).reward_calls == 2 * 5


def test_the_largest_share_makes_the_micro_batches(pipelines: dict[str, Path], tmp_path: Path) -> None:
    """Of 5 prompts one rank has 3, which at 2 a micro-batch it samples in two."""
    options = ["branching.prompts_per_update=5", "ranks.workers=2"]
    assert work_of(configured(tmp_path, pipelines["epsilon"], *options)).micro_batches == 2


def test_given_pictures_are_not_scored(pipelines: dict[str, Path], tmp_path: Path) -> None:
    options = ["method=standard", "loss.states=null", "data.source=pictures"]
    work = work_of(configured(tmp_path, pipelines["epsilon"], *options))
    assert (work.evaluations_sampling, work.images_scored, work.reward_calls) == (0, 0, 0)
    assert work.evaluations_learning == 4 * 2 * 2, "a picture, two states and steps, no guidance"
    assert work.micro_batches == 2
