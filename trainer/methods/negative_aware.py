"""DiffusionNFT (arXiv 2509.16117): the forward process learns good branches, and away from bad ones.

Named deviations: errors are those of the model's own kind of output and not weighted by their size; the
policy that sampled is the one at the start of the update, where the paper also takes running means.
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from trainer.losses import denoising_errors, negative_aware_errors, path_loss
from trainer.methods.method import Part, Retrospective, Terms
from trainer.path_integral import centred
from trainer.replay import Lesson, Replay


class NegativeAware(Retrospective):
    """Every branch with a return teaches, by the probability that it is optimal."""

    def parts(self, lesson: Lesson, step: int) -> Iterator[Part]:
        """Of every branch with a return."""
        optimal_PK = self.optimality(lesson)
        for replay, optimal_B in self._replays(lesson, step, optimal_PK, ~optimal_PK.isnan()):
            yield partial(self._contrasted, replay, optimal_B, share=1 / optimal_PK.shape[1], step=step)

    def optimality(self, lesson: Lesson) -> Tensor:
        """(P, K) from 0 to 1: a half plus half the advantage, cut at -1 and 1; NaN where nobody knows."""
        returns_PK, valid_P = lesson.selection.returns_PK, lesson.selection.valid_P
        optimal_PK = 0.5 + 0.5 * (centred(returns_PK) / self._spread).clamp(-1, 1)
        return optimal_PK.masked_fill(returns_PK.isnan() | ~valid_P[:, None], torch.nan)

    def _contrasted(self, replay: Replay, optimal_B: Tensor, *, share: float, step: int) -> Terms:
        old, references, outputs = self._asked(replay, step)
        optimal_N = optimal_B.repeat_interleave(replay.states_per_branch)
        errors_N = negative_aware_errors(outputs, old, (replay.targets, optimal_N), self._options.beta)
        shares_B = torch.full_like(optimal_B, share)
        loss = path_loss(replay.by_branch(errors_N), shares_B)
        if references is None:
            return Terms(loss, torch.zeros_like(loss))
        divergences_N = denoising_errors(outputs, references)
        return Terms(loss, path_loss(replay.by_branch(divergences_N), shares_B))
