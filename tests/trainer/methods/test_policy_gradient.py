"""DDPO and GRPO: advantages by hand, and the gradient that torch's own Gaussian gives."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.returned import returned
from tests.small_run import configured, largest_difference, started
from trainer.diffusion import clean_and_noise, step_distribution
from trainer.loop import sample
from trainer.methods.policy_gradient import PolicyGradient
from trainer.replay import Lesson
from trainer.run import Run

RETURNS = torch.tensor([[1.0, 2.0, 6.0], [4.0, math.nan, 8.0], [3.0, 3.0, 3.0]])


def advantages(run: Run) -> list[list[float]]:
    assert isinstance(run.learner.method, PolicyGradient)
    lesson = returned(RETURNS)
    run.learner.method.begin([lesson], 0)
    return run.learner.method.advantages(lesson).tolist()


@pytest.mark.parametrize(("method", "scales"), [("ddpo", (22 / 5, 22 / 5)), ("grpo", (14 / 3, 4))])
def test_advantages_by_hand(
    pipelines: dict[str, Path], tmp_path: Path, method: str, scales: tuple[float, float]
) -> None:
    """Around their means -2, -1, 3 and -2, 2: squares add up to 14 and 8; alike branches teach nothing."""
    one, two = (math.sqrt(scale) for scale in scales)
    found = advantages(started(configured(tmp_path, pipelines["epsilon"], f"method={method}")))
    assert found[0] == pytest.approx([-2 / one, -1 / one, 3 / one])
    assert found[1] == pytest.approx([-2 / two, 0, 2 / two])
    assert found[2] == [0, 0, 0]


def reinforced(run: Run, lesson: Lesson, advantages_PK: Tensor) -> Tensor:
    """Minus the mean over branches and states of advantage times torch's log-density of the step taken."""
    sampling, branches = run.config.sampling, lesson.branches
    schedule = run.policy.schedule(sampling.steps)
    steps_PS = run.learner._replayer.draw(lesson, 0).steps_PS
    loss = torch.zeros(())
    for p, k in advantages_PK.nonzero().tolist():
        for j in steps_PS[p].tolist():
            state, text = branches.states[j, p, k][None], branches.text.take(torch.tensor([p]))
            output = run.policy.predict(state, schedule.timesteps_T[j][None], text, sampling.guidance)
            level, following = schedule.levels_T[j], schedule.next_levels_T[j]
            clean, eps = clean_and_noise(state, output, level, schedule.prediction_type)
            mean, std = step_distribution(clean, eps, level, following, sampling.eta)
            density = torch.distributions.Normal(mean, std).log_prob(branches.states[j + 1, p, k]).sum()
            loss = loss - advantages_PK[p, k] * density / steps_PS.shape[1] / advantages_PK.shape[1]
    return loss


@pytest.mark.parametrize("method", ["ddpo", "grpo"])
def test_the_first_step_is_the_policy_gradient(
    pipelines: dict[str, Path], tmp_path: Path, method: str
) -> None:
    """Where ratios are 1, d ratio = d log-probability: REINFORCE with a baseline."""
    options = (f"method={method}", "branching.prompts_per_micro_batch=4")
    run = started(configured(tmp_path, pipelines["epsilon"], *options))
    ((lesson, _),) = sample(run)
    learner = run.learner
    assert isinstance(learner.method, PolicyGradient)
    learner.method.begin([lesson], 0)
    reinforced(run, lesson, learner.method.advantages(lesson)).backward()
    expected = [parameter.grad.clone() for parameter in run.policy.parameters if parameter.grad is not None]
    for parameter in run.policy.parameters:
        parameter.grad = None
    for part in learner.method.parts(lesson, 0):
        part().loss.backward()
    found = [parameter.grad for parameter in run.policy.parameters if parameter.grad is not None]
    largest = max(float(gradient.abs().max()) for gradient in expected)
    assert largest > 1
    assert largest_difference(found, expected) < 1e-3 * largest


def rounded(_: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> Any:
    """As kernels of half precision do it, but more: the output depends on the batch."""
    return type(output)(sample=output.sample * (1 + 0.01 * len(inputs[0])))


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("options", [(), ("model.states_with_gradients=5",)], ids=" ".join)
def test_an_unchanged_policy_is_as_likely_as_before_whatever_its_batch(
    pipelines: dict[str, Path], tmp_path: Path, step: int, options: tuple[str, ...]
) -> None:
    """Ratios are 1: the loss is minus the mean of advantages, its gradient the plain policy gradient."""
    changed = ("method=grpo", "branching.prompts_per_micro_batch=4", "loss.branches_per_micro_batch=8")
    run = started(configured(tmp_path, pipelines["epsilon"], *changed, *options))
    run.policy.denoiser.register_forward_hook(rounded)
    ((lesson, _),) = sample(run)
    method, replayer = run.learner.method, run.learner._replayer
    assert isinstance(method, PolicyGradient)
    method.begin([lesson], 0)
    advantages_PK = method.advantages(lesson)
    for replay, advantages_B in method._replays(lesson, step, advantages_PK, advantages_PK != 0):
        densities_BS = replay.by_branch(replayer.log_probabilities(replay, replayer.outputs(replay)))
        (-(densities_BS.mean(1) * advantages_B).sum() / 3).backward()
    expected = [parameter.grad.clone() for parameter in run.policy.parameters if parameter.grad is not None]
    run.policy.denoiser.zero_grad()
    losses = []
    for part in method.parts(lesson, step):
        loss = part().loss
        loss.backward()
        losses.append(loss.item())
    found = [parameter.grad for parameter in run.policy.parameters if parameter.grad is not None]
    largest = max(float(gradient.abs().max()) for gradient in expected)
    assert len(losses) == 2
    assert largest > 1
    assert sum(losses) == pytest.approx(-float(advantages_PK.sum()) / 3, abs=1e-6)
    assert largest_difference(found, expected) < 1e-5 * largest


def test_the_divergence_from_the_reference_grows_from_nothing(
    pipelines: dict[str, Path], tmp_path: Path
) -> None:
    run = started(configured(tmp_path, pipelines["epsilon"], "method=grpo", "loss.kl_weight=0.01"))
    lessons = [lesson for lesson, _ in sample(run)]
    method = run.learner.method
    method.begin(lessons, 0)
    first = sum(part().divergence.item() for lesson in lessons for part in method.parts(lesson, 0))
    assert first == 0
    assert run.learner.learn(lessons)["kl"] > 0
