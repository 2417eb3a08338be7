"""Draws pictures of held-out prompts plainly (no search) and has them judged, from the same seeds always."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from reward_services import RewardError, Score
from trainer.branches import Diverged, grow, step_noise
from trainer.config import SamplingConfig, TrainConfig
from trainer.data.prompts import evenly, read_prompts
from trainer.evaluation import CORRECT_FROM, EvaluationResult, diversity
from trainer.features import ImageFeatures
from trainer.policy import Policy
from trainer.ranks import Ranks, ScoresMissing
from trainer.records import Prompt
from trainer.scoring import Scoring, TooManyFailures, cause_of
from trainer.statistics import image_statistics

log = logging.getLogger(__name__)

EVALUATION_SEED = 20250217
"""Pictures of every run start from the same noises."""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """An evaluation, and its pictures."""

    result: EvaluationResult
    pictures: NDArray[np.uint8]
    """(N, H, W, 3) in the order of the result's prompts; on ranks other than 0 there are none."""


class HeldOut:
    """The held-out prompts of a run, ready to be drawn as often as wanted."""

    def __init__(self, config: TrainConfig, scoring: Scoring, ranks: Ranks) -> None:
        if config.prompts.held_out is None:
            raise ValueError("prompts.held_out is not set, so there is nothing to evaluate on")
        each = config.evaluation.pictures_per_prompt
        wanted = config.evaluation.draws // each
        held_out: list[Prompt] = read_prompts(config.prompts.held_out, strict=config.prompts.strict)
        if config.evaluation.prompts == "evenly" and wanted < len(held_out):
            held_out = evenly(held_out, wanted)
        prompts = (held_out * -(-wanted // len(held_out)))[:wanted]
        self._config, self._scoring, self._ranks = config, scoring, ranks
        self._draws = [
            (prompt, place * each + k) for place, prompt in enumerate(prompts) for k in range(each)
        ]
        self._rewards = config.rewards.names
        features = config.evaluation.features
        self._features = ImageFeatures(features) if features else None

    def evaluate(self, policy: Policy, update: int) -> Evaluated:
        """Draw and judge every held-out picture, each rank its share. All ranks call it.

        Raises:
            ScoresMissing: a reward or the judge gave no score at all, or not as it was.
            Halted: the model drew what is no picture.
        """
        sampling, pictures, pending = self._config.sampling, [], []
        with policy.sampling(), self._ranks.together(Diverged):
            for chunk in self._chunks():
                prompts = [prompt for prompt, _ in chunk]
                seeds = [EVALUATION_SEED + 7919 * seed for _, seed in chunk]
                pictures.append(draw(policy, prompts, seeds, sampling))
                texts = [prompt.text for prompt in prompts]
                pending.append(self._scoring.submit(pictures[-1], texts, self._rewards))
        with self._ranks.together(RewardError, halt=ScoresMissing):
            answers = [wait() for wait in pending]
        answers = [answer for of_rank in self._ranks.gather(answers) for answer in of_rank]
        scores = {name: [score for answer in answers for score in answer[name]] for name in self._rewards}
        self._check_scored(scores, update)
        own = [picture for chunk in pictures for picture in chunk]
        result = self._judged(scores, own, policy.device, update)
        collected = [picture for of_rank in self._ranks.collect(own) for picture in of_rank]
        return Evaluated(result, np.array(collected, np.uint8))

    def _chunks(self) -> Iterator[list[tuple[Prompt, int]]]:
        share = shares(len(self._draws), self._ranks.world_size)[self._ranks.rank]
        mine = self._draws[share.start : share.stop]
        size = drawn_at_a_time(self._config)
        return (mine[first : first + size] for first in range(0, len(mine), size))

    def _check_scored(self, scores: Mapping[str, Sequence[Score]], update: int) -> None:
        """Every rank has all scores and comes to the same end; what failed is told by one."""
        with self._ranks.together(TooManyFailures, halt=ScoresMissing):
            for name, of_reward in scores.items():
                failed = [cause_of(score) for score in of_reward if not score.ok]
                if len(failed) == len(of_reward):
                    raise TooManyFailures(
                        f"{name} scored none of the held-out pictures: {failed[0]}. "
                        "Repair the reward service and run the same command to go on"
                    )
                if failed and self._ranks.is_main:
                    log.warning(
                        "%s gave no score of %d of %d held-out pictures (update %d), most often since %s",
                        *(name, len(failed), len(of_reward), update, Counter(failed).most_common(1)[0][0]),
                    )

    def _judged(
        self,
        scores: Mapping[str, Sequence[Score]],
        pictures: Sequence[NDArray[np.uint8]],
        device: torch.device,
        update: int,
    ) -> EvaluationResult:
        """From all scores and this rank's own pictures: each rank measures those that it has."""
        values = {name: tuple(score.value for score in of_reward) for name, of_reward in scores.items()}
        verdicts = values.get(self._config.rewards.judge or "", (None,) * len(self._draws))
        correct = tuple(None if verdict is None else verdict >= CORRECT_FROM for verdict in verdicts)
        features = None if self._features is None else self._features(pictures, device)
        told = self._ranks.gather((image_statistics(pictures), features))
        statistics, features_Nd = _joined([of_rank for of_rank, _ in told]), None
        if self._features is not None:
            features_Nd = np.concatenate([of_rank for _, of_rank in told if of_rank is not None])
        return EvaluationResult(
            update=update,
            guidance=self._config.sampling.guidance,
            prompts=tuple(prompt.text for prompt, _ in self._draws),
            categories=tuple(prompt.category for prompt, _ in self._draws),
            correct=correct,
            scores=values,
            diversity=self._diversity(features_Nd, np.full(len(correct), fill_value=True)),
            diversity_of_correct=self._diversity(features_Nd, np.array([bool(right) for right in correct])),
            statistics=statistics,
        )

    def _diversity(
        self, features_Nd: NDArray[np.float32] | None, chosen_N: NDArray[np.bool_]
    ) -> float | None:
        if features_Nd is None:
            return None
        prompts = [prompt.text for (prompt, _), chosen in zip(self._draws, chosen_N, strict=True) if chosen]
        return diversity(features_Nd[chosen_N], prompts)


def _joined(parts: Sequence[Mapping[str, tuple[float, ...]]]) -> dict[str, tuple[float, ...]]:
    return {name: tuple(value for part in parts for value in part[name]) for name in parts[0]}


def shares(draws: int, ranks: int) -> list[range]:
    """Which of so many held-out pictures each rank draws, in order; none has more than the first."""
    most = -(-draws // ranks)
    return [range(min(first, draws), min(first + most, draws)) for first in range(0, ranks * most, most)]


def drawn_at_a_time(config: TrainConfig) -> int:
    """Held-out pictures of a batch: unless they are set, as many as training grows branches at a time."""
    return config.evaluation.batch_size or config.prompts_at_a_time * config.branching.branches


def draw(
    policy: Policy, prompts: Sequence[Prompt], seeds: Sequence[int], sampling: SamplingConfig
) -> NDArray[np.uint8]:
    """One picture of each prompt from its own seed, without search: (N, H, W, 3).

    Raises:
        Diverged: what would be decoded is not finite.
    """
    steps = sampling.steps
    noise = step_noise(policy.latent_shape, branches=1, steps=steps if sampling.eta else 0, seeds=seeds)
    grown = grow(policy, sampling, prompts, noise)
    grown.check_finite()
    return grown.previews[steps - 1][:, 0]
