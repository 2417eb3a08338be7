"""How a step follows from what a model says: DDIM, or DPM-Solver++(2M), which looks back at the step before.

Both are one Gaussian step (`diffusion.step_distribution`) from an x0 estimate; DPM-Solver++(2M) carries the
estimate on first (arXiv 2211.01095). At eta = 0 they are ODE solvers; at eta = 1 DDPM and DPM++ 2M SDE.
Shapes: N pictures, T steps, `...` the latent's (C, H, W). `j` counts steps from 0 (pure noise) to T - 1.
"""

import torch
from torch import Tensor

from trainer.diffusion import Level, Schedule, clean_and_noise, step_distribution


def step(
    schedule: Schedule, j: int, sample: Tensor, output: Tensor, *, eta: float, earlier: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Step j from a model's output: the x0 estimates, and mean and standard deviation of the next state.

    Args:
        schedule: the T noise levels.
        j: which step.
        sample: (N, ...) noisy latents.
        output: (N, ...) the model's prediction there.
        eta: noise put back.
        earlier: (N, ...) the x0 estimates of the step before, for DPM-Solver++(2M); None is DDIM.
    """
    level = schedule.levels_T[j]
    clean, eps = clean_and_noise(sample, output, level, schedule.prediction_type)
    carried = clean
    if earlier is not None:
        carried, eps = carried_on(sample, clean, earlier, level, carries(schedule)[j])
    return clean, *step_distribution(carried, eps, level, schedule.next_levels_T[j], eta)


def carries(schedule: Schedule) -> Tensor:
    """(T,): how far each step of DPM-Solver++(2M) carries on from the one before it: h / (2 h_before).

    h is the growth of log(signal / noise) over a step (algorithm 2 of the paper). The first step has none
    before it, and the last, which leaves no noise, is of first order.
    """
    growth_T = schedule.next_levels_T.log_ratio - schedule.levels_T.log_ratio
    carries_T = torch.zeros_like(growth_T)
    carries_T[1:-1] = growth_T[1:-1] / (2 * growth_T[:-2])
    return carries_T


def carried_on(
    sample: Tensor, clean: Tensor, earlier: Tensor, level: Level, carry: Tensor
) -> tuple[Tensor, Tensor]:
    """The estimates of x0 and of the noise that a step of DPM-Solver++(2M) takes (arXiv 2211.01095).

    The x0 estimate moves on as it did since the step before; the noise is what then explains the sample. With
    these, `step_distribution` at eta = 0 is the paper's algorithm 2, at eta = 1 its SDE form.

    Args:
        sample: (N, ...) noisy latents.
        clean: (N, ...) the x0 estimate there.
        earlier: (N, ...) that of the step before.
        level: of all samples.
        carry: of this step, from `carries`.
    """
    carried = clean + carry * (clean - earlier)
    return carried, (sample - level.signal * carried) / level.noise
