"""DDIM against diffusers, step by step, and its densities against torch's."""

import math

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from trainer.diffusion import (
    PredictionType,
    Schedule,
    add_noise,
    clean_and_noise,
    log_probability,
    step_distribution,
    target_output,
)

PREDICTION_TYPES: tuple[PredictionType, ...] = ("epsilon", "v_prediction")
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


def model(sample: Tensor, timestep: Tensor) -> Tensor:
    """Stands for a UNet: any function of state and time."""
    return torch.sin(3 * sample + timestep / 100)


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_a_trajectory_is_that_of_diffusers(prediction_type: PredictionType, eta: float) -> None:
    steps = 10
    scheduler = scheduler_of(prediction_type, steps)
    schedule = schedule_of(scheduler, steps)
    assert len(schedule) == steps
    state = random(0, *SHAPE)
    for j, timestep in enumerate(scheduler.timesteps):
        output, noise = model(state, timestep), random(j + 1, *SHAPE)
        theirs = scheduler.step(output, timestep, state, eta=eta, variance_noise=noise if eta else None)
        alpha_bar, next_alpha_bar = schedule.alpha_bars_T[j], schedule.next_alpha_bars_T[j]
        clean, eps = clean_and_noise(state, output, alpha_bar, schedule.prediction_type)
        mean, std = step_distribution(clean, eps, alpha_bar, next_alpha_bar, eta)
        torch.testing.assert_close(clean, theirs.pred_original_sample, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(mean + std * noise, theirs.prev_sample, atol=1e-5, rtol=1e-5)
        state = theirs.prev_sample


@pytest.mark.parametrize("steps", [1, 2, 7, 10, 20, 30, 50, 77, 250, 1000])
def test_timesteps_are_those_of_diffusers(steps: int) -> None:
    scheduler = scheduler_of("epsilon", steps)
    schedule = schedule_of(scheduler, steps)
    assert schedule.timesteps_T.tolist() == scheduler.timesteps.tolist()
    assert schedule.timesteps_T[0] == 999
    assert schedule.alpha_bars_T.tolist() == scheduler.alphas_cumprod[schedule.timesteps_T].tolist()


def test_a_step_ends_where_the_next_begins() -> None:
    schedule = Schedule.spaced(torch.linspace(0.99, 0.01, 100), 7, "epsilon", final_alpha_bar=0.995)
    assert schedule.next_alpha_bars_T[:-1].tolist() == schedule.alpha_bars_T[1:].tolist()
    assert schedule.next_alpha_bars_T[-1] == torch.tensor(0.995)
    assert (schedule.next_alpha_bars_T > schedule.alpha_bars_T).all()


def test_a_schedule_moves_with_its_device() -> None:
    schedule = Schedule.spaced(torch.linspace(0.99, 0.01, 100), 5, "v_prediction", final_alpha_bar=1.0)
    moved = schedule.to(torch.device("meta"))
    assert {moved.timesteps_T.device.type, moved.next_alpha_bars_T.device.type} == {"meta"}
    assert moved.prediction_type == "v_prediction"
    assert schedule.timesteps_T.device.type == "cpu"


@pytest.mark.parametrize("steps", [0, -1, 101])
def test_impossible_steps_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=f"sampling.steps is {steps}; this model was trained on 1 to 100"):
        Schedule.spaced(torch.linspace(0.99, 0.01, 100), steps, "epsilon", final_alpha_bar=1.0)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("alpha_bar", [torch.tensor(0.3), torch.tensor([0.01, 0.5, 0.99])])
def test_the_target_output_leads_to_the_clean_latents(
    prediction_type: PredictionType, alpha_bar: Tensor
) -> None:
    sample, clean = random(0, *SHAPE), random(1, *SHAPE)
    target = target_output(sample, clean, alpha_bar, prediction_type)
    found, eps = clean_and_noise(sample, target, alpha_bar, prediction_type)
    torch.testing.assert_close(found, clean, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(add_noise(clean, eps, alpha_bar), sample, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_a_row_has_the_noise_level_of_its_own(prediction_type: PredictionType) -> None:
    sample, output, levels = random(0, *SHAPE), random(1, *SHAPE), torch.tensor([0.1, 0.5, 0.9])
    together = clean_and_noise(sample, output, levels, prediction_type)
    for row, level in enumerate(levels):
        alone = clean_and_noise(sample[row : row + 1], output[row : row + 1], level, prediction_type)
        for many, one in zip(together, alone, strict=True):
            torch.testing.assert_close(many[row], one[0])


def test_the_forward_process_is_that_of_diffusers() -> None:
    scheduler = scheduler_of("epsilon", 10)
    clean, noise, timesteps = random(0, *SHAPE), random(1, *SHAPE), torch.tensor([3, 500, 999])
    theirs = scheduler.add_noise(clean, noise, timesteps)
    torch.testing.assert_close(add_noise(clean, noise, scheduler.alphas_cumprod[timesteps]), theirs)
    velocity = scheduler.get_velocity(clean, noise, timesteps)
    target = target_output(theirs, clean, scheduler.alphas_cumprod[timesteps], "v_prediction")
    torch.testing.assert_close(target, velocity, atol=2e-4, rtol=1e-3)


def test_eta_1_is_ddpm() -> None:
    # arXiv 2006.11239, equation 7: mean and variance of the state before, given x0 and this state.
    alpha_bar, next_alpha_bar = torch.tensor(0.25), torch.tensor(0.64)
    alpha, beta = alpha_bar / next_alpha_bar, 1 - alpha_bar / next_alpha_bar
    clean, noise = random(0, *SHAPE), random(1, *SHAPE)
    sample = add_noise(clean, noise, alpha_bar)
    mean, std = step_distribution(clean, noise, alpha_bar, next_alpha_bar, 1.0)
    of_clean = next_alpha_bar.sqrt() * beta / (1 - alpha_bar)
    of_sample = alpha.sqrt() * (1 - next_alpha_bar) / (1 - alpha_bar)
    torch.testing.assert_close(mean, of_clean * clean + of_sample * sample)
    assert float(std**2) == pytest.approx(float(beta * (1 - next_alpha_bar) / (1 - alpha_bar)))


def test_eta_0_is_deterministic() -> None:
    clean, eps = random(0, *SHAPE), random(1, *SHAPE)
    mean, std = step_distribution(clean, eps, torch.tensor(0.2), torch.tensor(0.6), 0.0)
    assert std == 0
    torch.testing.assert_close(mean, add_noise(clean, eps, torch.tensor(0.6)))


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
