"""Steps along the Gaussian path x = signal * x0 + noise * eps: schedule, x0 estimate, step, log-probability.

A DDPM model's levels are signal = sqrt(alpha_bar), noise = sqrt(1 - alpha_bar); flow matching's are 1 - sigma
and sigma (arXiv 2403.03206, section 2). A step keeps the path's marginals, whatever it puts back (Denoising
Diffusion Implicit Models, arXiv 2010.02502, equations 12 and 16, for any path): eta = 0 is DDIM, and Euler's
method in flow matching; eta = 1 is ancestral sampling, DDPM. It is finite where there is no signal.
Shapes: N pictures, T steps, `...` the latent's (C, H, W). `j` counts steps from 0 (pure noise) to T - 1.
"""

import math
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor

PredictionType = Literal["epsilon", "v_prediction", "flow"]


@dataclass(frozen=True, slots=True)
class Level:
    """Places on the path: x = signal * x0 + noise * eps."""

    signal: Tensor
    """Scalar or (N,)."""
    noise: Tensor
    """Of the same shape."""

    @classmethod
    def of_alpha_bar(cls, alpha_bar: Tensor) -> Self:
        """Where a DDPM model's cumulative alpha is `alpha_bar`."""
        return cls(alpha_bar.sqrt(), (1 - alpha_bar).sqrt())

    @classmethod
    def of_sigma(cls, sigma: Tensor) -> Self:
        """Where flow matching has mixed in `sigma` of the noise."""
        return cls(1 - sigma, sigma)

    @property
    def log_ratio(self) -> Tensor:
        """log(signal / noise), half the log of the signal-to-noise ratio."""
        return (self.signal / self.noise).log()

    def to(self, device: torch.device) -> "Level":
        """The same level on another device."""
        return Level(self.signal.to(device), self.noise.to(device))

    def __getitem__(self, rows: int | slice | Tensor) -> "Level":
        """Some of N levels."""
        return Level(self.signal[rows], self.noise[rows])


@dataclass(frozen=True, slots=True)
class Schedule:
    """The T noise levels of a trajectory, before and after each step."""

    timesteps_T: Tensor
    """(T,): the time the model is asked at in each step, falling; long for DDPM models, else float32."""
    levels_T: Level
    """(T,) float32: before each step, the signal rising."""
    next_levels_T: Level
    """(T,) float32: after each step; the last is that of a finished picture."""
    prediction_type: PredictionType

    @classmethod
    def spaced(
        cls, alphas_cumprod: Tensor, steps: int, prediction_type: PredictionType, *, final_alpha_bar: float
    ) -> Self:
        """Trailing spacing: the first step starts at the last training timestep (arXiv 2305.08891, table 2).

        A step ends where the next begins, as in diffusers' EulerDiscreteScheduler. Its DDIMScheduler takes
        each for the same number of timesteps: where `steps` does not divide the training timesteps, some of
        its steps end a timestep before the next begins.

        Raises:
            ValueError: more steps than the model was trained on, or none.
        """
        trained = len(alphas_cumprod)
        if not 1 <= steps <= trained:
            raise ValueError(f"sampling.steps is {steps}; this model was trained on 1 to {trained} steps")
        timesteps = torch.tensor([round(trained - j * trained / steps) - 1 for j in range(steps)])
        before = alphas_cumprod[timesteps].float()
        after = torch.cat([before[1:], torch.tensor([final_alpha_bar])])
        return cls(timesteps, Level.of_alpha_bar(before), Level.of_alpha_bar(after), prediction_type)

    @classmethod
    def of_flow(cls, timesteps_T: Tensor, sigmas: Tensor) -> Self:
        """Flow matching between sigmas, (T + 1,) and falling; the last is that of a finished picture."""
        return cls(timesteps_T, Level.of_sigma(sigmas[:-1]), Level.of_sigma(sigmas[1:]), "flow")

    def ending(self, steps: int) -> "Schedule":
        """The first of these steps alone, 1 to T; if more were to come, the last goes to the x0 estimate."""
        if steps == len(self):
            return self
        after, clean = self.next_levels_T[: steps - 1], self.levels_T.noise.new_zeros(1)
        ends = Level(torch.cat([after.signal, clean + 1]), torch.cat([after.noise, clean]))
        return Schedule(self.timesteps_T[:steps], self.levels_T[:steps], ends, self.prediction_type)

    def to(self, device: torch.device) -> "Schedule":
        """The same levels on another device."""
        return Schedule(
            self.timesteps_T.to(device),
            self.levels_T.to(device),
            self.next_levels_T.to(device),
            self.prediction_type,
        )

    def __len__(self) -> int:
        return len(self.timesteps_T)


def clean_and_noise(
    sample: Tensor, output: Tensor, level: Level, prediction_type: PredictionType
) -> tuple[Tensor, Tensor]:
    """The estimates of x0 and of the noise that a model output implies.

    Args:
        sample: (N, ...) noisy latents.
        output: (N, ...) the model's prediction.
        level: of the sample, one or N.
        prediction_type: what the model predicts: noise, DDPM's velocity signal * eps - noise * x0, or the
            flow's eps - x0.
    """
    signal, noise = _beside(level.signal, sample), _beside(level.noise, sample)
    if prediction_type == "v_prediction":
        return signal * sample - noise * output, noise * sample + signal * output
    if prediction_type == "flow":  # signal + noise = 1
        return sample - noise * output, sample + signal * output
    return (sample - noise * output) / signal, output


def target_output(sample: Tensor, clean: Tensor, level: Level, prediction_type: PredictionType) -> Tensor:
    """(N, ...): what the model should have said at `sample` for its trajectory to end in `clean`."""
    signal, noise = _beside(level.signal, sample), _beside(level.noise, sample)
    eps = (sample - signal * clean) / noise
    if prediction_type == "v_prediction":
        return signal * eps - noise * clean
    return eps - clean if prediction_type == "flow" else eps


def add_noise(clean: Tensor, noise: Tensor, level: Level) -> Tensor:
    """The forward process: (N, ...) clean latents and standard noise to latents at `level`."""
    return _beside(level.signal, clean) * clean + _beside(level.noise, clean) * noise


def step_distribution(
    clean: Tensor, eps: Tensor, level: Level, next_level: Level, eta: float
) -> tuple[Tensor, Tensor]:
    """Mean (N, ...) and standard deviation of the next state, from the estimates of x0 and of the noise."""
    fresh = level.noise**2 - (level.signal / next_level.signal * next_level.noise) ** 2
    variance = eta**2 * (next_level.noise / level.noise) ** 2 * fresh
    direction = (next_level.noise**2 - variance).clamp(min=0).sqrt()
    mean = _beside(next_level.signal, clean) * clean + _beside(direction, clean) * eps
    return mean, _beside(variance.sqrt(), clean)


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


def _beside(level: Tensor, like: Tensor) -> Tensor:
    """A scalar or an (N,) tensor, ready to multiply `like`, (N, ...)."""
    level = level.to(like.dtype)
    return level.reshape(-1, *(1,) * (like.ndim - 1)) if level.ndim else level
