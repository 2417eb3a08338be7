"""Steps against diffusers' samplers and posteriors worked out another way, densities against torch's."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from trainer.diffusion import (
    Level,
    PredictionType,
    Schedule,
    add_noise,
    clean_and_noise,
    log_probability,
    step_distribution,
    target_output,
)

PREDICTION_TYPES: tuple[PredictionType, ...] = ("epsilon", "v_prediction", "flow")
DDPM: tuple[PredictionType, ...] = ("epsilon", "v_prediction")
SHAPE = (3, 4, 5, 5)


def scheduler_of(prediction_type: PredictionType, steps: int) -> DDIMScheduler:
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type=prediction_type,
        clip_sample=False,
        set_alpha_to_one=False,
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(steps)
    return scheduler


def schedule_of(scheduler: DDIMScheduler, steps: int) -> Schedule:
    return Schedule.spaced(
        scheduler.alphas_cumprod,
        steps,
        scheduler.config.prediction_type,
        final_alpha_bar=float(scheduler.final_alpha_cumprod),
    )


def level_of(prediction_type: PredictionType, share: Tensor) -> Level:
    """A level whose alpha_bar, or sigma, is `share`."""
    return Level.of_sigma(share) if prediction_type == "flow" else Level.of_alpha_bar(share)


def model(sample: Tensor, timestep: Tensor) -> Tensor:
    """Stands for a UNet: any function of state and time."""
    return torch.sin(3 * sample + timestep / 100)


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("prediction_type", DDPM)
def test_a_trajectory_is_that_of_diffusers(prediction_type: PredictionType, eta: float) -> None:
    steps = 10
    scheduler = scheduler_of(prediction_type, steps)
    schedule = schedule_of(scheduler, steps)
    assert len(schedule) == steps
    state = random(0, *SHAPE)
    for j, timestep in enumerate(scheduler.timesteps):
        output, noise = model(state, timestep), random(j + 1, *SHAPE)
        theirs = scheduler.step(output, timestep, state, eta=eta, variance_noise=noise if eta else None)
        level, next_level = schedule.levels_T[j], schedule.next_levels_T[j]
        clean, eps = clean_and_noise(state, output, level, schedule.prediction_type)
        mean, std = step_distribution(clean, eps, level, next_level, eta)
        torch.testing.assert_close(clean, theirs.pred_original_sample, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(mean + std * noise, theirs.prev_sample, atol=1e-5, rtol=1e-5)
        state = theirs.prev_sample


@pytest.mark.parametrize("steps", [1, 4, 9])
def test_without_noise_a_flow_is_eulers(steps: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(steps)
    schedule = Schedule.of_flow(scheduler.timesteps, scheduler.sigmas)
    assert len(schedule) == steps
    state = random(0, *SHAPE)
    for j, timestep in enumerate(scheduler.timesteps):
        output = model(state, timestep)
        theirs = scheduler.step(output, timestep, state).prev_sample
        clean, eps = clean_and_noise(state, output, schedule.levels_T[j], "flow")
        mean, std = step_distribution(clean, eps, schedule.levels_T[j], schedule.next_levels_T[j], 0.0)
        assert std == 0
        torch.testing.assert_close(mean, theirs, atol=1e-5, rtol=1e-5)
        state = theirs


@pytest.mark.parametrize("steps", [1, 2, 7, 10, 20, 30, 50, 77, 250, 1000])
def test_timesteps_are_those_of_diffusers(steps: int) -> None:
    scheduler = scheduler_of("epsilon", steps)
    schedule = schedule_of(scheduler, steps)
    assert schedule.timesteps_T.tolist() == scheduler.timesteps.tolist()
    assert schedule.timesteps_T[0] == 999
    expected = Level.of_alpha_bar(scheduler.alphas_cumprod[schedule.timesteps_T])
    assert torch.equal(schedule.levels_T.signal, expected.signal)
    assert torch.equal(schedule.levels_T.noise, expected.noise)
    torch.testing.assert_close(expected.signal**2 + expected.noise**2, torch.ones(steps))


def test_a_step_ends_where_the_next_begins() -> None:
    schedule = Schedule.spaced(torch.linspace(0.99, 0.01, 100), 7, "epsilon", final_alpha_bar=0.995)
    assert torch.equal(schedule.next_levels_T.signal[:-1], schedule.levels_T.signal[1:])
    assert torch.equal(schedule.next_levels_T.noise[:-1], schedule.levels_T.noise[1:])
    assert schedule.next_levels_T.signal[-1] == torch.tensor(0.995).sqrt()
    assert (schedule.next_levels_T.signal > schedule.levels_T.signal).all()


def test_steps_that_end_early_end_in_the_estimate() -> None:
    whole = Schedule.spaced(torch.linspace(0.99, 0.01, 100), 7, "epsilon", final_alpha_bar=0.995)
    early = whole.ending(3)
    assert len(early) == 3
    assert torch.equal(early.timesteps_T, whole.timesteps_T[:3])
    assert torch.equal(early.levels_T.noise, whole.levels_T.noise[:3])
    assert torch.equal(early.next_levels_T.noise[:2], whole.next_levels_T.noise[:2])
    clean, eps = random(0, *SHAPE), random(1, *SHAPE)
    mean, std = step_distribution(clean, eps, early.levels_T[2], early.next_levels_T[2], 1.0)
    assert torch.equal(mean, clean)
    assert std == 0
    assert whole.ending(7) is whole


def test_a_flows_step_ends_where_the_next_begins() -> None:
    schedule = Schedule.of_flow(torch.tensor([1000.0, 600.0]), torch.tensor([1.0, 0.6, 0.0]))
    assert schedule.prediction_type == "flow"
    assert schedule.levels_T.noise.tolist() == pytest.approx([1.0, 0.6])
    assert schedule.levels_T.signal.tolist() == pytest.approx([0.0, 0.4])
    assert schedule.next_levels_T.noise.tolist() == pytest.approx([0.6, 0.0])


def test_a_schedule_moves_with_its_device() -> None:
    schedule = Schedule.spaced(torch.linspace(0.99, 0.01, 100), 5, "v_prediction", final_alpha_bar=1.0)
    moved = schedule.to(torch.device("meta"))
    assert {x.device.type for x in (moved.timesteps_T, moved.levels_T.signal, moved.next_levels_T.noise)} == {
        "meta"
    }
    assert moved.prediction_type == "v_prediction"
    assert schedule.timesteps_T.device.type == "cpu"


@pytest.mark.parametrize("steps", [0, -1, 101])
def test_impossible_steps_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=f"sampling.steps is {steps}; this model was trained on 1 to 100"):
        Schedule.spaced(torch.linspace(0.99, 0.01, 100), steps, "epsilon", final_alpha_bar=1.0)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("share", [torch.tensor(0.3), torch.tensor([0.01, 0.5, 0.99])])
def test_the_target_output_leads_to_the_clean_latents(prediction_type: PredictionType, share: Tensor) -> None:
    sample, clean, level = random(0, *SHAPE), random(1, *SHAPE), level_of(prediction_type, share)
    target = target_output(sample, clean, level, prediction_type)
    found, eps = clean_and_noise(sample, target, level, prediction_type)
    torch.testing.assert_close(found, clean, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(add_noise(clean, eps, level), sample, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_a_row_has_the_noise_level_of_its_own(prediction_type: PredictionType) -> None:
    sample, output = random(0, *SHAPE), random(1, *SHAPE)
    levels = level_of(prediction_type, torch.tensor([0.1, 0.5, 0.9]))
    together = clean_and_noise(sample, output, levels, prediction_type)
    for row in range(3):
        alone = clean_and_noise(sample[row : row + 1], output[row : row + 1], levels[row], prediction_type)
        for many, one in zip(together, alone, strict=True):
            torch.testing.assert_close(many[row], one[0])


def test_the_forward_process_is_that_of_diffusers() -> None:
    scheduler = scheduler_of("epsilon", 10)
    clean, noise, timesteps = random(0, *SHAPE), random(1, *SHAPE), torch.tensor([3, 500, 999])
    theirs = scheduler.add_noise(clean, noise, timesteps)
    levels = Level.of_alpha_bar(scheduler.alphas_cumprod[timesteps])
    torch.testing.assert_close(add_noise(clean, noise, levels), theirs)
    velocity = scheduler.get_velocity(clean, noise, timesteps)
    target = target_output(theirs, clean, levels, "v_prediction")
    torch.testing.assert_close(target, velocity, atol=2e-4, rtol=1e-3)


def test_the_forward_process_of_a_flow_is_that_of_diffusers() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    clean, noise, timesteps = random(0, *SHAPE), random(1, *SHAPE), scheduler.timesteps[[3, 500, 900]]
    levels = Level.of_sigma(timesteps / 1000)
    torch.testing.assert_close(
        add_noise(clean, noise, levels), scheduler.scale_noise(clean, timesteps, noise), atol=1e-5, rtol=1e-5
    )
    # The velocity that flow matching is trained on: d x / d sigma.
    found = target_output(add_noise(clean, noise, levels), clean, levels, "flow")
    torch.testing.assert_close(found, noise - clean, atol=1e-4, rtol=1e-4)


def test_eta_1_is_ddpm() -> None:
    # arXiv 2006.11239, equation 7: mean and variance of the state before, given x0 and this state.
    alpha_bar, next_alpha_bar = torch.tensor(0.25), torch.tensor(0.64)
    level, next_level = Level.of_alpha_bar(alpha_bar), Level.of_alpha_bar(next_alpha_bar)
    alpha, beta = alpha_bar / next_alpha_bar, 1 - alpha_bar / next_alpha_bar
    clean, noise = random(0, *SHAPE), random(1, *SHAPE)
    sample = add_noise(clean, noise, level)
    mean, std = step_distribution(clean, noise, level, next_level, 1.0)
    of_clean = next_alpha_bar.sqrt() * beta / (1 - alpha_bar)
    of_sample = alpha.sqrt() * (1 - next_alpha_bar) / (1 - alpha_bar)
    torch.testing.assert_close(mean, of_clean * clean + of_sample * sample)
    assert float(std**2) == pytest.approx(float(beta * (1 - next_alpha_bar) / (1 - alpha_bar)))


@pytest.mark.parametrize(("sigma", "next_sigma"), [(0.9, 0.7), (0.5, 0.25), (0.1, 0.02)])
def test_eta_1_is_the_posterior_of_a_flow(sigma: float, next_sigma: float) -> None:
    # The flow's own Markov chain goes from x' = a' x0 + b' eps to x = r x' + sqrt(v) eps,
    # with r = a / a' and v = b^2 - r^2 b'^2.
    # Bayes: the precisions of both Gaussians in x' add up, and the mean weighs a' x0 and x / r by them.
    level, next_level = (Level.of_sigma(torch.tensor(value)) for value in (sigma, next_sigma))
    clean, noise = random(0, *SHAPE), random(1, *SHAPE)
    sample = add_noise(clean, noise, level)
    ratio = (1 - sigma) / (1 - next_sigma)
    prior, likelihood = 1 / next_sigma**2, ratio**2 / (sigma**2 - ratio**2 * next_sigma**2)
    expected = (prior * (1 - next_sigma) * clean + likelihood * sample / ratio) / (prior + likelihood)
    mean, std = step_distribution(clean, noise, level, next_level, 1.0)
    torch.testing.assert_close(mean, expected, atol=1e-5, rtol=1e-5)
    assert float(std) == pytest.approx((prior + likelihood) ** -0.5, rel=1e-4)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_a_step_keeps_the_marginals(prediction_type: PredictionType, eta: float) -> None:
    """What is left of the noise and what is put back have the next level's variance together."""
    shares = (0.8, 0.45) if prediction_type == "flow" else (0.2, 0.55)
    level, next_level = (level_of(prediction_type, torch.tensor(share)) for share in shares)
    clean, eps = random(0, *SHAPE), torch.ones(SHAPE)
    mean, std = step_distribution(clean, eps, level, next_level, eta)
    left = mean - next_level.signal * clean
    torch.testing.assert_close(left**2 + std**2, (next_level.noise**2).expand(SHAPE), atol=1e-5, rtol=1e-5)
    assert (std > 0) == (eta > 0)


def test_a_flows_first_step_is_finite() -> None:
    """Pure noise says nothing of x0, so ancestral sampling draws all noise anew: std is the next level's."""
    level, next_level = Level.of_sigma(torch.tensor(1.0)), Level.of_sigma(torch.tensor(0.8))
    clean, eps = random(0, *SHAPE), random(1, *SHAPE)
    mean, std = step_distribution(clean, eps, level, next_level, 1.0)
    torch.testing.assert_close(mean, 0.2 * clean)
    assert float(std) == pytest.approx(0.8)
    _, half = step_distribution(clean, eps, level, next_level, 0.5)
    assert float(half) == pytest.approx(0.4)


def test_eta_0_is_deterministic() -> None:
    clean, eps = random(0, *SHAPE), random(1, *SHAPE)
    level, next_level = (Level.of_alpha_bar(torch.tensor(value)) for value in (0.2, 0.6))
    mean, std = step_distribution(clean, eps, level, next_level, 0.0)
    assert std == 0
    torch.testing.assert_close(mean, add_noise(clean, eps, next_level))


@pytest.mark.parametrize("std", [torch.tensor(0.3), torch.tensor([0.1, 1.0, 2.5]).reshape(3, 1, 1, 1)])
def test_log_probability_is_that_of_torch(std: Tensor) -> None:
    state, mean = random(0, *SHAPE), random(1, *SHAPE)
    expected = torch.distributions.Normal(mean, std).log_prob(state).flatten(1).sum(1)
    torch.testing.assert_close(log_probability(state, mean, std), expected)


def test_log_probability_by_hand() -> None:
    # Two numbers, one a standard deviation of 2 away from its mean: -1/2 - 2 * log(2 * sqrt(2 pi)).
    state, mean = torch.tensor([[2.0, 0.0]]), torch.zeros(1, 2)
    expected = -0.5 - 2 * math.log(2 * math.sqrt(2 * math.pi))
    assert log_probability(state, mean, torch.tensor(2.0)).item() == pytest.approx(expected)


@pytest.mark.parametrize("std", [torch.tensor(0.0), torch.tensor([1.0, 0.0, 1.0]), torch.tensor(torch.nan)])
def test_no_noise_has_no_density(std: Tensor) -> None:
    with pytest.raises(ValueError, match="use eta > 0 and leave out the last step"):
        log_probability(torch.zeros(SHAPE), torch.zeros(SHAPE), std)
