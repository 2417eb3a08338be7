"""What was visited comes back: same states, same log-probabilities, chance by prompt and step alone."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.small_run import configured, largest_difference, started
from trainer.branches import step_noise
from trainer.config import ConfigError
from trainer.loop import sample
from trainer.replay import Lesson, Replay
from trainer.run import Run


def everything(run: Run, lesson: Lesson, step: int = 0) -> Replay:
    """Every branch of a lesson, replayed."""
    count, branches = lesson.selection.returns_PK.shape
    rows = torch.arange(count).repeat_interleave(branches)
    columns = torch.arange(branches).repeat(count)
    replayer = run.learner._replayer
    return replayer.replay(lesson.branches, rows, columns, replayer.draw(lesson, step))


def drawn(run: Run, lesson: Lesson, replay: Replay) -> Tensor:
    """(N,) log-densities of the noise that made the replayed steps of every branch, as it went into them."""
    shape, steps, branches = run.policy.latent_shape, run.config.sampling.steps, 3
    noise = step_noise(shape, branches=branches, steps=steps, seeds=lesson.seeds)
    places = torch.arange(len(lesson.seeds) * branches).repeat_interleave(replay.states_per_branch)
    taken = noise[replay.steps_N + 1, places // branches, places % branches].flatten(1)
    schedule = run.policy.schedule(steps)
    level, after = schedule.levels_T[replay.steps_N], schedule.next_levels_T[replay.steps_N]
    ratio = level.signal / after.signal
    std = (1 / after.noise**2 + ratio**2 / (level.noise**2 - (ratio * after.noise) ** 2)) ** -0.5
    standard: Tensor = torch.distributions.Normal(0.0, 1.0).log_prob(taken)
    return (standard - std[:, None].log()).sum(1)


STATES = ("model.image_size=16", "loss.states_per_branch=3")


@pytest.mark.parametrize("name", ["sd2", "sdxl", "sd3"])
def test_the_policy_that_sampled_gives_each_step_the_density_of_its_noise(
    families: dict[str, Path], tmp_path: Path, name: str
) -> None:
    """Of the noise that was drawn for it, times the posterior's standard deviation by Bayes' rule.

    In flow matching the last step puts back no noise: it is left out.
    """
    run = started(configured(tmp_path, families[name], "method=ddpo", *STATES))
    for lesson, _ in sample(run):
        replay = everything(run, lesson)
        outputs = run.learner._replayer.outputs(replay)
        found = run.learner._replayer.log_probabilities(replay, outputs)
        torch.testing.assert_close(found.detach(), drawn(run, lesson, replay), rtol=1e-3, atol=1e-2)
        last = run.config.sampling.steps - (2 if name == "sd3" else 1)
        assert int(replay.steps_N.max()) == last


def test_ends_noised_anew_have_no_step(pipelines: dict[str, Path], tmp_path: Path) -> None:
    run = started(configured(tmp_path, pipelines["epsilon"], "loss.states=renoised"))
    (lesson, _), *_ = sample(run)
    replay = everything(run, lesson)
    assert replay.moved is None
    with pytest.raises(ValueError, match="only visited states have a step"):
        run.learner._replayer.log_probabilities(replay, replay.states)


def test_each_optimizer_step_draws_other_states(pipelines: dict[str, Path], tmp_path: Path) -> None:
    run = started(configured(tmp_path, pipelines["epsilon"], "sampling.steps=6"))
    (lesson, _), *_ = sample(run)
    draws = [run.learner._replayer.draw(lesson, step).steps_PS for step in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert all(len(set(row.tolist())) == 2 for row in draws[0])


def test_earlier_weights_answer_and_go_back(pipelines: dict[str, Path], tmp_path: Path) -> None:
    run = started(configured(tmp_path, pipelines["epsilon"]))
    lessons = [lesson for lesson, _ in sample(run)]
    replayer, replay = run.learner._replayer, everything(run, lessons[0])
    old, before = replayer.weights(), replayer.outputs(replay).detach()
    run.learner.learn(lessons)
    trained = replayer.weights()
    torch.testing.assert_close(replayer.earlier(replay, old), before)
    assert largest_difference(trained, run.policy.parameters) == 0
    assert float((replayer.outputs(replay).detach() - before).abs().max()) > 1e-3


def test_a_method_without_a_step_to_learn_is_an_error(families: dict[str, Path], tmp_path: Path) -> None:
    """Flow matching's last step puts back no noise: of one that is the only one nothing would be learned."""
    options = ("method=ddpo", "sampling.steps=1", "model.image_size=16")
    with pytest.raises(ConfigError, match=r"set loss\.replayed_steps to earlier ones, or sampling\.steps"):
        started(configured(tmp_path / "flow", families["sd3"], *options))
    started(configured(tmp_path / "ddpm", families["sd1"], *options))
    started(configured(tmp_path / "other", families["sd3"], "loss.states_per_branch=1", *options[1:]))


@pytest.mark.filterwarnings("default")  # torch's compiler warns of torch's own
@pytest.mark.parametrize("compiles", [False, True])
def test_earlier_weights_are_asked_as_later_ones_where_that_rounds(
    pipelines: dict[str, Path], tmp_path: Path, *, compiles: bool
) -> None:
    """Blocks are compiled once for evaluations with gradients and once for those without."""
    torch.compiler.reset()
    run = started(configured(tmp_path, pipelines["epsilon"], f"model.compile={compiles}"))
    asked: list[bool] = []
    with torch._dynamo.config.patch(debug_backend_override=">=0:eager"):
        (lesson, _), *_ = sample(run)
        run.policy.denoiser.register_forward_pre_hook(lambda *_: asked.append(torch.is_grad_enabled()))
        replayer, replay = run.learner._replayer, everything(run, lesson)
        found = replayer.earlier(replay, replayer.weights())
    assert asked == [compiles]
    assert not found.requires_grad
