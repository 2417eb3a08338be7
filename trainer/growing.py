"""A micro-batch from its seeds to what it teaches: its branches, the scores they have, which of them go on.

Shapes: P prompts, K branches of each that still grow, T scored steps so far.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from trainer.branches import Branches, grow, step_noise
from trainer.config import TrainConfig
from trainer.path_integral import Selection, combine, ends, path_returns, select, temperatures_for
from trainer.policy import Policy
from trainer.records import Prompt
from trainer.replay import Lesson
from trainer.scoring import drop_prompts


class Growing:
    """The branches of P prompts.

    Args:
        config: of the run.
        prompts: P of them.
        seeds: one of each prompt; its branches' noise and what chance selects follow from it.
        keeps_previews: whether the lesson is to have them, to be shown; else they go when they are scored.
    """

    def __init__(
        self,
        config: TrainConfig,
        prompts: Sequence[Prompt],
        seeds: tuple[int, ...],
        *,
        keeps_previews: bool = True,
    ) -> None:
        self._config, self._prompts, self._seeds = config, prompts, seeds
        self._keeps_previews = keeps_previews
        self._branches: Branches | None = None
        self._scores: dict[str, Tensor] = {}
        self._columns_PK: Tensor | None = None  # those that went on; None before any stopped
        # Another stream than the noise of the prompt that has this seed; torch reads 32 bits.
        self._generators = [torch.Generator().manual_seed(seed ^ 0x2545F491) for seed in seeds]

    def grow(self, policy: Policy, until: int) -> Branches:
        """Grow on and stop before a step; returns the steps taken and their previews, which want scores."""
        config, branching = self._config, self._config.branching
        noise = step_noise(
            policy.latent_shape, branches=branching.branches, steps=config.path_steps, seeds=self._seeds
        )
        if self._columns_PK is not None:
            noise = noise[:, torch.arange(len(noise[0]))[:, None], self._columns_PK]
        steps = grow(
            policy,
            config.sampling,
            self._prompts,
            noise,
            start=branching.start,
            end=branching.end,
            previews=branching.previews,
            until=until,
            grown=self._branches,
        )
        grown = self._branches.then(steps) if self._branches else steps
        replayed = config.replayed_steps[0] if config.learned_states == "visited" else grown.taken
        self._branches = grown.kept_from(max(grown.first, min(replayed, grown.taken)))
        return steps

    def add(self, scores: Mapping[str, Tensor]) -> None:
        """Scores of the newest previews, {reward: (P, K, T)}; where branches are to stop, some do."""
        earlier = self._scores or {name: newest[..., :0] for name, newest in scores.items()}
        self._scores = {name: torch.cat([earlier[name], newest], 2) for name, newest in scores.items()}
        if not self._keeps_previews:
            self._branches = replace(self._grown, previews={})
        stop = self._config.branching.stop
        if stop and self._grown.taken == stop.after + 1:
            self._stop(stop.keep)

    def lesson(self) -> tuple[Lesson, dict[str, Tensor]]:
        """What the branches teach that grew to their end, and their scores, {reward: (P, K, T)}."""
        return Lesson(self._grown, self._selection(), self._seeds), self._scores

    def _stop(self, keep: int) -> None:
        """Let `keep` branches of each prompt go on, by their returns so far.

        Those with the highest; where a method compares the best with the worst, half of them the lowest.
        """
        if self._config.rewards.on_failure == "drop_prompt":  # also for failures of branches that stop
            self._scores = {name: drop_prompts(of_reward) for name, of_reward in self._scores.items()}
        lowest = keep // 2 if self._config.is_paired else 0
        places_PK = ends(self._selection().returns_PK, highest=keep - lowest, lowest=lowest)
        rows_P1 = torch.arange(len(places_PK))[:, None]
        self._branches, self._columns_PK = self._grown.kept(places_PK), places_PK
        self._scores = {name: of_reward[rows_P1, places_PK] for name, of_reward in self._scores.items()}

    @property
    def _grown(self) -> Branches:
        if self._branches is None:
            raise RuntimeError("grow branches before they are scored or learned")
        return self._branches

    def _selection(self) -> Selection:
        combined = combine(self._scores, self._config.rewards.weights)
        if self._config.rewards.on_failure == "drop_prompt":
            combined = drop_prompts(combined)
        options, returns_PK = self._config.selection, path_returns(combined)
        temperature: float | Tensor = options.temperature
        if options.effective_branches is not None:
            temperature = temperatures_for(returns_PK, options.effective_branches)
        return select(returns_PK, temperature=temperature, by=options.by, generators=self._generators)
