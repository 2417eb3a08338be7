"""What every judge is: a rubric's questions, put to a model, and a score from how likely each answer is.

A level's worth counts by its probability, as G-Eval (arXiv 2303.16634, section 2) weighs its scores: finer
than the likeliest level alone, and nothing is left to be parsed.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from reward_services.errors import (
    DeadlineExceeded,
    ImageInvalid,
    ReplicaFailed,
    RewardError,
    ScoreNotFinite,
    ScoringFailed,
)
from reward_services.images import check_array
from reward_services.judges.rubric import Question, Rubric
from reward_services.schema import RewardInfo, Score
from reward_services.scorers.scorer import finite_score, golden_picture

_GOLDEN_DEADLINE_S = 60.0
_MOST_STRETCHED = 64


class Model(Protocol):
    """A vision-language model that answers a question with one of its levels.

    `revision` changes whenever answers may change.
    """

    revision: str

    async def probabilities(
        self, image: NDArray[np.uint8], question: Question, *, expires: float
    ) -> Mapping[str, float]:
        """How likely each of the question's levels is; `expires` is in seconds of the monotonic clock.

        Raises:
            RewardError: there is no answer, or none that can be used.
        """
        ...

    async def check(self) -> None:
        """Raises `RewardUnavailable` when the model will not answer any more."""
        ...

    async def close(self) -> None:
        """Let go of what the model holds."""
        ...


class Judge:
    """A model with a rubric: scores one picture at a time, many of them at once."""

    def __init__(self, model: Model, rubric: Rubric) -> None:
        self._model, self._rubric = model, rubric
        self.revision = f"sha256:{hashlib.sha256((model.revision + rubric.digest).encode()).hexdigest()}"

    async def score(self, image: NDArray[np.uint8], prompt: str, *, expires: float) -> Score:
        """The score of an (H, W, 3) uint8 image, its aspects as parts; what goes wrong is a failed score."""
        aspects: list[asyncio.Task[float]] = []
        try:
            _check_image(image)
            async with asyncio.timeout(expires - time.monotonic()):
                for question in self._rubric.questions(prompt):
                    aspects.append(asyncio.create_task(self._worth(image, question, expires)))
                worth = await asyncio.gather(*aspects)
        except TimeoutError:
            return Score.failed(DeadlineExceeded("the deadline passed before the judge had answered"))
        except RewardError as error:
            return Score.failed(error)
        finally:
            for aspect in aspects:  # where one fails, the others' answers are of no use
                aspect.cancel()
        parts = dict(zip(self._rubric.aspects, worth, strict=True))
        return finite_score(self._rubric.mean(parts), parts).by(self.revision)

    def describe(self, name: str, *, max_items: int) -> RewardInfo:
        """This judge as the reward `name`, which has `max_items` images under way at once."""
        return RewardInfo(
            id=name,
            revision=self.revision,
            range=self._rubric.span,
            higher_is_better=True,
            deterministic=False,  # in another batch the same picture's last digits may differ
            modality=("text", "image"),
            max_items=max_items,
            ready=True,
        )

    async def prove(self) -> None:
        """Raises `ReplicaFailed` when the judge cannot score a picture."""
        golden = await self.score(
            golden_picture(), "a red cube", expires=time.monotonic() + _GOLDEN_DEADLINE_S
        )
        if golden.error is not None:
            raise ReplicaFailed(f"the golden sample cannot be scored: {golden.error.detail}")

    async def check(self) -> None:
        """Raises `RewardUnavailable` when the model will not answer any more."""
        await self._model.check()

    async def close(self) -> None:
        """Let go of the model; what is under way fails."""
        await self._model.close()

    async def _worth(self, image: NDArray[np.uint8], question: Question, expires: float) -> float:
        return expectation(await self._model.probabilities(image, question, expires=expires), question.levels)


def _check_image(image: NDArray[np.uint8]) -> None:
    """Models resize by the shorter side: a line of pixels would grow beyond all bounds."""
    check_array(image)
    height, width = image.shape[:2]
    if max(height, width) > _MOST_STRETCHED * min(height, width):
        raise ImageInvalid(
            f"one side of {width} x {height} pixels is over {_MOST_STRETCHED} times the other; crop the image"
        )


def expectation(probabilities: Mapping[str, float], levels: Mapping[str, float]) -> float:
    """The mean worth of the levels, each by its share of their probabilities.

    Raises:
        ScoringFailed: a level has no probability: what the others say is not the model's judgement.
        ScoreNotFinite: the probabilities are NaN, infinite, or all zero.
    """
    missing = [level for level in levels if level not in probabilities]
    if missing:
        raise ScoringFailed(f"the model gave no probability for the level {missing[0]!r}")
    total = sum(probabilities[level] for level in levels)
    if not math.isfinite(total) or total <= 0:
        raise ScoreNotFinite(f"the probabilities of the levels sum to {total}")
    return sum(worth * probabilities[level] for level, worth in levels.items()) / total
