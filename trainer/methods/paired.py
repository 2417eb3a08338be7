"""Preferring the best branch of a prompt to its worst: RLHF-Sharpening, Diffusion-DPO and D3PO.

One preference loss; they differ in what a log-ratio of policy to reference is read from, and in whether a
branch's states are compared together or one by one. S replayed states of each of B pairs.
"""

from abc import abstractmethod
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from trainer.losses import denoising_errors, path_loss, preference_loss, step_divergences
from trainer.methods.method import Method, Part, Terms
from trainer.replay import Lesson, Replay


class _Paired(Method):
    def parts(self, lesson: Lesson, step: int) -> Iterator[Part]:
        """Of a better and a worse branch of each prompt: at temperature 0 the best and the worst."""
        selection, size = lesson.selection, self._config.branches_at_a_time // 2
        draws = self._replayer.draw(lesson, step)
        best_P, worst_P = selection.pairs(draws.chances_P2)
        gap_P, valid = selection.gaps(best_P, worst_P), selection.valid_P.nonzero()[:, 0]
        for first in range(0, len(valid), size):
            pairs = valid[first : first + size]
            columns = torch.cat([best_P[pairs], worst_P[pairs]])
            replay = self._replayer.replay(lesson.branches, pairs.repeat(2), columns, draws)
            yield partial(self._compared, replay, gap_P[pairs].to(self._replayer.device))

    def _compared(self, replay: Replay, gaps_B: Tensor) -> Terms:
        ratios_N, divergences_N = self._ratios(replay)
        best_BS, worst_BS = replay.by_branch(ratios_N).unflatten(0, (2, len(gaps_B)))
        divergences_BS = replay.by_branch(divergences_N)
        return Terms(
            self._preference(best_BS, worst_BS, gaps_B),
            path_loss(divergences_BS, divergences_BS.new_full((len(divergences_BS),), 0.5)),
        )

    def _ratios(self, replay: Replay) -> tuple[Tensor, Tensor]:
        """(N,) log-ratios as denoising errors say them, and squared differences from the reference."""
        # References first: afterwards the policy's activations are held until the backward pass.
        references, outputs = self._replayer.references(replay), self._replayer.outputs(replay)
        reference_errors = denoising_errors(references, replay.targets)
        ratios_N = reference_errors - denoising_errors(outputs, replay.targets)
        return ratios_N, denoising_errors(outputs, references)

    @abstractmethod
    def _preference(self, best_BS: Tensor, worst_BS: Tensor, gaps_B: Tensor) -> Tensor: ...


class PairedBranches(_Paired):
    """RLHF-Sharpening (arXiv 2502.12146, equation 11): a branch's states are compared together."""

    def _preference(self, best_BS: Tensor, worst_BS: Tensor, gaps_B: Tensor) -> Tensor:
        return preference_loss(
            best_BS,
            worst_BS,
            gaps_B,
            torch.ones_like(gaps_B),
            beta=self._options.beta,
            margin=self._options.margin,
        )


class PairedStates(_Paired):
    """Diffusion-DPO (arXiv 2311.12908, equation 14): ends noised anew, each state a comparison of its own.

    `loss.beta` stands for the paper's beta T omega(lambda) times the size of a latent: errors here are means.
    """

    def _preference(self, best_BS: Tensor, worst_BS: Tensor, gaps_B: Tensor) -> Tensor:
        count, states = best_BS.shape
        return preference_loss(
            best_BS.reshape(-1, 1),
            worst_BS.reshape(-1, 1),
            gaps_B.repeat_interleave(states),
            best_BS.new_full((count * states,), 1 / states),
            beta=self._options.beta,
            margin="none",
        )


class PairedSteps(PairedStates):
    """D3PO (arXiv 2311.13231, algorithm 1): each step a comparison of its own, by exact log-probabilities.

    The authors' code clips each ratio to 1 +- 0.0001 and averages log-probabilities over a latent; neither is
    in the paper, and neither is done here.
    """

    def _ratios(self, replay: Replay) -> tuple[Tensor, Tensor]:
        references, outputs = self._replayer.references(replay), self._replayer.outputs(replay)
        ratios_N = self._replayer.log_probabilities(replay, outputs) - self._replayer.log_probabilities(
            replay, references
        )
        means, std = self._replayer.distributions(replay, outputs)
        return ratios_N, step_divergences(means, self._replayer.distributions(replay, references)[0], std)
