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
        for replay, weights_B in self._replays(lesson, step, weights_PK, weights_PK != 0):
            yield partial(self._weighted, replay, weights_B)

    def _weighted(self, replay: Replay, weights_B: Tensor) -> Terms:
        references, outputs = self._references(replay), self._replayer.outputs(replay)
        loss = path_loss(replay.by_branch(denoising_errors(outputs, replay.targets)), weights_B)
        if references is None:
            return Terms(loss, torch.zeros_like(loss))
        return Terms(loss, path_loss(replay.by_branch(denoising_errors(outputs, references)), weights_B))
