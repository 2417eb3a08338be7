"""The weighted path loss of a method: weights of the selection, centred or not, and the reference's pull."""

from pathlib import Path

import pytest
import torch

from tests.small_run import configured, started
from trainer.loop import sample
from trainer.losses import denoising_errors
from trainer.replay import Lesson
from trainer.run import Run


def errors_of(run: Run, lesson: Lesson, *, step: int = 0, of_reference: bool = False) -> torch.Tensor:
    """(P, K): mean error of every branch, from its targets or from what the reference says there."""
    rows, columns = torch.arange(4).repeat_interleave(3), torch.arange(3).repeat(4)
    replayer = run.learner._replayer
    replay = replayer.replay(lesson.branches, rows, columns, replayer.draw(lesson, step))
    with torch.no_grad():
        expected = replayer.references(replay) if of_reference else replay.targets
        errors_N = denoising_errors(replayer.outputs(replay), expected)
    return replay.by_branch(errors_N).mean(1).reshape(4, 3)


@pytest.mark.parametrize("baseline", [False, True])
def test_the_loss_weighs_every_branch_as_selected(
    pipelines: dict[str, Path], tmp_path: Path, baseline: bool
) -> None:
    options = (
        "method=sft_sharpening",
        f"loss.baseline={str(baseline).lower()}",
        "selection.temperature=0.01",
        "branching.prompts_per_micro_batch=4",
    )
    run = started(configured(tmp_path, pipelines["epsilon"], *options))
    ((lesson, _),) = sample(run)
    weights_PK = lesson.selection.weights_PK - (1 / 3 if baseline else 0)
    expected = float((weights_PK * errors_of(run, lesson)).sum())
    found = sum(part().loss.item() for part in run.learner.method.parts(lesson, 0))
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("baseline", [False, True])
def test_the_divergence_is_a_mean_over_branches_that_are_learned(
    pipelines: dict[str, Path], tmp_path: Path, baseline: bool
) -> None:
    """Of all with a baseline, of the winner without; centred weights would reward the losers' divergence."""
    options = (
        "method=sft_sharpening",
        "loss.kl_weight=0.1",
        f"loss.baseline={str(baseline).lower()}",
        "branching.prompts_per_micro_batch=4",
    )
    run = started(configured(tmp_path, pipelines["epsilon"], *options))
    ((lesson, _),) = sample(run)
    run.learner.learn([lesson])  # off the reference
    divergences_PK = errors_of(run, lesson, step=2, of_reference=True)
    assert bool((divergences_PK > 1e-6).all())
    best_P1 = lesson.selection.best_P[:, None]
    of_prompts_P = divergences_PK.mean(1) if baseline else divergences_PK.gather(1, best_P1)[:, 0]
    found = sum(part().divergence.item() for part in run.learner.method.parts(lesson, 2))
    assert found == pytest.approx(float(of_prompts_P.sum()), rel=1e-4)


def test_the_reference_is_asked_only_where_it_weighs(pipelines: dict[str, Path], tmp_path: Path) -> None:
    costs = []
    for weight in (0.0, 0.1):
        options = ("method=sft_sharpening", f"loss.kl_weight={weight}", "optimizer.steps_per_update=1")
        run = started(configured(tmp_path, pipelines["epsilon"], *options))
        run.learner.learn([lesson for lesson, _ in sample(run)])
        costs.append(run.learner.unet_evaluations)
    assert costs == [4 * 2 * 2, 2 * 4 * 2 * 2]
