"""Draws pictures of held-out prompts plainly (DDIM, no search) and has them judged: the same seeds before and after."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from reward_services import Score
from trainer.branches import grow, step_noise
from trainer.config import TrainConfig
from trainer.evaluation import EvaluationResult, diversity
from trainer.features import ImageFeatures
from trainer.policy import Policy
from trainer.prompts import read_prompts
from trainer.ranks import Ranks
from trainer.records import Prompt
from trainer.scoring import Scoring

EVALUATION_SEED = 20250217
"""Pictures of every run start from the same noises."""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """An evaluation with its pictures; on ranks other than 0 too."""

    result: EvaluationResult
    pictures: NDArray[np.uint8]
    """(N, H, W, 3), in the order of the result's prompts."""
    unet_evaluations: int

    def save_pictures(self, folder: Path, count: int) -> list[Path]:
        """Write the first `count` pictures as PNG files."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{index:03d}.png" for index in range(min(count, len(self.pictures)))]
        for path, picture in zip(paths, self.pictures, strict=False):
            Image.fromarray(picture).save(path)
        return paths


class HeldOut:
    """The held-out prompts of a run, ready to be drawn as often as wanted."""

    def __init__(self, config: TrainConfig, scoring: Scoring, ranks: Ranks) -> None:
        if config.prompts.held_out is None:
            raise ValueError("prompts.held_out is not set, so there is nothing to evaluate on")
        each = config.evaluation.pictures_per_prompt
        wanted = config.evaluation.draws // each
        prompts = read_prompts(config.prompts.held_out)
        prompts = (prompts * -(-wanted // len(prompts)))[:wanted]
        self._config, self._scoring, self._ranks = config, scoring, ranks
        self._draws = [(prompt, place * each + k) for place, prompt in enumerate(prompts) for k in range(each)]
        self._rewards = [*config.rewards.weights, *([config.rewards.judge] if config.rewards.judge else [])]
        features = config.evaluation.features
        self._features = ImageFeatures(features) if features and ranks.is_main else None

    def evaluate(self, policy: Policy, update: int, guidance: float | None = None) -> Evaluated:
        """Draw and judge every held-out picture, each rank its share."""
        scale = self._config.sampling.guidance if guidance is None else guidance
        evaluations = 0
        pictures: list[NDArray[np.uint8]] = []
        pending = []
        for chunk in self._chunks():
            prompts = [prompt for prompt, _ in chunk]
            images, count = draw(
                policy, prompts, [EVALUATION_SEED + 7919 * seed for _, seed in chunk], steps=self._config.sampling.steps, guidance=scale
            )
            evaluations += count
            pictures.append(images)
            pending.append(self._scoring.submit(images, [prompt.text for prompt in prompts], self._rewards))
        scores = {name: [score for wait in pending for score in wait()[name]] for name in self._rewards}
        return self._collect(scores, pictures, update, scale, evaluations)

    def _chunks(self) -> Iterator[list[tuple[Prompt, int]]]:
        share = -(-len(self._draws) // self._ranks.world_size)
        mine = self._draws[self._ranks.rank * share : (self._ranks.rank + 1) * share]
        size = self._config.evaluation.batch_size
        return (mine[first : first + size] for first in range(0, len(mine), size))

    def _collect(
        self, scores: dict[str, list[Score]], pictures: list[NDArray[np.uint8]], update: int, guidance: float, evaluations: int
    ) -> Evaluated:
        values = {name: tuple(score.value for score in of_reward) for name, of_reward in scores.items()}
        gathered = self._ranks.gather((values, np.concatenate(pictures), evaluations))
        every = {name: tuple(v for part, _, _ in gathered for v in part[name]) for name in self._rewards}
        images = np.concatenate([part for _, part, _ in gathered])
        judged = every.get(self._config.rewards.judge or "", (None,) * len(images))
        result = EvaluationResult(
            update=update,
            guidance=guidance,
            prompts=tuple(prompt.text for prompt, _ in self._draws),
            categories=tuple(str(prompt.extra.get("category", "all")) for prompt, _ in self._draws),
            correct=tuple(None if verdict is None else verdict >= 0.5 for verdict in judged),
            scores=every,
            diversity=self._diversity(images),
        )
        return Evaluated(result, images, sum(count for _, _, count in gathered))

    def _diversity(self, images: NDArray[np.uint8]) -> float | None:
        if self._features is None:
            return None
        features = self._features(list(images))
        return diversity(features.reshape(-1, self._config.evaluation.pictures_per_prompt, features.shape[1]))


def draw(
    policy: Policy, prompts: Sequence[Prompt], seeds: Sequence[int], *, steps: int, guidance: float
) -> tuple[NDArray[np.uint8], int]:
    """One picture of each prompt from its own seed, by DDIM: (N, H, W, 3) and the UNet evaluations it took."""
    noise = step_noise(policy.latent_shape, branches=1, steps=0, seeds=seeds)
    grown = grow(policy, policy.schedule(steps), prompts, noise, guidance=guidance, eta=0.0)
    return grown.previews[steps - 1][:, 0], grown.unet_evaluations
