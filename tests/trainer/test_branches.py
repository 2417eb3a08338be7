"""Branches repeat with their seeds, part where they should, and without noise are diffusers' own samples."""

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionXLPipeline

from tests.tiny import IMAGE_SIZE, LATENT_SHAPE
from trainer.branches import Branches, grow, step_noise
from trainer.config import ModelConfig, SamplingConfig
from trainer.policy import Policy
from trainer.records import Prompt

PREDICTION_TYPES = pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
PROMPTS = [Prompt(0, "a red circle"), Prompt(1, "two blue squares"), Prompt(2, "a green cross")]
SEEDS = [11, 12, 13]
STEPS, BRANCHES = 5, 3


@pytest.fixture(scope="module")
def policies(pipelines: dict[str, Path]) -> dict[str, Policy]:
    return {kind: Policy.load(ModelConfig(path=str(folder))) for kind, folder in pipelines.items()}


@pytest.fixture(scope="module")
def policy(policies: dict[str, Policy]) -> Policy:
    return policies["v_prediction"]


def sample(policy: Policy, rows: slice = slice(None), *, start: int = 0, eta: float = 1.0) -> Branches:
    noise = step_noise(LATENT_SHAPE, branches=BRANCHES, steps=STEPS, seeds=SEEDS[rows])
    sampling = SamplingConfig(steps=STEPS, guidance=2.0, eta=eta)
    return grow(policy, sampling, PROMPTS[rows], noise, start=start, previews=(3, -1))


def test_noise_is_each_prompts_own() -> None:
    noise = step_noise((2, 3, 3), branches=4, steps=5, seeds=[1, 2])
    assert noise.shape == (6, 2, 4, 2, 3, 3)
    assert torch.equal(noise[:, 1:], step_noise((2, 3, 3), branches=4, steps=5, seeds=[2]))
    assert not torch.equal(noise[:, 0], noise[:, 1])
    assert abs(float(noise.mean())) < 0.1
    assert float(noise.std()) == pytest.approx(1, abs=0.1)


def test_any_whole_number_is_a_seed() -> None:
    assert torch.equal(
        step_noise((1, 2, 2), branches=1, steps=0, seeds=[2**63 + 5]),
        step_noise((1, 2, 2), branches=1, steps=0, seeds=[5]),
    )


@pytest.mark.parametrize("start", [0, 2])
def test_branches_do_not_depend_on_the_micro_batch(policy: Policy, start: int) -> None:
    together = sample(policy, start=start)
    parts = [sample(policy, rows, start=start) for rows in (slice(0, 1), slice(1, 3))]
    states = torch.cat([part.states for part in parts], dim=1)
    torch.testing.assert_close(states, together.states, atol=1e-4, rtol=1e-4)
    for step, pictures in together.previews.items():
        split = np.concatenate([part.previews[step] for part in parts])
        assert np.abs(split.astype(int) - pictures).max() <= 1


def test_the_same_seeds_give_the_same_branches(policy: Policy) -> None:
    assert torch.equal(sample(policy).states, sample(policy).states)


def test_shapes_and_previews(policy: Policy) -> None:
    branches = sample(policy)
    assert branches.prompts == tuple(PROMPTS)
    assert branches.text.hidden.shape[0] == len(PROMPTS)
    assert branches.states.shape == (STEPS + 1, 3, BRANCHES, *LATENT_SHAPE)
    assert torch.equal(branches.clean, branches.states[-1])
    assert sorted(branches.previews) == [3, 4]
    for pictures in branches.previews.values():
        assert pictures.shape == (3, BRANCHES, IMAGE_SIZE, IMAGE_SIZE, 3)
        assert pictures.dtype == np.uint8
    finished = policy.decode(branches.clean.flatten(0, 1)).reshape(branches.previews[4].shape)
    assert np.abs(finished.astype(int) - branches.previews[4]).max() <= 1
    assert np.abs(branches.previews[3].astype(int) - branches.previews[4]).max() > 2


def test_branches_of_their_own_first_noise_are_all_different(policy: Policy) -> None:
    states = sample(policy).states
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert all((step[:, a] - step[:, b]).abs().amax() > 0.1 for step in states)


@pytest.mark.parametrize("start", [1, 2, STEPS - 1])
def test_branches_share_a_trunk_until_they_part(policy: Policy, start: int) -> None:
    states = sample(policy, start=start).states
    for step, state in enumerate(states):
        apart = (state[:, 1:] - state[:, :1]).flatten(2).abs().amax(2)
        assert bool((apart == 0).all() if step <= start else (apart > 1e-3).all())


def test_each_evaluation_of_the_unet_is_counted(policy: Policy) -> None:
    evaluated: list[int] = []
    hook = policy.denoiser.register_forward_hook(lambda _, inputs, output: evaluated.append(len(inputs[0])))
    noise = step_noise(LATENT_SHAPE, branches=BRANCHES, steps=STEPS, seeds=SEEDS)
    # 3 prompts: 3 steps of one trunk, by whose last noise branches part, then 2 steps of 3 branches; guidance
    # evaluates each state twice.
    for guidance, start, expected in ((1.0, 0, 3 * 15), (3.0, 0, 2 * 3 * 15), (3.0, 2, 2 * 3 * (3 + 6))):
        evaluated.clear()
        sampling = SamplingConfig(steps=STEPS, guidance=guidance)
        branches = grow(policy, sampling, PROMPTS, noise, start=start)
        assert branches.unet_evaluations == sum(evaluated) == expected
    hook.remove()


def test_nothing_holds_a_graph(policy: Policy) -> None:
    assert any(parameter.requires_grad for parameter in policy.parameters)
    assert not sample(policy).states.requires_grad


@PREDICTION_TYPES
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_without_noise_a_branch_is_diffusers_own_sample(
    pipelines: dict[str, Path], policies: dict[str, Policy], prediction_type: str, guidance: float
) -> None:
    policy = policies[prediction_type]
    noise = step_noise(LATENT_SHAPE, branches=1, steps=0, seeds=SEEDS)
    grown = grow(policy, SamplingConfig(steps=10, guidance=guidance, eta=0.0), PROMPTS, noise)
    pipeline = StableDiffusionXLPipeline.from_pretrained(pipelines[prediction_type], add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    for row, prompt in enumerate(PROMPTS):
        drawn = {
            kind: pipeline(
                prompt.text,
                num_inference_steps=10,
                guidance_scale=guidance,
                eta=0.0,
                latents=noise[0, row],
                output_type=kind,
            ).images[0]
            for kind in ("latent", "np")
        }
        torch.testing.assert_close(grown.clean[row, 0], drawn["latent"], atol=1e-4, rtol=1e-4)
        assert np.abs(grown.previews[9][row, 0] - 255 * drawn["np"]).max() <= 1


@PREDICTION_TYPES
def test_noise_of_eta_1_goes_in_as_diffusers_puts_it(
    policies: dict[str, Policy], prediction_type: str
) -> None:
    policy = policies[prediction_type]
    noise = step_noise(LATENT_SHAPE, branches=2, steps=10, seeds=SEEDS)
    grown = grow(policy, SamplingConfig(steps=10, guidance=1.0), PROMPTS, noise)
    scheduler = policy._pipeline.scheduler
    scheduler.set_timesteps(10)
    text = policy.encode([prompt.text for prompt in PROMPTS])
    for branch in range(2):
        state = noise[0, :, branch]
        for j, timestep in enumerate(scheduler.timesteps):
            with torch.no_grad():
                output = policy.predict(state, timestep.expand(3), text, 1.0)
            step = scheduler.step(output, timestep, state, eta=1.0, variance_noise=noise[j + 1, :, branch])
            state = step.prev_sample
            torch.testing.assert_close(grown.states[j + 1, :, branch], state, atol=1e-3, rtol=1e-3)


@pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # diffusers' table of levels
@pytest.mark.parametrize("eta", [0.0, 1.0])
@PREDICTION_TYPES
def test_dpm_solver_takes_the_steps_of_diffusers_own(
    policies: dict[str, Policy], prediction_type: str, eta: float
) -> None:
    policy, steps = policies[prediction_type], 10
    noise = step_noise(LATENT_SHAPE, branches=2, steps=steps, seeds=SEEDS)
    sampling = SamplingConfig(steps=steps, guidance=1.0, solver="dpmpp_2m", eta=eta)
    grown = grow(policy, sampling, PROMPTS, noise)
    schedule, text = policy.schedule(steps), policy.encode([prompt.text for prompt in PROMPTS])
    for branch in range(2):
        # Its own levels would be rounded from a table; it is given ours.
        scheduler = DPMSolverMultistepScheduler.from_config(
            policy._pipeline.scheduler.config,
            algorithm_type="sde-dpmsolver++" if eta else "dpmsolver++",
            final_sigmas_type="zero",
        )
        scheduler.set_timesteps(steps)
        levels, last = schedule.levels_T, schedule.next_levels_T[-1:]
        scheduler.timesteps = schedule.timesteps_T
        scheduler.sigmas = torch.cat([levels.noise / levels.signal, last.noise / last.signal])
        state = noise[0, :, branch]
        for j, timestep in enumerate(scheduler.timesteps):
            with torch.no_grad():
                output = policy.predict(state, timestep.expand(3), text, 1.0)
            fresh = noise[j + 1, :, branch] if eta else None
            state = scheduler.step(output, timestep, state, variance_noise=fresh).prev_sample
            torch.testing.assert_close(grown.states[j + 1, :, branch], state, atol=1e-3, rtol=1e-3)


SOLVERS = pytest.mark.parametrize("solver", ["ddim", "dpmpp_2m"])


@SOLVERS
@pytest.mark.parametrize("start", [0, 2])
def test_branches_that_go_on_are_those_of_an_unbroken_growth(
    policy: Policy, start: int, solver: Literal["ddim", "dpmpp_2m"]
) -> None:
    noise = step_noise(LATENT_SHAPE, branches=BRANCHES, steps=STEPS, seeds=SEEDS)
    sampling = SamplingConfig(steps=STEPS, guidance=2.0, solver=solver)
    columns, rows = torch.tensor([[0, 2], [1, 2], [0, 1]]), torch.arange(3)[:, None]
    whole = grow(policy, sampling, PROMPTS, noise, start=start, previews=(3, -1))
    begun = grow(policy, sampling, PROMPTS, noise, start=start, previews=(3, -1), until=4)
    assert sorted(begun.previews) == [3]
    assert begun.images == 3 * BRANCHES
    kept = begun.kept_from(3).kept(columns)
    assert (kept.first, kept.taken) == (3, 4)
    last = grow(policy, sampling, PROMPTS, noise[:, rows, columns], start=start, previews=(3, -1), grown=kept)
    assert sorted(last.previews) == [4]
    assert last.unet_evaluations == 2 * 3 * 2  # one step of two branches of three prompts, with guidance
    joined = kept.then(last)
    assert joined.unet_evaluations == whole.unet_evaluations - 2 * 3
    assert (joined.first, joined.taken) == (3, STEPS)
    assert joined.states.shape == (STEPS + 1 - 3, 3, 2, *LATENT_SHAPE)
    torch.testing.assert_close(joined.states, whole.states[3:, rows, columns], atol=1e-4, rtol=1e-4)
    for step, pictures in joined.previews.items():
        assert np.abs(pictures.astype(int) - whole.previews[step][rows, columns]).max() <= 1


@SOLVERS
def test_branches_that_end_early_end_in_their_estimate(
    policy: Policy, solver: Literal["ddim", "dpmpp_2m"]
) -> None:
    """They are the unbroken ones up to their last step; there the estimate that those decode is their end."""
    noise = step_noise(LATENT_SHAPE, branches=BRANCHES, steps=STEPS, seeds=SEEDS)
    sampling = SamplingConfig(steps=STEPS, guidance=1.0, solver=solver)
    whole = grow(policy, sampling, PROMPTS, noise, start=1, previews=(1, 2))
    early = grow(policy, sampling, PROMPTS, noise, start=1, end=3, previews=(1, -1))
    assert early.unet_evaluations == len(PROMPTS) * (2 + BRANCHES)
    assert torch.equal(early.states[:3], whole.states[:3])
    assert early.taken == 3
    assert sorted(early.previews) == [1, 2]
    assert np.array_equal(early.previews[1], whole.previews[1])
    assert np.array_equal(early.previews[2], whole.previews[2])
    decoded = policy.decode(early.clean.flatten(0, 1))
    assert np.array_equal(decoded, early.previews[2].reshape(decoded.shape))
