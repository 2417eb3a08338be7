"""Grows branches of denoising trajectories without gradients and decodes what they are about to become.

Shapes: P prompts, K branches of a prompt, T steps, (C, h, w) a latent, (H, W) a picture.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.config import SamplingConfig
from trainer.families.family import Conditioning
from trainer.policy import Policy
from trainer.records import Prompt
from trainer.solver import step


class Diverged(RuntimeError):  # noqa: N818  named, as all errors here, for what is wrong
    """The model draws what is no picture."""


@dataclass(frozen=True, slots=True)
class Branches:
    """K branches of each of P prompts, from first noise to finished latent."""

    prompts: tuple[Prompt, ...]
    text: Conditioning
    """P rows."""
    states: Tensor
    """(T + 1 - first, P, K, C, h, w): the state before each step, and `clean` last."""
    previews: dict[int, NDArray[np.uint8]]
    """Scored step to the (P, K, H, W, 3) pictures of its x0 estimate; the last are finished."""
    unet_evaluations: int
    decoding_s: float = 0.0
    """Of the time that it took, what went into previews."""
    first: int = 0
    """The step before which the first of the states is."""
    estimate: Tensor | None = None
    """(P, K, C, h, w): the x0 estimate of the last step, where the next one looks back at it."""
    sizes: Tensor | None = None
    """(P, K, 6) of given pictures, as in `Conditioning`; None where a model drew pictures of its own size."""

    @property
    def taken(self) -> int:
        """Steps from the first noise."""
        return self.first + len(self.states) - 1

    @property
    def clean(self) -> Tensor:
        """(P, K, C, h, w): the finished latents, or the x0 estimates that branches ended in."""
        return self.states[-1]

    @property
    def images(self) -> int:
        """How many previews there are."""
        return sum(of_step.shape[0] * of_step.shape[1] for of_step in self.previews.values())

    def told(self, rows: Tensor, columns: Tensor) -> Conditioning:
        """What a network is told of B branches: (B,) their prompts and their places among a prompt's."""
        text = self.text.take(rows)
        return text if self.sizes is None else text.of_sizes(self.sizes[rows, columns])

    def check_finite(self) -> None:
        """Raise Diverged where a branch has ended in what is no picture."""
        if not self.clean.isfinite().all():
            raise Diverged(
                "the model draws latents that are no numbers: it has diverged (go on from a checkpoint "
                "or begin again, with a lower optimizer.lr), or overflows in its number format (set "
                "model.dtype to bfloat16 or float32)"
            )

    def kept(self, columns_PN: Tensor) -> "Branches":
        """N of each prompt's branches; what the others took stays counted."""
        rows_P1 = torch.arange(len(columns_PN))[:, None]
        return replace(
            self,
            states=self.states[:, rows_P1, columns_PN],
            estimate=None if self.estimate is None else self.estimate[rows_P1, columns_PN],
            previews={step: of_step[rows_P1, columns_PN] for step, of_step in self.previews.items()},
            sizes=None if self.sizes is None else self.sizes[rows_P1, columns_PN],
        )

    def then(self, later: "Branches") -> "Branches":
        """These and the steps that they grew on by."""
        return replace(
            later,
            states=torch.cat([self.states, later.states[1:].to(self.states.device)]),
            previews=self.previews | later.previews,
            unet_evaluations=self.unet_evaluations + later.unet_evaluations,
            decoding_s=self.decoding_s + later.decoding_s,
            first=self.first,
        )

    def kept_from(self, step: int) -> "Branches":
        """The same without the states before a step; what is kept waits in the host's memory."""
        states = self.states[step - self.first :].to("cpu", copy=True)
        return replace(self, states=states, first=step)


def step_noise(shape: tuple[int, int, int], *, branches: int, steps: int, seeds: Sequence[int]) -> Tensor:
    """The randomness of P prompts: (T + 1, P, K, C, h, w), each prompt's from its own seed.

    Index 0 is the first noise. A prompt's noise depends on its seed alone, so the same branches grow whatever
    the micro-batch or the number of ranks.
    """
    drawn = [
        torch.randn(steps + 1, branches, *shape, generator=torch.Generator().manual_seed(seed % 2**63))
        for seed in seeds
    ]
    return torch.stack(drawn, dim=1)


@torch.no_grad()
def grow(  # noqa: PLR0913  where and how far branches grow, each with its own name
    policy: Policy,
    sampling: SamplingConfig,
    prompts: Sequence[Prompt],
    noise: Tensor,
    *,
    start: int = 0,
    end: int | None = None,
    previews: Sequence[int] = (-1,),
    until: int | None = None,
    grown: Branches | None = None,
) -> Branches:
    """Sample K branches of each prompt, or some steps of them: those that come after the steps of `grown`.

    Args:
        policy: the model as it is now.
        sampling: how many steps there are, and how they are taken.
        prompts: P prompts.
        noise: (T + 1, P, K, C, h, w) from `step_noise`; without eta the first is all that is read.
        start: step at which the branches part, by its noise; until then they share one trunk.
        end: T, where they end in their x0 estimates before they are finished; None is all steps.
        previews: steps from `start` on whose x0 estimate is decoded, negative ones from the end.
        until: the step to stop before, more than `start`; None is the end.
        grown: branches that grow on from where they are, `noise` being theirs.
    """
    schedule = policy.schedule(sampling.steps).ending(end or sampling.steps)
    steps, noise, branches = len(schedule), noise.to(policy.device), noise.shape[2]
    wanted = {step % steps for step in previews}
    text = policy.encode([prompt.text for prompt in prompts])
    state, earlier = noise[0, :, :1] if start > 0 else noise[0], None
    if grown is not None:
        state, earlier = grown.states[-1].to(policy.device), grown.estimate
    states, decoded, evaluations, decoding_s = [], {}, 0, 0.0
    first = 0 if grown is None else grown.taken
    for j in range(first, until or steps):
        states.append(state.expand(-1, branches, -1, -1, -1))
        output = _outputs(policy, state, schedule.timesteps_T[j], text, sampling.guidance)
        evaluations += output.shape[:2].numel() * policy.evaluations(sampling.guidance)
        clean, mean, std = step(schedule, j, state, output, eta=sampling.eta, earlier=earlier)
        noises = branches if j >= start else 1  # at `start` one state takes one of each branch: they part
        state = mean + std * noise[j + 1, :, :noises] if sampling.eta > 0 else mean
        if j in wanted:
            shown = state if j == steps - 1 else clean
            decoded[j], taken_s = _decoded(policy, shown, branches, preview=j < sampling.steps - 1)
            decoding_s += taken_s
        earlier = clean.expand_as(state) if sampling.solver == "dpmpp_2m" else None
    return Branches(
        prompts=tuple(prompts),
        text=text,
        states=torch.stack([*states, state]),
        previews=decoded,
        unet_evaluations=evaluations,
        decoding_s=decoding_s,
        first=first,
        estimate=None if until is None else earlier,
    )


def _outputs(policy: Policy, states: Tensor, timestep: Tensor, text: Conditioning, guidance: float) -> Tensor:
    """What the model says at (P, K, C, h, w) states at one time, of the same shape."""
    rows = torch.arange(len(states)).repeat_interleave(states.shape[1])
    output = policy.predict(states.flatten(0, 1), timestep.expand(len(rows)), text.take(rows), guidance)
    return output.view_as(states)


def _decoded(
    policy: Policy, latents: Tensor, branches: int, *, preview: bool
) -> tuple[NDArray[np.uint8], float]:
    """(P, K, C, h, w) latents, or of (P, 1) that K share, to (P, K, H, W, 3) pictures; seconds taken."""
    if latents.is_cuda:
        torch.cuda.synchronize()  # or the denoiser's time would count; decoding waits anyway
    began = time.perf_counter()
    pictures = policy.decode(latents.flatten(0, 1), preview=preview)
    of_latents = pictures.reshape(*latents.shape[:2], *pictures.shape[1:])
    return of_latents.repeat(branches // latents.shape[1], axis=1), time.perf_counter() - began
