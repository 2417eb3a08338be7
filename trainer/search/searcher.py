"""What every search is made of: steps, x0 estimates and scores of one prompt's states, counted and bounded.

Shapes: N states, (C, h, w) a latent, (H, W) a picture; `j` is a denoising step, counted from 0 (pure noise).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.config import SamplingConfig
from trainer.diffusion import clean_and_noise
from trainer.policy import Policy
from trainer.solver import step

Judge = Callable[[NDArray[np.uint8], str], Tensor]
"""(N, H, W, 3) pictures and their prompt to (N,) scores, NaN where a score failed."""

BATCH = 16
"""States that the model sees at a time; bounds its memory."""


@dataclass(frozen=True, slots=True)
class Found:
    """The best finished picture of a search, and what it cost."""

    picture: NDArray[np.uint8]
    """(H, W, 3)"""
    score: float
    evaluations: int
    """Of the denoiser: NFE."""
    pictures_judged: int
    """x0 estimates among them."""
    best_scores: tuple[float, ...]
    """The best finished score after each batch of finished pictures, once there is one."""


class Searcher:
    """One prompt, a judge and a budget of evaluations."""

    def __init__(
        self,
        policy: Policy,
        judge: Judge,
        prompt: str,
        *,
        sampling: SamplingConfig,
        budget: int,
        seed: int = 0,
    ) -> None:
        """A search that has not begun.

        Args:
            policy: the model.
            judge: scores pictures.
            prompt: what the picture is of.
            sampling: steps and guidance; eta is how noisy the paths are that a search steers or draws.
            budget: evaluations of the denoiser that may be spent.
            seed: of all its noise.
        """
        self.policy, self._judge, self._prompt = policy, judge, prompt
        self.sampling, self.budget = sampling, budget
        self.schedule = policy.schedule(sampling.steps)
        self._generator = torch.Generator().manual_seed(seed)
        self._text = policy.encode([prompt])
        self.evaluations = 0
        self.pictures_judged = 0
        self._best: tuple[float, NDArray[np.uint8]] | None = None
        self._best_scores: list[float] = []

    @property
    def steps(self) -> int:
        """Denoising steps from noise to picture."""
        return len(self.schedule)

    @property
    def affordable(self) -> int:
        """Steps of single states that the rest of the budget pays for."""
        return (self.budget - self.evaluations) // self.policy.evaluations(self.sampling.guidance)

    def noise(self, count: int) -> Tensor:
        """(N, C, h, w) standard noise."""
        drawn = torch.randn(count, *self.policy.latent_shape, generator=self._generator)
        return drawn.to(self.policy.device)

    @torch.no_grad()
    def output(self, states: Tensor, j: int) -> Tensor:
        """What the model says at N states before step j; costs N steps.

        Raises:
            RuntimeError: the budget is spent.
        """
        if len(states) > self.affordable:
            raise RuntimeError(f"{len(states)} steps are not left in a budget of {self.budget} evaluations")
        self.evaluations += len(states) * self.policy.evaluations(self.sampling.guidance)
        return torch.cat([self._predict(part, j) for part in states.split(BATCH)])

    def estimate(self, states: Tensor, j: int) -> Tensor:
        """The x0 that the model sees in N states before step j; costs N steps."""
        level, kind = self.schedule.levels_T[j], self.schedule.prediction_type
        return clean_and_noise(states, self.output(states, j), level, kind)[0]

    def distribution(self, states: Tensor, j: int, eta: float) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of where a step of DDIM leads; costs N steps."""
        _, mean, std = step(self.schedule, j, states, self.output(states, j), eta=eta)
        return mean, std

    def denoise(self, states: Tensor, first: int = 0, *, last: int | None = None, eta: float = 0.0) -> Tensor:
        """Take steps `first` up to `last`, by default to the end; costs N times as many steps."""
        earlier = None
        for j in range(first, self.steps if last is None else last):
            output = self.output(states, j)
            clean, mean, std = step(self.schedule, j, states, output, eta=eta, earlier=earlier)
            states = mean if eta == 0 else mean + std * self.noise(len(states))
            earlier = clean if self.sampling.solver == "dpmpp_2m" else None
        return states

    def judge(self, latents: Tensor, *, finished: bool) -> Tensor:
        """(N,) scores of decoded latents; a failed one is the worst there is. Finished pictures are kept."""
        pictures = self.policy.decode(latents)
        scores = self._judge(pictures, self._prompt).nan_to_num(-torch.inf)
        self.pictures_judged += len(pictures)
        if finished:
            best = int(scores.argmax())
            if self._best is None or float(scores[best]) > self._best[0]:
                self._best = float(scores[best]), pictures[best]
            if self._best[0] > -torch.inf:
                self._best_scores.append(self._best[0])
        return scores

    def found(self) -> Found:
        """The best finished picture so far. Raises RuntimeError where none was scored."""
        if self._best is None or self._best[0] == -torch.inf:
            raise RuntimeError("no picture of the search could be scored; look at the reward services")
        score, picture = self._best
        return Found(picture, score, self.evaluations, self.pictures_judged, tuple(self._best_scores))

    def _predict(self, states: Tensor, j: int) -> Tensor:
        text = self._text.take(torch.zeros(len(states), dtype=torch.long))
        timesteps = self.schedule.timesteps_T[j].expand(len(states))
        return self.policy.predict(states, timesteps, text, self.sampling.guidance)
