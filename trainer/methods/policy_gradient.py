"""The policy gradient over denoising steps: DDPO (arXiv 2305.13301) and GRPO (Flow-GRPO, arXiv 2505.05470).

Both are PPO's clipped gradient on the exact Gaussian log-probability of steps that were taken (DDPO_IS,
equation 5), over some optimizer steps from the same branches. They differ in the advantage: a return less the
mean of its prompt's branches, over the standard deviation of the whole update's (ddpo) or of its prompt's own
(grpo, equation 5 of Flow-GRPO). DDPO's code keeps running statistics of each prompt and takes the whole
update's until it has met a prompt often enough, which here, where prompts seldom come again, is always.
Log-probabilities are summed over a latent, as both papers write them; DDPO's code takes means and so clips
where the ratio has moved 1e-4: `loss.clip_range` is that of the whole step.
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from trainer.losses import clipped_loss, path_loss, step_divergences
from trainer.methods.method import Part, Retrospective, Terms
from trainer.path_integral import centred, spreads
from trainer.replay import Lesson, Replay

ADVANTAGE_LIMIT = 5.0
"""Larger advantages are cut, as both papers' code does."""


class PolicyGradient(Retrospective):
    """Every branch with a return teaches, in proportion to its advantage."""

    def parts(self, lesson: Lesson, step: int) -> Iterator[Part]:
        """Of the branches whose advantage is not 0."""
        advantages_PK = self.advantages(lesson)
        for replay, advantages_B in self._replays(lesson, step, advantages_PK, advantages_PK != 0):
            yield partial(self._reinforced, replay, advantages_B, share=1 / advantages_PK.shape[1], step=step)

    def advantages(self, lesson: Lesson) -> Tensor:
        """(P, K): how much better than expected each branch was; 0 where nobody knows."""
        returns_PK, valid_P = lesson.selection.returns_PK, lesson.selection.valid_P
        own = self._config.method == "grpo"
        scale_P1 = spreads(returns_PK)[:, None] if own else self._spread
        advantages_PK = (centred(returns_PK) / scale_P1).clamp(-ADVANTAGE_LIMIT, ADVANTAGE_LIMIT)
        return advantages_PK * valid_P[:, None]

    def _reinforced(self, replay: Replay, advantages_B: Tensor, *, share: float, step: int) -> Terms:
        old, references, outputs = self._asked(replay, step)
        log_ratios_N = self._replayer.log_probabilities(replay, outputs) - self._replayer.log_probabilities(
            replay, old
        )
        loss = share * clipped_loss(replay.by_branch(log_ratios_N), advantages_B, self._options.clip_range)
        if references is None:
            return Terms(loss, torch.zeros_like(loss))
        means, std = self._replayer.distributions(replay, outputs)
        expected, _ = self._replayer.distributions(replay, references)
        divergences_BS = replay.by_branch(step_divergences(means, expected, std))
        return Terms(loss, path_loss(divergences_BS, torch.full_like(advantages_B, share)))
