"""Every method teaches in the right direction; the spread of an update is that of all its prompts."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.bright import Brightness, brightened
from tests.returned import returned
from tests.small_run import configured, started
from trainer.live_memory import LiveMemory
from trainer.loop import sample
from trainer.losses import denoising_errors
from trainer.methods import METHODS
from trainer.methods.method import spread_of
from trainer.path_integral import centred
from trainer.ranks import Ranks
from trainer.replay import Lesson, Replay
from trainer.run import Run

LEARNING = [name for name in METHODS if name != "standard"]  # it learns from pictures of others
PLAIN = (
    "sampling.guidance=1",
    "branching.branches=6",
    "branching.prompts_per_micro_batch=4",
    "optimizer.ema_decay=0",
    "optimizer.steps_per_update=4",
    "optimizer.betas=[0.9,0.99]",
)
BETAS = {"d3po": 0.02, "rlhf_sharpening": 20.0, "diffusion_dpo": 20.0}


def options(method: str, *more: str) -> tuple[str, ...]:
    return (*PLAIN, f"method={method}", f"loss.beta={BETAS.get(method, 1.0)}", *more)


def plausibility(run: Run, lesson: Lesson) -> Tensor:
    """(P, K): how well the policy knows each branch, by log-probability or by minus the denoising error."""
    count, branches = lesson.selection.returns_PK.shape
    rows, columns = torch.arange(count).repeat_interleave(branches), torch.arange(branches).repeat(count)
    replayer = run.learner._replayer
    replay: Replay = replayer.replay(lesson.branches, rows, columns, replayer.draw(lesson, 0))
    with torch.no_grad():
        outputs = replayer.outputs(replay)
        if run.config.reads_densities:
            values_N = replayer.log_probabilities(replay, outputs)
        else:
            values_N = -denoising_errors(outputs, replay.targets)
    return replay.by_branch(values_N).mean(1).reshape(count, branches)


@pytest.mark.parametrize("method", LEARNING)
def test_good_branches_become_more_plausible_than_bad_ones(
    pipelines: dict[str, Path], tmp_path: Path, method: str
) -> None:
    run = started(configured(tmp_path, pipelines["epsilon"], *options(method, "optimizer.lr=1e-4")))
    run.scoring = Brightness()
    ((lesson, _),) = sample(run)
    before = plausibility(run, lesson)
    run.learner.learn([lesson])
    change_PK = plausibility(run, lesson) - before
    assert float((centred(lesson.selection.returns_PK) * change_PK).sum()) > 0
    selection = lesson.selection
    best, worst = (change_PK.gather(1, of_P[:, None]) for of_P in (selection.best_P, selection.worst_P))
    assert best.mean() > worst.mean()


@pytest.mark.parametrize("method", ["sft_sharpening", "rlhf_sharpening", "diffusion_dpo"])
def test_a_few_updates_make_brighter_pictures(
    pipelines: dict[str, Path], tmp_path: Path, method: str
) -> None:
    config = configured(tmp_path, pipelines["epsilon"], *options(method, "optimizer.lr=3e-3"))
    assert brightened(config, 10) > 0.003


def test_the_policy_gradient_makes_brighter_pictures(pipelines: dict[str, Path], tmp_path: Path) -> None:
    """Noise of many dimensions is weighted by few returns: more branches, smaller steps."""
    more = ("branching.branches=16", "optimizer.lr=3e-4", "loss.clip_range=1", "loss.replayed_steps=[0,2]")
    assert brightened(configured(tmp_path, pipelines["epsilon"], *options("ddpo", *more)), 8) > 0.0005


@pytest.mark.parametrize("method", ["sft_sharpening", "ddpo", "grpo", "diffusion_nft"])
def test_the_reference_takes_no_memory_beside_the_policys_activations(
    pipelines: dict[str, Path], tmp_path: Path, method: str
) -> None:
    peaks = []
    for weight in (0.0, 0.1):
        more = options(method, f"loss.kl_weight={weight}", "selection.temperature=0.1")
        run = started(configured(tmp_path, pipelines["epsilon"], *more))
        run.scoring = Brightness()
        ((lesson, _),) = sample(run)
        run.learner.method.begin([lesson], 0)
        with LiveMemory() as memory:
            terms = next(run.learner.method.parts(lesson, 0))()
            (terms.loss + weight * terms.divergence).backward()
        peaks.append(memory.peak)
    assert peaks[1] < 1.02 * peaks[0]


def test_the_spread_by_hand() -> None:
    # Around their means: -1, 1; -2, 2; the third prompt's are alike and do not count. Variance 10 / 4.
    lessons = [returned(torch.tensor([[1.0, 3.0], [5.0, 9.0]])), returned(torch.tensor([[7.0, 7.0]]))]
    assert spread_of(lessons, Ranks()) == pytest.approx(math.sqrt(2.5))
    assert spread_of([returned(torch.tensor([[7.0, 7.0]]))], Ranks()) > 0
