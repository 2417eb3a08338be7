"""Learning branches by weight: SFT-Sharpening (arXiv 2502.12146, equation 9) and standard fine-tuning.

Standard fine-tuning is the same objective on pictures that somebody else made: one branch a prompt, weight 1,
its end noised anew. On the model's own best branch, noised anew, SFT-Sharpening is RAFT (arXiv 2304.06767).
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from trainer.losses import denoising_errors, path_loss
from trainer.methods.method import Method, Part, Terms
from trainer.replay import Lesson, Replay


class WeightedBranches(Method):
    """The path loss: denoising errors of a branch, weighted by what selection made of its return."""

    def parts(self, lesson: Lesson, step: int) -> Iterator[Part]:
        """Of the branches whose weight is not 0."""
        selection = lesson.selection
        weights_PK = selection.centred_weights_PK if self._options.baseline else selection.weights_PK
        replayed_PK = weights_PK != 0
        shares_PK = weights_PK
        if self._options.baseline:
            # Centred weights sum to 0, and losers' would reward a divergence. All branches are pushed, and
            # together they are a sample of the policy: the mean of their divergences is the policy's.
            shares_PK = replayed_PK / replayed_PK.sum(1, keepdim=True).clamp(min=1)
        values_PK2 = torch.stack([weights_PK, shares_PK], 2)
        for replay, values_B2 in self._replays(lesson, step, values_PK2, replayed_PK):
            yield partial(self._weighted, replay, *values_B2.unbind(1))

    def _weighted(self, replay: Replay, weights_B: Tensor, shares_B: Tensor) -> Terms:
        references, outputs = self._references(replay), self._replayer.outputs(replay)
        loss = path_loss(replay.by_branch(denoising_errors(outputs, replay.targets)), weights_B)
        if references is None:
            return Terms(loss, torch.zeros_like(loss))
        return Terms(loss, path_loss(replay.by_branch(denoising_errors(outputs, references)), shares_B))
