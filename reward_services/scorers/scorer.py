"""What every scorer is: prepare (CPU), run (device), finish (CPU), and `score`, which composes them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from reward_services.diagnosis import first_line
from reward_services.errors import RewardError, ScoreNotFinite, ScoringFailed
from reward_services.rewards import check_batch
from reward_services.schema import Modality, RewardInfo, Score

Pixels = NDArray[np.uint8] | Image.Image
"""An (H, W, 3) uint8 array, or a PIL image in a mode of its own."""

Item = TypeVar("Item")
Raw = TypeVar("Raw")

# What a model raises on an input that it cannot take; memory errors of a device are RuntimeErrors.
_MODEL_ERRORS = (RuntimeError, ValueError, TypeError, IndexError, ArithmeticError, MemoryError)


class Scorer(ABC, Generic[Item, Raw]):
    """A reward as plain Python. `Item` is one prepared input, `Raw` what the model says of one.

    `revision` changes whenever scores may change. `score_range` is (lowest, highest); None is unbounded.
    """

    score_range: ClassVar[tuple[float | None, float | None]] = (None, None)
    higher_is_better: ClassVar[bool] = True
    deterministic: ClassVar[bool] = True
    modality: ClassVar[tuple[Modality, ...]] = ("text", "image")
    faults: ClassVar[tuple[type[Exception], ...]] = _MODEL_ERRORS
    """What is an input's own failure when `prepare` or `run` raises it; anything else is the replica's."""

    revision: str

    @abstractmethod
    def prepare(self, image: Pixels, prompt: str) -> Item:
        """CPU: one input made ready; raises a `RewardError` that becomes this item's own failure."""

    @abstractmethod
    def run(self, items: Sequence[Item]) -> Sequence[Raw]:
        """Device: one result per item, in order."""

    @abstractmethod
    def finish(self, raw: Raw) -> Score:
        """CPU: one result as a score."""

    def golden(self) -> tuple[Pixels, str]:
        """A fixed sample that the reward must always be able to score, for health checks."""
        return golden_picture(), "a photo of a red cube on a blue sphere"

    def describe(self, name: str, *, max_items: int) -> RewardInfo:
        """This scorer as the reward `name`, which takes batches of `max_items`."""
        return RewardInfo(
            id=name,
            revision=self.revision,
            range=self.score_range,
            higher_is_better=self.higher_is_better,
            deterministic=self.deterministic,
            modality=self.modality,
            max_items=max_items,
            ready=True,
        )

    def admit(self, images: Sequence[Pixels], prompts: Sequence[str]) -> list[Item | RewardError]:
        """Prepare every input; what cannot be prepared is its error, in its place."""
        check_batch(images, prompts)
        return [self._admitted(image, prompt) for image, prompt in zip(images, prompts, strict=True)]

    def complete(self, admitted: Sequence[Item | RewardError]) -> list[Score]:
        """Run and finish what was admitted: one score per place."""
        scores = iter(self._scored([entry for entry in admitted if not isinstance(entry, RewardError)]))
        return [Score.failed(entry) if isinstance(entry, RewardError) else next(scores) for entry in admitted]

    def score(self, images: Sequence[Pixels], prompts: Sequence[str]) -> list[Score]:
        """One score per image, in order; a bad image fails alone."""
        return self.complete(self.admit(images, prompts))

    def _admitted(self, image: Pixels, prompt: str) -> Item | RewardError:
        try:
            return self.prepare(image, prompt)
        except RewardError as error:
            return error
        except self.faults as error:
            # Such as a tokenizer's, of a prompt that is no text: a lone surrogate.
            return _failure(error)

    def _scored(self, items: Sequence[Item]) -> list[Score]:
        """Halve a batch that the model cannot take until the culprit stands alone."""
        if not items:
            return []
        try:
            return [self.finish(raw).by(self.revision) for raw in self.run(items)]
        except RewardError:
            raise
        except self.faults as error:
            if len(items) == 1:
                return [Score.failed(_failure(error))]
        half = len(items) // 2
        return [*self._scored(items[:half]), *self._scored(items[half:])]


def golden_picture() -> NDArray[np.uint8]:
    """A fixed (64, 64, 3) picture that every reward must be able to score."""
    ramp = np.arange(64, dtype=np.uint8) * 4
    return np.stack(np.broadcast_arrays(ramp, ramp[:, None], np.uint8(96)), axis=-1)


def finite_score(value: float, parts: dict[str, float] | None = None) -> Score:
    """The score of a value that came out of a model: NaN and infinity are failures."""
    if not math.isfinite(value):
        return Score.failed(ScoreNotFinite(f"the model answered {value}"))
    return Score.of(value, parts)


def _failure(error: BaseException) -> ScoringFailed:
    return ScoringFailed(f"{type(error).__name__}: {first_line(str(error))}")
