"""Replaying winners is the update that graphs of all branches would give, in any parts, on any ranks."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.small_run import configured, in_two_ranks, largest_difference, relative_difference, started
from trainer.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from trainer.config import TrainConfig
from trainer.diffusion import target_output
from trainer.learner import Learner
from trainer.loop import sample
from trainer.losses import denoising_errors, path_loss, preference_loss
from trainer.optimizer import LossScale
from trainer.ranks import Halted, Ranks
from trainer.replay import Lesson
from trainer.run import Run

NEEDS_BITSANDBYTES = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
METHODS = pytest.mark.parametrize("method", ["rlhf_sharpening", "sft_sharpening"])
RANKED = ("rlhf_sharpening", "sft_sharpening", "ddpo", "diffusion_nft")
PLAIN = ("optimizer.ema_decay=0", "optimizer.steps_per_update=1")


@pytest.fixture
def folder(pipelines: dict[str, Path]) -> Path:
    return pipelines["epsilon"]


def lessons_of(run: Run) -> list[Lesson]:
    return [lesson for lesson, _ in sample(run)]


def moved(config: TrainConfig, lessons: list[Lesson] | None = None) -> tuple[list[Tensor], dict[str, float]]:
    """The weights after one update, and what the learner said."""
    run = started(config)
    learned = run.learner.learn(lessons_of(run) if lessons is None else lessons)
    return [parameter.detach().clone() for parameter in run.policy.parameters], learned


def kept_graph_loss(run: Run, lesson: Lesson, steps_PS: Tensor) -> Tensor:
    """The loss of a policy evaluated with gradients at every step of every branch, of which some are used."""
    config, branches, schedule = run.config, lesson.branches, run.policy.schedule(run.config.sampling.steps)
    steps, prompts, count = len(schedule), len(branches.prompts), branches.states.shape[2]
    text = branches.text.take(torch.arange(prompts).repeat_interleave(count))

    def errors_at(step: int) -> Tensor:
        states, level = branches.states[step].flatten(0, 1), schedule.levels_T[step]
        times = schedule.timesteps_T[step].expand(len(states))
        outputs = run.policy.predict(states, times, text, config.sampling.guidance)
        targets = target_output(states, branches.clean.flatten(0, 1), level, schedule.prediction_type)
        errors: Tensor = denoising_errors(outputs, targets).unflatten(0, (prompts, count))
        return errors

    policy_PKT = torch.stack([errors_at(step) for step in range(steps)], 2)
    with torch.no_grad(), run.policy.reference():
        reference_PKT = torch.stack([errors_at(step) for step in range(steps)], 2)
    steps_PKS, selection = steps_PS[:, None].expand(-1, count, -1), lesson.selection
    if config.method == "sft_sharpening":
        return path_loss(policy_PKT.gather(2, steps_PKS).flatten(0, 1), selection.weights_PK.flatten())
    ratios_PKS, rows = (reference_PKT - policy_PKT).gather(2, steps_PKS), torch.arange(prompts)
    return preference_loss(
        ratios_PKS[rows, selection.best_P],
        ratios_PKS[rows, selection.worst_P],
        selection.gaps(selection.best_P, selection.worst_P),
        torch.ones(prompts),
        beta=config.loss.beta,
        margin=config.loss.margin,
    )


@METHODS
@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl", "sd3", "flux-dev"])
def test_replayed_winners_give_the_gradient_of_graphs_kept(
    families: dict[str, Path], tmp_path: Path, method: str, name: str
) -> None:
    options = (f"method={method}", *PLAIN, "loss.states=visited", "model.image_size=16")
    config = configured(tmp_path, families[name], *options)
    run = started(config)
    lessons = lessons_of(run)
    run.learner.learn(lessons)  # off the reference, where log-ratios are not all nothing
    steps = [run.learner._replayer.draw(lesson, run.learner.steps).steps_PS for lesson in lessons]
    losses = [kept_graph_loss(run, lesson, of) for lesson, of in zip(lessons, steps)]
    (torch.stack(losses).sum() / 4).backward()
    expected = [parameter.grad.clone() for parameter in run.policy.parameters if parameter.grad is not None]
    for parameter in run.policy.parameters:
        parameter.grad = None
    for lesson in lessons:
        for part in run.learner.method.parts(lesson, run.learner.steps):
            run.learner._backward(part(), 4)
    found = [parameter.grad for parameter in run.policy.parameters if parameter.grad is not None]
    assert max(float(gradient.abs().max()) for gradient in expected) > 1e-3
    assert largest_difference(found, expected) < 1e-5


@pytest.mark.parametrize("margin", ["none", "inside"])
def test_policy_and_reference_alike_lose_log_two(folder: Path, tmp_path: Path, margin: str) -> None:
    config = configured(tmp_path, folder, *PLAIN, f"loss.margin={margin}")
    run = started(config)
    lessons = lessons_of(run)
    gaps = torch.cat(
        [lesson.selection.gaps(lesson.selection.best_P, lesson.selection.worst_P) for lesson in lessons]
    )
    assert gaps.min() > 0
    expected = torch.log1p(torch.exp(gaps if margin == "inside" else torch.zeros_like(gaps))).mean()
    learned = run.learner.learn(lessons)
    assert learned["loss"] == pytest.approx(float(expected), abs=1e-5)
    assert learned["kl"] == 0


@METHODS
@pytest.mark.parametrize("states", ["visited", "renoised"])
def test_parts_change_memory_and_not_the_update(
    folder: Path, tmp_path: Path, method: str, states: str
) -> None:
    options = (f"method={method}", f"loss.states={states}", "selection.temperature=0.05")
    whole, _ = moved(configured(tmp_path, folder, *options))
    parts, _ = moved(configured(tmp_path, folder, *options, "loss.branches_per_micro_batch=1"))
    micro, _ = moved(configured(tmp_path, folder, *options, "branching.prompts_per_micro_batch=1"))
    assert relative_difference(whole, parts, folder) < 1e-3
    assert relative_difference(whole, micro, folder) < 1e-3


def half(ranks: Ranks, configs: dict[str, TrainConfig], out: Path) -> None:
    for name, config in configs.items():
        run = started(config, ranks)
        learned = run.learner.learn(lessons_of(run))
        if ranks.is_main:
            weights = [parameter.detach() for parameter in run.policy.parameters]
            torch.save({"weights": weights, "learned": learned}, out / f"{name}.pt")


def test_two_ranks_learn_what_one_does(folder: Path, tmp_path: Path) -> None:
    """By every kind of method, and where branches stop on the way."""
    stopping = ("branching.previews=[0, -1]", "branching.stop={after: 0, keep: 2}")
    configs = {name: configured(tmp_path, folder, f"method={name}") for name in RANKED}
    configs["stopping"] = configured(tmp_path, folder, *stopping)
    in_two_ranks(half, configs, tmp_path)
    for name, config in configs.items():
        two = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        weights, learned = moved(config)
        assert two["learned"] == pytest.approx(learned, rel=1e-3)
        assert relative_difference(weights, two["weights"], folder) < 1e-3


def test_nothing_to_learn_moves_nothing(folder: Path, tmp_path: Path) -> None:
    config = configured(tmp_path, folder, "rewards.weights={verifier: 1.0}", "rewards.failure_budget=1")
    run = started(config)
    before = [parameter.detach().clone() for parameter in run.policy.parameters]
    assert run.learner.learn(lessons_of(run)) == {"loss": 0, "kl": 0, "grad_norm": 0, "lr": 0}
    assert largest_difference(before, run.policy.parameters) == 0
    assert (run.learner.steps, run.learner.unet_evaluations) == (0, 0)


def test_evaluations_are_counted(folder: Path, tmp_path: Path) -> None:
    """4 pairs, 2 branches each, 2 states, guided twice, policy and reference, 2 optimizer steps."""
    run = started(configured(tmp_path, folder))
    run.learner.learn(lessons_of(run))
    assert run.learner.unet_evaluations == 4 * 2 * 2 * 2 * 2 * 2
    run = started(configured(tmp_path, folder, "method=sft_sharpening", "sampling.guidance=1"))
    run.learner.learn(lessons_of(run))
    assert run.learner.unet_evaluations == 4 * 2 * 2


def test_gradients_do_not_vanish_in_float16(folder: Path, tmp_path: Path) -> None:
    """Of a mean over a picture's many numbers each has a gradient too small for float16."""
    large = ("model.image_size=96", "branching.branches=2", "branching.prompts_per_update=1")
    options = (*PLAIN, "method=sft_sharpening", *large)
    exact = started(configured(tmp_path, folder, *options))
    lessons = lessons_of(exact)
    assert lessons[0].branches.clean.shape[-2:] == (48, 48)
    half = started(configured(tmp_path, folder, *options, "model.dtype=float16"))

    def gradient(run: Run) -> Tensor:
        run.learner._differentiate(lessons, 512.0)
        found = [p.grad.flatten() for p in run.policy.parameters if p.grad is not None]
        run.learner._optimizer.zero_grad()
        return torch.cat(found)

    def likeness() -> float:
        return float(torch.nn.functional.cosine_similarity(gradient(exact), gradient(half), dim=0))

    assert likeness() > 0.999
    half.learner._scale = LossScale()
    assert likeness() < 0.9


def test_a_gradient_that_overflows_float16_is_computed_again(folder: Path, tmp_path: Path) -> None:
    run = started(configured(tmp_path, folder, *PLAIN, "model.dtype=float16"))
    lessons = lessons_of(run)
    run.learner._scale.factor = 2.0**28
    learned = run.learner.learn(lessons)
    state = run.learner.state_dict()["loss_scale"]
    assert 1 < state["factor"] < 2.0**28
    assert state["in_a_row"] == 1
    assert 0 < learned["grad_norm"] < 1e3
    again = started(configured(tmp_path, folder, *PLAIN, "model.dtype=float16"))
    again.learner.load_state_dict(run.learner.state_dict())
    assert again.learner.state_dict()["loss_scale"] == state


def test_no_step_is_taken_on_what_is_not_finite(folder: Path, tmp_path: Path) -> None:
    run = started(configured(tmp_path, folder, *PLAIN))
    lessons = lessons_of(run)
    lessons[0].branches.states[:] = torch.nan
    before = [parameter.detach().clone() for parameter in run.policy.parameters]
    with pytest.raises(Halted, match=r"loss is nan .* --set optimizer.lr=0.0003"):
        run.learner.learn(lessons)
    assert largest_difference(before, run.policy.parameters) == 0
    assert run.learner.steps == 0


def test_averages_are_lent_and_returned(folder: Path, tmp_path: Path) -> None:
    run = started(configured(tmp_path, folder))
    run.learner.learn(lessons_of(run))
    trained = [parameter.detach().clone() for parameter in run.policy.parameters]
    with run.learner.averaged():
        lent = [parameter.detach().clone() for parameter in run.policy.parameters]
    assert largest_difference(trained, run.policy.parameters) == 0
    assert largest_difference(lent, run.learner.state_dict()["average"]) == 0
    assert largest_difference(lent, trained) > 0


@pytest.mark.parametrize("moments", ["float32", pytest.param("8-bit", marks=NEEDS_BITSANDBYTES)])
def test_a_restored_learner_goes_on_alike(folder: Path, tmp_path: Path, moments: str) -> None:
    options = ("optimizer.warmup_steps=3", "optimizer.decay=linear", f"optimizer.moments={moments}")
    config = configured(tmp_path, folder, *options)
    run = started(config)
    lessons = lessons_of(run)
    run.learner.learn(lessons)
    saved = save_checkpoint(tmp_path, Checkpoint(1, {"learner": run.learner.state_dict()}, {}), keep=1)
    state = load_checkpoint(saved).tensors["learner"]
    first = run.learner.learn(lessons)
    again = started(config)
    learner = Learner(again.policy, config, Ranks())
    learner.load_state_dict(state)
    kinds = {
        value.dtype
        for of in learner._optimizer.state.values()
        for value in of.values()
        if torch.is_tensor(value)
    }
    assert (torch.uint8 in kinds) == (moments == "8-bit")
    assert learner.learn(lessons) == pytest.approx(first, rel=1e-6)
    assert largest_difference(run.policy.parameters, again.policy.parameters) < 1e-7
    learner.load_state_dict({**state, "kl_weight": 7.0})
    assert learner.kl_weight == 7


def test_the_learning_rate_rises_and_falls(folder: Path, tmp_path: Path) -> None:
    options = ("optimizer.warmup_steps=1", "optimizer.decay=linear", "optimizer.steps_per_update=1")
    run = started(configured(tmp_path, folder, *options, "updates=4"))
    lessons = lessons_of(run)
    rates = [run.learner.learn(lessons)["lr"] for _ in range(4)]
    assert rates == pytest.approx([0.5e-3, 0.75e-3, 0.5e-3, 0.25e-3])
