"""What a method is to the learner: terms of a loss at what a replay brings back."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.config import TrainConfig
from trainer.path_integral import centred
from trainer.ranks import Ranks
from trainer.replay import Lesson, Replay, Replayer


class Terms(NamedTuple):
    """Of one part of a lesson, scalars, summed over prompts."""

    loss: Tensor
    divergence: Tensor
    """From the reference; `loss.kl_weight` times it is added to the loss."""


Part = Callable[[], Terms]
"""Evaluates some branches of a lesson."""


class Method(ABC):
    """An objective on the branches of an update; the learner takes the optimizer steps."""

    def __init__(self, config: TrainConfig, replayer: Replayer, ranks: Ranks) -> None:
        self._config, self._options = config, config.loss
        self._replayer, self._ranks = replayer, ranks

    def begin(self, lessons: Sequence[Lesson], step: int) -> None:  # noqa: B027  most need nothing
        """Look at all lessons of an update before its first optimizer step, `step`. All ranks call it."""

    @abstractmethod
    def parts(self, lesson: Lesson, step: int) -> Iterator[Part]:
        """One part of a lesson after another, each evaluated when its turn comes: it bounds the memory.

        Args:
            lesson: one whose prompts were all dropped has no parts.
            step: the optimizer step; with the lesson's seeds it decides which states are replayed.
        """

    def _replays(
        self, lesson: Lesson, step: int, values_PK: Tensor, chosen_PK: Tensor
    ) -> Iterator[tuple[Replay, Tensor]]:
        """The chosen branches, so many at a time as memory is bound to, and the value or values of each."""
        size, draws = self._config.branches_at_a_time, self._replayer.draw(lesson, step)
        rows, columns = chosen_PK.nonzero(as_tuple=True)
        for first in range(0, len(rows), size):
            some = rows[first : first + size], columns[first : first + size]
            values_B = values_PK[some].to(self._replayer.device)
            yield self._replayer.replay(lesson.branches, *some, draws), values_B

    def _references(self, replay: Replay) -> Tensor | None:
        """What the reference says of a replay; None where `loss.kl_weight` is 0.

        To be asked before the policy, whose activations are held from then on until the backward pass.
        """
        return self._replayer.references(replay) if self._options.kl_weight else None


class Retrospective(Method):
    """One that compares the policy with what it was when it sampled the branches of an update."""

    def begin(self, lessons: Sequence[Lesson], step: int) -> None:
        """Keep the weights that sampled, if they are to change; measure the update's spread of returns."""
        self._first = step
        self._old = self._replayer.weights() if self._config.optimizer.steps_per_update > 1 else []
        self._spread = spread_of(lessons, self._ranks)

    def _asked(self, replay: Replay, step: int) -> tuple[Tensor, Tensor | None, Tensor]:
        """What the policy that sampled says of a replay, the reference where it weighs, and the policy.

        In an update's first step the policy is the one that sampled. Afterwards that one is asked first of
        all, since it puts other weights in the place of those that gradients are taken of. What it said while
        it sampled would be cheaper, but came in another batch, or from weights with adapters in them: in
        bfloat16 that alone moves a whole latent's log-probability by dozens.
        """
        sampler = None if step == self._first else self._replayer.earlier(replay, self._old)
        references, outputs = self._references(replay), self._replayer.outputs(replay)
        return outputs.detach() if sampler is None else sampler, references, outputs


def spread_of(lessons: Sequence[Lesson], ranks: Ranks) -> float:
    """Standard deviation of all returns of an update around their prompt's mean. All ranks call it."""
    returns = [lesson.selection.returns_PK[lesson.selection.valid_P] for lesson in lessons]
    squares = ranks.total(sum(float(centred(of_lesson).square().sum()) for of_lesson in returns))
    count = ranks.total(float(sum(int(torch.sum(~of_lesson.isnan())) for of_lesson in returns)))
    return max(math.sqrt(squares / max(count, 1.0)), 1e-6)
