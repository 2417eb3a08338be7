"""DDIM with stochasticity eta: the schedule, the x0 estimate, the step and its exact log-probability.

Denoising Diffusion Implicit Models, arXiv 2010.02502, equations 12 and 16; eta = 0 is DDIM, eta = 1 is DDPM.
Shapes: N pictures, T steps, `...` the latent's (C, H, W). `j` counts steps from 0 (pure noise) to T - 1.
"""

import math
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor

PredictionType = Literal["epsilon", "v_prediction"]


@dataclass(frozen=True, slots=True)
class Schedule:
    """The T noise levels of a trajectory: alpha_bar before and after each step."""

    timesteps_T: Tensor
    """(T,) long: the timestep the model is asked at in each step, falling."""
    alpha_bars_T: Tensor
    """(T,) float32: cumulative alpha before each step, rising."""
    next_alpha_bars_T: Tensor
    """(T,) float32: cumulative alpha after each step; the last is that of a finished picture."""
    prediction_type: PredictionType

    @classmethod
    def spaced(
        cls, alphas_cumprod: Tensor, steps: int, prediction_type: PredictionType, *, final_alpha_bar: float
    ) -> Self:
        """Trailing spacing: the first step starts at the last training timestep (arXiv 2305.08891, table 2).

        A step ends where the next begins. diffusers' DDIMScheduler does the same when `steps` divides the
        number of training timesteps, and is one timestep off here and there when it does not.

        Raises:
            ValueError: more steps than the model was trained on, or none.
        """
        trained = len(alphas_cumprod)
        if not 1 <= steps <= trained:
            raise ValueError(f"sampling.steps is {steps}; this model was trained on 1 to {trained} steps")
        timesteps = torch.tensor([round(trained - j * trained / steps) - 1 for j in range(steps)])
        before = alphas_cumprod[timesteps].float()
        after = torch.cat([before[1:], torch.tensor([final_alpha_bar])])
        return cls(timesteps, before, after, prediction_type)

    def to(self, device: torch.device) -> "Schedule":
        """The same levels on another device."""
        return Schedule(
            self.timesteps_T.to(device),
            self.alpha_bars_T.to(device),
            self.next_alpha_bars_T.to(device),
            self.prediction_type,
        )

    def __len__(self) -> int:
        return len(self.timesteps_T)


def clean_and_noise(
    sample: Tensor, output: Tensor, alpha_bar: Tensor, prediction_type: PredictionType
) -> tuple[Tensor, Tensor]:
    """The estimates of x0 and of the noise that a model output implies.

    Args:
        sample: (N, ...) noisy latents.
        output: (N, ...) the model's prediction.
        alpha_bar: scalar or (N,) cumulative alpha of the sample.
        prediction_type: what the model predicts: noise, or velocity sqrt(a) eps - sqrt(1 - a) x0.
    """
    signal, noise = _root(alpha_bar, sample), _root(1 - alpha_bar, sample)
    if prediction_type == "v_prediction":
        return signal * sample - noise * output, noise * sample + signal * output
    return (sample - noise * output) / signal, output


def target_output(
    sample: Tensor, clean: Tensor, alpha_bar: Tensor, prediction_type: PredictionType
) -> Tensor:
    """(N, ...): what the model should have said at `sample` for its trajectory to end in `clean`."""
    signal, noise = _root(alpha_bar, sample), _root(1 - alpha_bar, sample)
    eps = (sample - signal * clean) / noise
    return signal * eps - noise * clean if prediction_type == "v_prediction" else eps


def add_noise(clean: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """The forward process: (N, ...) clean latents and standard noise to latents at `alpha_bar`."""
    return _root(alpha_bar, clean) * clean + _root(1 - alpha_bar, clean) * noise


def step_distribution(
    clean: Tensor, eps: Tensor, alpha_bar: Tensor, next_alpha_bar: Tensor, eta: float
) -> tuple[Tensor, Tensor]:
    """Mean (N, ...) and standard deviation of the next state, from the estimates of x0 and of the noise."""
    variance = eta**2 * (1 - next_alpha_bar) / (1 - alpha_bar) * (1 - alpha_bar / next_alpha_bar)
    direction = _root((1 - next_alpha_bar - variance).clamp(min=0), clean)
    return _root(next_alpha_bar, clean) * clean + direction * eps, _root(variance, clean)


def log_probability(state: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Log-density of a step's Gaussian, summed over the latent: (N, ...) to (N,).

    Raises:
        ValueError: a step without noise has no density.
    """
    if not bool((std > 0).all()):
        raise ValueError(
            "a step with standard deviation 0 has no log-probability; use eta > 0 and leave out the last step"
        )
    density = -((state - mean) ** 2) / (2 * std**2) - std.log() - 0.5 * math.log(2 * math.pi)
    return density.flatten(1).sum(1)


def _root(value: Tensor, like: Tensor) -> Tensor:
    """The square root of a scalar or an (N,) tensor, ready to multiply `like`, (N, ...)."""
    root = value.sqrt().to(like.dtype)
    return root.reshape(-1, *(1,) * (like.ndim - 1)) if root.ndim else root
