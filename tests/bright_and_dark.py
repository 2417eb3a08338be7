"""Rewards in this process for a coordinator: how bright a picture is, and how dark."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reward_services import RewardError, RewardInfo, Score
from trainer.coordinator import Coordinator
from trainer.pace import Pace

Image = NDArray[np.uint8]


class Brightness:
    """Two rewards, the mean pixel and its negative; `trouble` may fail a reward of a call."""

    def __init__(self, trouble: Callable[[int, str], RewardError | None] = lambda call, name: None) -> None:
        self.calls: list[tuple[tuple[str, ...], int]] = []
        self.revision = "1"
        self.delay_s = 0.0
        self._trouble = trouble

    async def describe(self, rewards: Any = None) -> list[RewardInfo]:
        about = {
            "range": (None, None),
            "higher_is_better": True,
            "deterministic": True,
            "modality": ("image",),
        }
        rest = {"revision": self.revision, "max_items": 8, "ready": True}
        return [RewardInfo.model_validate({"id": name, **about, **rest}) for name in ("bright", "dark")]

    async def score(
        self, images: Sequence[Image], prompts: Sequence[str], *, rewards: Sequence[str], deadline_s: float
    ) -> dict[str, list[Score]]:
        call = len(self.calls)
        self.calls.append((tuple(rewards), len(prompts)))
        await asyncio.sleep(self.delay_s)
        return {name: [self._one(call, name, image) for image in images] for name in rewards}

    def _one(self, call: int, name: str, image: Image) -> Score:
        error = self._trouble(call, name)
        if error is not None:
            return Score.failed(error)
        return Score.of(float(image.mean()) * (1 if name == "bright" else -1)).by(self.revision)


def pictures(*values: int) -> list[Image]:
    return [np.full((4, 4, 3), value, np.uint8) for value in values]


def values(scores: dict[str, list[Score]], name: str) -> list[float | None]:
    return [score.value for score in scores[name]]


def coordinator(rewards: Any, **pace: Any) -> Coordinator:
    return Coordinator(rewards, names=("bright", "dark"), pace=Pace(**pace))
