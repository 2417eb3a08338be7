"""DiffusionNFT: optimality by hand, and its loss written out once more."""

import math
from pathlib import Path

import pytest
import torch

from tests.returned import returned
from tests.small_run import configured, started
from trainer.loop import sample
from trainer.methods.negative_aware import NegativeAware


def test_optimality_by_hand(pipelines: dict[str, Path], tmp_path: Path) -> None:
    """-2, -1, 3 and -2, 2 around their means: the spread of all five is sqrt(22 / 5), 2.098."""
    run = started(configured(tmp_path, pipelines["epsilon"], "method=diffusion_nft"))
    method = run.learner.method
    assert isinstance(method, NegativeAware)
    returns = torch.tensor([[1.0, 2.0, 6.0], [4.0, math.nan, 8.0], [3.0, 3.0, 3.0]])
    lesson = returned(returns)
    method.begin([lesson], 0)
    found = method.optimality(lesson)
    assert found[0].tolist() == pytest.approx([0.5 - 1 / 2.0976, 0.5 - 0.5 / 2.0976, 1.0], abs=1e-4)
    assert found[1, [0, 2]].tolist() == pytest.approx([0.5 - 1 / 2.0976, 0.5 + 1 / 2.0976], abs=1e-4)
    assert found[1, 1].isnan()
    assert found[2].isnan().all()


def test_the_loss_is_that_of_two_implicit_policies(pipelines: dict[str, Path], tmp_path: Path) -> None:
    """r |v+ - v|^2 + (1 - r) |v- - v|^2, with the old policy's answers taken before it moved."""
    options = ("method=diffusion_nft", "loss.beta=0.5", "branching.prompts_per_micro_batch=4")
    run = started(configured(tmp_path, pipelines["epsilon"], *options))
    ((lesson, _),) = sample(run)
    method, replayer = run.learner.method, run.learner._replayer
    assert isinstance(method, NegativeAware)
    rows, columns = torch.arange(4).repeat_interleave(3), torch.arange(3).repeat(4)
    replay = replayer.replay(lesson.branches, rows, columns, replayer.draw(lesson, 5))
    old = replayer.outputs(replay).detach()
    run.learner.learn([lesson])
    new = replayer.outputs(replay).detach()
    optimal_N = method.optimality(lesson).flatten().repeat_interleave(2)
    total = torch.zeros(())
    for n, r in enumerate(optimal_N.tolist()):
        positive, negative = 0.5 * old[n] + 0.5 * new[n], 1.5 * old[n] - 0.5 * new[n]
        good, bad = (((aim - replay.targets[n]) ** 2).mean() for aim in (positive, negative))
        total = total + (r * good + (1 - r) * bad) / 0.5
    found = sum(part().loss.item() for part in method.parts(lesson, 5))
    assert found == pytest.approx(float(total) / 2 / 3, rel=1e-3)  # means over states and branches
